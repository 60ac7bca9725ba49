// What a caching allocator holds: the engine. Internal.
#pragma once

#include <atomic>
#include <utility>

#include "errors.h"
#include "handles.h"
#include "plugalloc/caching_allocator.h"
#include "plugalloc/src/ffi/bridge.rs.h"

PLUGALLOC_BEGIN_NAMESPACE

struct __attribute__((visibility("hidden"))) CachingAllocator::State {
  explicit State(rust::Box<bridge::CachingCore> engine) : core(std::move(engine)) {}

  /// Read on every allocation; written once, so that threads do not take the line from each other.
  void markInitialized() noexcept {
    if (!initialized.load(std::memory_order_relaxed)) {
      initialized.store(true, std::memory_order_relaxed);
    }
  }

  bool owns(void* pointer) const noexcept { return core->owns(bridge::toNumber(pointer)); }
  bool isIdle() const noexcept { return core->is_idle(); }
  void release(void* pointer) { bridge::check(core->free(bridge::toNumber(pointer))); }

  rust::Box<bridge::CachingCore> core;
  std::atomic<bool> initialized{false};
};

PLUGALLOC_END_NAMESPACE
