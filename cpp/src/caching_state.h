// What a caching allocator holds: the engine. Internal.
#pragma once

#include <cstdint>
#include <utility>

#include "deleter_registry.h"
#include "errors.h"
#include "handles.h"
#include "plugalloc/caching_allocator.h"
#include "plugalloc/src/ffi/bridge.rs.h"
#include "thread_values.h"

PLUGALLOC_BEGIN_NAMESPACE

struct __attribute__((visibility("hidden"))) CachingAllocator::State {
  explicit State(rust::Box<bridge::CachingCore> engine)
      : core(std::move(engine)), history(core->history()) {}

  /// The address that stands for an error.
  static constexpr std::uint64_t kFailed = 1;

  bridge::Claim claimOf(void* pointer) const noexcept {
    return static_cast<bridge::Claim>(core->claim_of(bridge::toNumber(pointer)));
  }
  bool isIdle() const noexcept { return core->is_idle(); }
  void* allocate(int device, std::size_t nbytes, cudaStream_t stream) {
    const std::uint64_t address = core->alloc(device, nbytes, bridge::toNumber(stream));
    if (__builtin_expect(address == kFailed, 0)) {
      bridge::throwLastError();
    }
    return bridge::toPointer(address);
  }
  /// On the device that is current where the thread has set none; throws what a deleter left.
  __attribute__((noinline)) void* allocateOnCurrent(std::size_t nbytes, cudaStream_t stream) {
    bridge::throwPendingDeleterError();
    return allocate(bridge::currentDeviceInline(), nbytes, stream);
  }
  void release(void* pointer) {
    if (__builtin_expect(!core->free(bridge::toNumber(pointer)), 0)) {
      bridge::throwLastError();
    }
  }

  rust::Box<bridge::CachingCore> core;
  rust::Box<bridge::HistoryCore> history;
};

PLUGALLOC_END_NAMESPACE
