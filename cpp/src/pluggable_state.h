// What an allocator over user functions holds. Internal.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "deleter_registry.h"
#include "errors.h"
#include "handles.h"
#include "plugalloc/pluggable_allocator.h"
#include "plugalloc/src/ffi/bridge.rs.h"

PLUGALLOC_BEGIN_NAMESPACE

struct __attribute__((visibility("hidden"))) PluggableAllocator::State
    : std::enable_shared_from_this<PluggableAllocator::State> {
  /// The user's functions: all that a copy takes over.
  struct Functions {
    AllocFn alloc;
    FreeFn free;
    std::function<void(int)> init;
    std::function<void()> reset;
    std::function<void(double, int)> memory_fraction;
    std::function<void*(void*, std::size_t*)> base_alloc;
    std::function<void(void*, cudaStream_t)> record_stream;
    std::function<void(int, MempoolId_t, std::function<bool(cudaStream_t)>)> begin_pool;
    std::function<void(int, MempoolId_t)> end_pool;
    std::function<void(int, MempoolId_t)> release_pool;
    std::function<void(void*, const void*, std::size_t)> copy_data;
  };

  explicit State(Functions functions)
      : call(std::move(functions)), core(bridge::new_pluggable_core()), history(core->history()) {}

  bridge::Claim claimOf(void* pointer) const noexcept {
    return core->owns(bridge::toNumber(pointer)) ? bridge::Claim::Own : bridge::Claim::None;
  }
  bool isIdle() const noexcept { return core->is_idle(); }

  /// Forgets the pointer first: once `free` has it, another thread may be given it again.
  void release(void* pointer) {
    // A pointer that is forgotten does not keep the functions any more, and the allocator may go
    // while one of them runs: on another thread, or by what the function does.
    const std::shared_ptr<State> self = shared_from_this();
    bridge::EntryRecord entry{};
    bridge::check(core->take(bridge::toNumber(pointer), entry));
    call.free(pointer, entry.bytes, entry.device, bridge::toStream(entry.stream));
  }

  Functions call;
  rust::Box<bridge::PluggableCore> core;
  rust::Box<bridge::HistoryCore> history;
  std::atomic<bool> initialized{false};
};

PLUGALLOC_END_NAMESPACE
