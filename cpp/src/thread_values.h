// What every allocation reads of its thread and process, where it can be read inline. Internal.
#pragma once

#include <atomic>

#include "plugalloc/stream.h"

namespace plugalloc {
namespace bridge {

/// The device that this thread has set; -1: none. It lies where a thread finds it with one
/// instruction, also when the library was loaded late: it is small enough for the room kept for
/// that.
extern __attribute__((visibility("hidden"), tls_model("initial-exec"))) __thread int thread_device;

/// What is asked where a thread has set none.
extern __attribute__((visibility("hidden"))) std::atomic<CurrentDeviceProvider> device_provider;

/// True while an error of a deleter waits. Written only after an error, so that it stays in every
/// core's cache.
extern __attribute__((visibility("hidden"))) std::atomic<bool> deleter_error_waits;

/// `currentDevice()`, inline.
inline int currentDeviceInline() noexcept {
  const int device = thread_device;
  if (device >= 0) {
    return device;
  }
  const CurrentDeviceProvider provider = device_provider.load(std::memory_order_acquire);
  return provider == nullptr ? 0 : provider();
}

inline bool deleterErrorWaits() noexcept {
  return deleter_error_waits.load(std::memory_order_relaxed);
}

/// Throws the error that a deleter left.
[[noreturn]] void throwDeleterError();

/// Throws the error that a deleter left, if there is one.
inline void throwPendingDeleterError() {
  if (__builtin_expect(deleterErrorWaits(), 0)) {
    throwDeleterError();
  }
}

}  // namespace bridge
}  // namespace plugalloc
