// What Rust calls of pools.
#include "drive_pools.h"

#include <unordered_set>
#include <utility>

#include "drive_guard.h"
#include "errors.h"

namespace plugalloc {
namespace bridge {

namespace {

CUDAAllocator& mutableOf(const CUDAAllocator& allocator) {
  return const_cast<CUDAAllocator&>(allocator);
}

MempoolId_t idOf(PoolKey pool) { return {pool.first, pool.second}; }

}  // namespace

std::uint32_t filter_matches(const StreamFilter& filter, std::uint64_t stream, bool& out) {
  return guarded([&] { out = filter.matches(toStream(stream)); });
}

AllocResult segment_alloc(const CUDAAllocator& source, std::int32_t device, std::size_t bytes,
                          std::uint64_t stream) {
  return guardedAlloc([&] {
    const DeviceGuard guard(device);
    return mutableOf(source).raw_alloc_with_stream(bytes, toStream(stream));
  });
}

std::uint32_t segment_free(const CUDAAllocator& source, std::int32_t device,
                           std::uint64_t address) {
  return guarded([&] {
    const DeviceGuard guard(device);
    mutableOf(source).raw_delete(toPointer(address));
  });
}

std::uint32_t begin_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                         rust::Box<RustFilter> filter) {
  return guarded([&] {
    // std::function wants what it holds to be copyable.
    const auto shared = std::make_shared<rust::Box<RustFilter>>(std::move(filter));
    mutableOf(allocator).beginAllocateToPool(toIndex(device), idOf(pool),
                                             [shared](cudaStream_t stream) {
                                               bool found = false;
                                               check((*shared)->matches(toNumber(stream), found));
                                               return found;
                                             });
  });
}

std::uint32_t end_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool) {
  return guarded([&] { mutableOf(allocator).endAllocateToPool(toIndex(device), idOf(pool)); });
}

std::uint32_t release_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool) {
  return guarded([&] { mutableOf(allocator).releasePool(toIndex(device), idOf(pool)); });
}

std::uint32_t pool_use_count(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                             std::int32_t& out) {
  return guarded([&] { out = mutableOf(allocator).getPoolUseCount(toIndex(device), idOf(pool)); });
}

std::uint32_t create_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                          std::shared_ptr<CUDAAllocator> source) {
  return guarded([&] {
    mutableOf(allocator).createOrIncrefPool(toIndex(device), idOf(pool), std::move(source));
  });
}

std::uint32_t set_use_on_oom(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                             bool use_on_oom) {
  return guarded(
      [&] { mutableOf(allocator).setUseOnOOM(toIndex(device), idOf(pool), use_on_oom); });
}

std::uint32_t set_no_split(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool) {
  return guarded([&] { mutableOf(allocator).setNoSplit(toIndex(device), idOf(pool)); });
}

std::uint32_t pool_holds_exactly(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                                 rust::Slice<const std::uint64_t> expected, bool& out) {
  return guarded([&] {
    std::unordered_set<void*> pointers;
    for (const std::uint64_t address : expected) {
      pointers.insert(toPointer(address));
    }
    out = mutableOf(allocator).checkPoolLiveAllocations(toIndex(device), idOf(pool), pointers);
  });
}

std::uint32_t empty_pool(const CUDAAllocator& allocator, PoolKey pool) {
  return guarded([&] { mutableOf(allocator).emptyCache(idOf(pool)); });
}

std::uint32_t mark_capture(const CUDAAllocator& allocator, std::int32_t device, bool begin) {
  return guarded([&] {
    CUDAAllocator& target = mutableOf(allocator);
    begin ? target.markCaptureBegin(toIndex(device)) : target.markCaptureEnd(toIndex(device));
  });
}

std::uint32_t get_checkpoint(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                             std::shared_ptr<AllocatorState>& out) {
  return guarded(
      [&] { out = mutableOf(allocator).getCheckpointState(toIndex(device), idOf(pool)); });
}

std::uint32_t set_checkpoint(const CUDAAllocator& allocator, std::int32_t device,
                             std::shared_ptr<AllocatorState> state,
                             std::unique_ptr<CheckpointDelta>& out) {
  return guarded([&] {
    out = std::make_unique<CheckpointDelta>(
        mutableOf(allocator).setCheckpointPoolState(toIndex(device), std::move(state)));
  });
}

rust::Vec<std::uint64_t> delta_freed(const CheckpointDelta& delta) {
  rust::Vec<std::uint64_t> freed;
  for (const void* const pointer : delta.ptrs_freed) {
    freed.push_back(toNumber(pointer));
  }
  return freed;
}

std::unique_ptr<DataPtr> delta_take(CheckpointDelta& delta) {
  if (delta.dataptrs_allocd.empty()) {
    return nullptr;
  }
  auto taken = std::make_unique<DataPtr>(std::move(delta.dataptrs_allocd.back()));
  delta.dataptrs_allocd.pop_back();
  return taken;
}

}  // namespace bridge
}  // namespace plugalloc
