// The ways to get an allocator, and the one of this process.
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "caching_state.h"
#include "errors.h"
#include "plugalloc/plugalloc.h"
#include "plugalloc/src/ffi/bridge.rs.h"

PLUGALLOC_BEGIN_NAMESPACE

namespace {

/// Kept for the life of the process: at exit memory is abandoned, and no destructor calls a driver
/// that is going down.
struct Current {
  std::mutex mutex;
  std::shared_ptr<CUDAAllocator> allocator;
  /// `allocator`, once it is initialised: it is not written any more then, and is read without the
  /// mutex.
  std::atomic<const std::shared_ptr<CUDAAllocator>*> settled{nullptr};
};

Current& current() {
  static Current* const one = new Current;
  return *one;
}

}  // namespace

std::shared_ptr<CUDAAllocator> createCachingAllocator(const Options& options) {
  try {
    // A byte that is no UTF-8 is as wrong as any other unknown letter.
    const rust::String device = bridge::toRust(options.device);
    const rust::String conf = bridge::toRust(options.conf);
    rust::Box<bridge::CachingCore> core =
        bridge::open_caching(device, conf, options.sim_capacity, options.sim_devices);
    return std::make_shared<CachingAllocator>(
        std::make_shared<CachingAllocator::State>(std::move(core)));
  } catch (const rust::Error&) {
    bridge::throwLastError();
  }
}

std::shared_ptr<CUDAAllocator> createCustomAllocator(
    std::function<void*(std::size_t, int, cudaStream_t)> alloc_fn,
    std::function<void(void*, std::size_t, int, cudaStream_t)> free_fn) {
  return std::make_shared<PluggableAllocator>(std::move(alloc_fn), std::move(free_fn));
}

std::shared_ptr<CUDAAllocator> getCurrentAllocator() {
  Current& now = current();
  if (const auto* const settled = now.settled.load(std::memory_order_acquire)) {
    return *settled;
  }
  const std::lock_guard<std::mutex> lock(now.mutex);
  if (now.allocator == nullptr) {
    now.allocator = createCachingAllocator();
  }
  if (now.allocator->initialized()) {
    now.settled.store(&now.allocator, std::memory_order_release);
  }
  return now.allocator;
}

void changeCurrentAllocator(const std::shared_ptr<CUDAAllocator>& allocator) {
  if (allocator == nullptr) {
    bridge::throwInvalidArgument("allocator", "(null)", "an allocator");
  }
  std::shared_ptr<CUDAAllocator> former = allocator;
  Current& now = current();
  const std::lock_guard<std::mutex> lock(now.mutex);
  // Who says that it is initialised is not asked again.
  if (now.settled.load(std::memory_order_relaxed) != nullptr ||
      (now.allocator != nullptr && now.allocator->initialized())) {
    throw AlreadyInitializedError(now.allocator->name());
  }
  now.allocator.swap(former);
}

const char* version() noexcept { return PLUGALLOC_VERSION; }

PLUGALLOC_END_NAMESPACE
