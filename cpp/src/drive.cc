// What Rust calls: one virtual call each, and exceptions turned into data.
#include "drive.h"

#include <exception>
#include <string>
#include <tuple>
#include <utility>

#include "caching_state.h"
#include "drive_guard.h"
#include "errors.h"
#include "handles.h"
#include "plugalloc/src/ffi/bridge.rs.h"
#include "statistics.h"

namespace plugalloc {
namespace bridge {

namespace {

thread_local std::exception_ptr driven_error;

CUDAAllocator& mutableOf(const CUDAAllocator& allocator) {
  return const_cast<CUDAAllocator&>(allocator);
}

std::uint64_t addressOf(DeleterFnPtr deleter) {
  return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(deleter));
}

}  // namespace

void keepDrivenError() noexcept { driven_error = std::current_exception(); }

DeviceIndex toIndex(std::int32_t device) {
  if (device < -128 || device > 127) {
    throwInvalidArgument("device", std::to_string(device), "a device from 0 to 127");
  }
  return static_cast<DeviceIndex>(device);
}

ErrorRecord take_driven_error() {
  try {
    if (driven_error == nullptr) {
      throw InternalError("a call failed without leaving an error", "driven error", "");
    }
    std::rethrow_exception(std::exchange(driven_error, nullptr));
  } catch (...) {
    return recordOfCurrentException();
  }
}

std::uint32_t make_caching(rust::Box<CachingCore> core, std::shared_ptr<CUDAAllocator>& out) {
  return guarded([&] {
    out = std::make_shared<CachingAllocator>(
        std::make_shared<CachingAllocator::State>(std::move(core)));
  });
}

std::uint32_t make_pluggable(rust::Box<SourceFns> source, std::shared_ptr<CUDAAllocator>& out) {
  return guarded([&] {
    // std::function wants what it holds to be copyable.
    const auto shared = std::make_shared<rust::Box<SourceFns>>(std::move(source));
    out = createCustomAllocator(
        [shared](std::size_t size, int device, cudaStream_t stream) {
          const AllocResult result = (*shared)->alloc(size, device, toNumber(stream));
          check(result.status);
          return toPointer(result.address);
        },
        [shared](void* ptr, std::size_t size, int device, cudaStream_t stream) {
          check((*shared)->free(toNumber(ptr), size, device, toNumber(stream)));
        });
  });
}

std::uint32_t get_current(std::shared_ptr<CUDAAllocator>& out) {
  return guarded([&] { out = getCurrentAllocator(); });
}
std::uint32_t change_current(const std::shared_ptr<CUDAAllocator>& allocator) {
  return guarded([&] { changeCurrentAllocator(allocator); });
}
std::uint32_t set_current_device(std::int32_t device) {
  return guarded([&] { setCurrentDevice(device); });
}
std::uint32_t set_current_stream(std::uint64_t stream, std::int32_t device) {
  return guarded([&] { setCurrentStream(toStream(stream), device); });
}

AllocResult raw_alloc(const CUDAAllocator& allocator, std::size_t bytes) {
  return guardedAlloc([&] { return mutableOf(allocator).raw_alloc(bytes); });
}
AllocResult raw_alloc_with_stream(const CUDAAllocator& allocator, std::size_t bytes,
                                  std::uint64_t stream) {
  return guardedAlloc(
      [&] { return mutableOf(allocator).raw_alloc_with_stream(bytes, toStream(stream)); });
}
std::uint32_t raw_delete(const CUDAAllocator& allocator, std::uint64_t address) {
  return guarded([&] { mutableOf(allocator).raw_delete(toPointer(address)); });
}
std::uint64_t raw_deleter(const CUDAAllocator& allocator) {
  return addressOf(allocator.raw_deleter());
}
std::uint32_t call_raw_deleter(const CUDAAllocator& allocator, std::uint64_t address) {
  return guarded([&] { mutableOf(allocator).raw_deallocate(toPointer(address)); });
}
std::uint32_t allocate(const CUDAAllocator& allocator, std::size_t bytes,
                       std::unique_ptr<DataPtr>& out) {
  return guarded([&] { out = std::make_unique<DataPtr>(mutableOf(allocator).allocate(bytes)); });
}

std::uint64_t data_address(const DataPtr& data) { return toNumber(data.get()); }
std::uint64_t data_context(const DataPtr& data) { return toNumber(data.get_context()); }
std::uint64_t data_deleter(const DataPtr& data) { return addressOf(data.get_deleter()); }
std::int32_t data_device(const DataPtr& data) { return data.device().index; }
std::uint64_t data_release(DataPtr& data) { return toNumber(data.release_context()); }

rust::String name(const CUDAAllocator& allocator) { return toRust(allocator.name()); }
std::uint32_t init(const CUDAAllocator& allocator, std::int32_t device_count) {
  return guarded([&] { mutableOf(allocator).init(device_count); });
}
bool initialized(const CUDAAllocator& allocator) { return mutableOf(allocator).initialized(); }
std::uint32_t record_stream(const CUDAAllocator& allocator, const DataPtr& data,
                            std::uint64_t stream) {
  return guarded([&] { mutableOf(allocator).recordStream(data, toStream(stream)); });
}
std::uint32_t empty_cache(const CUDAAllocator& allocator) {
  return guarded([&] { mutableOf(allocator).emptyCache(); });
}
std::uint32_t set_fraction(const CUDAAllocator& allocator, double fraction, std::int32_t device) {
  return guarded([&] { mutableOf(allocator).setMemoryFraction(fraction, toIndex(device)); });
}
std::uint32_t fraction(const CUDAAllocator& allocator, std::int32_t device, double& out) {
  return guarded([&] { out = mutableOf(allocator).getMemoryFraction(toIndex(device)); });
}
std::uint32_t enable(const CUDAAllocator& allocator, bool value) {
  return guarded([&] { mutableOf(allocator).enable(value); });
}
bool is_enabled(const CUDAAllocator& allocator) { return allocator.isEnabled(); }
std::uint32_t cache_info(const CUDAAllocator& allocator, std::int32_t device,
                         std::size_t& largest) {
  return guarded([&] { mutableOf(allocator).cacheInfo(toIndex(device), &largest); });
}
std::uint32_t base_allocation(const CUDAAllocator& allocator, std::uint64_t address,
                              std::uint64_t& start, std::size_t& bytes) {
  return guarded([&] {
    start = toNumber(mutableOf(allocator).getBaseAllocation(toPointer(address), &bytes));
  });
}
std::uint32_t memory_info(const CUDAAllocator& allocator, std::int32_t device, std::size_t& free,
                          std::size_t& total) {
  return guarded(
      [&] { std::tie(free, total) = mutableOf(allocator).getMemoryInfo(toIndex(device)); });
}
std::uint32_t statistics(const CUDAAllocator& allocator, std::int32_t device, StatsRecord& out) {
  return guarded([&] { out = toRecord(mutableOf(allocator).getDeviceStats(toIndex(device))); });
}
std::uint32_t reset_peaks(const CUDAAllocator& allocator, std::int32_t device) {
  return guarded([&] { mutableOf(allocator).resetPeakStats(toIndex(device)); });
}
std::uint32_t reset_accumulated(const CUDAAllocator& allocator, std::int32_t device) {
  return guarded([&] { mutableOf(allocator).resetAccumulatedStats(toIndex(device)); });
}
std::uint32_t retire_stream(const CUDAAllocator& allocator, std::int32_t device,
                            std::uint64_t stream) {
  return guarded([&] {
    dynamic_cast<CachingAllocator&>(mutableOf(allocator))
        .retireStream(toIndex(device), toStream(stream));
  });
}
std::uint32_t copy_data(const CUDAAllocator& allocator, std::uint64_t to, std::uint64_t from,
                        std::size_t bytes) {
  return guarded([&] { allocator.copy_data(toPointer(to), toPointer(from), bytes); });
}
std::uint32_t snapshot_segments(const CUDAAllocator& allocator, std::size_t& out) {
  return guarded([&] { out = mutableOf(allocator).snapshot().segments.size(); });
}

}  // namespace bridge
}  // namespace plugalloc
