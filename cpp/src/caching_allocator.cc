// The caching allocator: each method is one call of the engine.
#include "plugalloc/caching_allocator.h"

#include <algorithm>
#include <utility>

#include "caching_state.h"
#include "deleter_registry.h"
#include "errors.h"
#include "handles.h"
#include "plugalloc/src/ffi/bridge.rs.h"
#include "plugalloc/stream.h"
#include "statistics.h"
#include "thread_values.h"

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;
using bridge::toNumber;
using bridge::toPointer;
using Registry = bridge::DeleterRegistry<CachingAllocator::State>;

CachingAllocator::CachingAllocator(std::shared_ptr<State> state) : state_(std::move(state)) {
  Registry::add(state_);
}

CachingAllocator::~CachingAllocator() { Registry::retire(state_); }

const char* CachingAllocator::name() const noexcept { return "caching"; }

inline void* CachingAllocator::allocateOn(int device, std::size_t nbytes, cudaStream_t stream) {
  bridge::throwPendingDeleterError();
  return state_->allocate(device, nbytes, stream);
}

void* CachingAllocator::raw_alloc_with_stream(std::size_t nbytes, cudaStream_t stream) {
  // The hot path calls nothing but the engine, so that it saves no registers.
  int device = bridge::thread_device;
  if (device < 0) {
    if (bridge::device_provider.load(std::memory_order_acquire) != nullptr) {
      return state_->allocateOnCurrent(nbytes, stream);
    }
    device = 0;
  }
  if (__builtin_expect(bridge::deleterErrorWaits(), 0)) {
    return state_->allocateOnCurrent(nbytes, stream);
  }
  return state_->allocate(device, nbytes, stream);
}

void* CachingAllocator::raw_alloc(std::size_t nbytes) {
  const int device = bridge::currentDeviceInline();
  return allocateOn(device, nbytes, currentStream(device));
}

void CachingAllocator::raw_delete(void* ptr) { state_->release(ptr); }

DataPtr CachingAllocator::allocate(std::size_t nbytes) {
  const int device = bridge::currentDeviceInline();
  void* const block = allocateOn(device, nbytes, currentStream(device));
  return DataPtr(block, block, &Registry::release,
                 Device{DeviceType::CUDA, static_cast<DeviceIndex>(device)});
}

DeleterFnPtr CachingAllocator::raw_deleter() const { return &Registry::release; }

void CachingAllocator::copy_data(void* dest, const void* src, std::size_t count) const {
  const int device = bridge::currentDeviceInline();
  const std::uint64_t stream = toNumber(currentStream(device));
  check(state_->core->copy(device, toNumber(dest), toNumber(src), count, stream));
  check(state_->core->synchronize(device, stream));
}

bool CachingAllocator::initialized() { return state_->core->is_initialized(); }

void CachingAllocator::init(int device_count) {
  if (device_count < 0) {
    bridge::throwInvalidArgument("device_count", std::to_string(device_count), "0 or more");
  }
  state_->core->mark_initialized();
}

void CachingAllocator::recordStream(const DataPtr& pointer, cudaStream_t stream) {
  if (pointer.get() == nullptr || pointer.get_deleter() != &Registry::release) {
    return;
  }
  check(state_->core->record_stream(toNumber(pointer.get()), toNumber(stream)));
}

std::pair<std::size_t, std::size_t> CachingAllocator::getMemoryInfo(DeviceIndex device) {
  std::uint64_t free = 0;
  std::uint64_t total = 0;
  check(state_->core->memory_info(device, free, total));
  return {free, total};
}

DeviceStats CachingAllocator::getDeviceStats(DeviceIndex device) {
  bridge::StatsRecord record{};
  check(state_->core->statistics(device, record));
  return bridge::toStats(record);
}

void CachingAllocator::resetAccumulatedStats(DeviceIndex device) {
  check(state_->core->reset_accumulated(device));
}

void CachingAllocator::resetPeakStats(DeviceIndex device) {
  check(state_->core->reset_peaks(device));
}

double CachingAllocator::getMemoryFraction(DeviceIndex device) {
  double fraction = 1.0;
  check(state_->core->fraction(device, fraction));
  return fraction;
}

void CachingAllocator::setMemoryFraction(double fraction, DeviceIndex device) {
  check(state_->core->set_fraction(device, fraction));
}

void CachingAllocator::enable(bool value) { check(state_->core->set_caching(value)); }

bool CachingAllocator::isEnabled() const { return state_->core->is_caching(); }

void CachingAllocator::cacheInfo(DeviceIndex device, std::size_t* largest_block) {
  if (largest_block == nullptr) {
    bridge::throwInvalidArgument("largest_block", "null", "a number to raise");
  }
  if (*largest_block == 0) {
    *largest_block = getMemoryInfo(device).first;
  }
  std::uint64_t cached = 0;
  check(state_->core->largest_free_block(device, cached));
  *largest_block = std::max<std::size_t>(*largest_block, cached);
}

void* CachingAllocator::getBaseAllocation(void* ptr, std::size_t* size) {
  std::uint64_t start = 0;
  std::uint64_t bytes = 0;
  check(state_->core->base_allocation(toNumber(ptr), start, bytes));
  if (size != nullptr) {
    *size = bytes;
  }
  return toPointer(start);
}

void CachingAllocator::enablePeerAccess(DeviceIndex device, DeviceIndex device_to_access) {
  check(state_->core->enable_peer(device, device_to_access));
}

CudaStatus CachingAllocator::memcpyAsync(void* dst, int dst_device, const void* src, int,
                                         std::size_t count, cudaStream_t stream, bool) {
  check(state_->core->copy(dst_device, toNumber(dst), toNumber(src), count, toNumber(stream)));
  return 0;
}

PLUGALLOC_END_NAMESPACE
