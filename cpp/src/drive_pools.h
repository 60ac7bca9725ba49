// What Rust calls of pools: filters and sources of C++ callers, and the virtual methods for its own
// tests. Internal.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "plugalloc/plugalloc.h"
#include "rust/cxx.h"

namespace plugalloc {
namespace bridge {

struct AllocResult;
struct PoolKey;
struct RustFilter;

/// Whether an allocation on a stream goes to a pool, as a C++ caller says it.
struct StreamFilter {
  std::function<bool(cudaStream_t)> matches;
};

std::uint32_t filter_matches(const StreamFilter& filter, std::uint64_t stream, bool& out);
AllocResult segment_alloc(const CUDAAllocator& source, std::int32_t device, std::size_t bytes,
                          std::uint64_t stream);
std::uint32_t segment_free(const CUDAAllocator& source, std::int32_t device, std::uint64_t address);

std::uint32_t begin_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                         rust::Box<RustFilter> filter);
std::uint32_t end_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool);
std::uint32_t release_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool);
std::uint32_t pool_use_count(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                             std::int32_t& out);
std::uint32_t create_pool(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                          std::shared_ptr<CUDAAllocator> source);
std::uint32_t set_use_on_oom(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                             bool use_on_oom);
std::uint32_t set_no_split(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool);
std::uint32_t pool_holds_exactly(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                                 rust::Slice<const std::uint64_t> expected, bool& out);
std::uint32_t empty_pool(const CUDAAllocator& allocator, PoolKey pool);
std::uint32_t mark_capture(const CUDAAllocator& allocator, std::int32_t device, bool begin);

std::uint32_t get_checkpoint(const CUDAAllocator& allocator, std::int32_t device, PoolKey pool,
                             std::shared_ptr<AllocatorState>& out);
std::uint32_t set_checkpoint(const CUDAAllocator& allocator, std::int32_t device,
                             std::shared_ptr<AllocatorState> state,
                             std::unique_ptr<CheckpointDelta>& out);
rust::Vec<std::uint64_t> delta_freed(const CheckpointDelta& delta);
std::unique_ptr<DataPtr> delta_take(CheckpointDelta& delta);

}  // namespace bridge
}  // namespace plugalloc
