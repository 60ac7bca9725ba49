// What Rust calls, so that its tests and tools go through the C++ objects and their virtual methods
// as a C++ program does. Each function returns a status; the exception waits in the thread as data.
// Internal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "plugalloc/plugalloc.h"
#include "rust/cxx.h"

namespace plugalloc {
namespace bridge {

struct AllocResult;
struct CachingCore;
struct ErrorRecord;
struct SourceFns;
struct StatsRecord;

ErrorRecord take_driven_error();
std::uint32_t make_caching(rust::Box<CachingCore> core, std::shared_ptr<CUDAAllocator>& out);
std::uint32_t make_pluggable(rust::Box<SourceFns> source, std::shared_ptr<CUDAAllocator>& out);
std::uint32_t get_current(std::shared_ptr<CUDAAllocator>& out);
std::uint32_t change_current(const std::shared_ptr<CUDAAllocator>& allocator);
std::uint32_t set_current_device(std::int32_t device);
std::uint32_t set_current_stream(std::uint64_t stream, std::int32_t device);

// The methods are not const and Rust's handles are shared: the allocator is taken as const here,
// since it is thread-safe, and each function casts that away.
AllocResult raw_alloc(const CUDAAllocator& allocator, std::size_t bytes);
AllocResult raw_alloc_with_stream(const CUDAAllocator& allocator, std::size_t bytes,
                                  std::uint64_t stream);
std::uint32_t raw_delete(const CUDAAllocator& allocator, std::uint64_t address);
std::uint64_t raw_deleter(const CUDAAllocator& allocator);
std::uint32_t call_raw_deleter(const CUDAAllocator& allocator, std::uint64_t address);
std::uint32_t allocate(const CUDAAllocator& allocator, std::size_t bytes,
                       std::unique_ptr<DataPtr>& out);
std::uint64_t data_address(const DataPtr& data);
std::uint64_t data_context(const DataPtr& data);
std::uint64_t data_deleter(const DataPtr& data);
std::int32_t data_device(const DataPtr& data);
std::uint64_t data_release(DataPtr& data);

rust::String name(const CUDAAllocator& allocator);
std::uint32_t init(const CUDAAllocator& allocator, std::int32_t device_count);
bool initialized(const CUDAAllocator& allocator);
std::uint32_t record_stream(const CUDAAllocator& allocator, const DataPtr& data,
                            std::uint64_t stream);
std::uint32_t empty_cache(const CUDAAllocator& allocator);
std::uint32_t set_fraction(const CUDAAllocator& allocator, double fraction, std::int32_t device);
std::uint32_t fraction(const CUDAAllocator& allocator, std::int32_t device, double& out);
std::uint32_t enable(const CUDAAllocator& allocator, bool value);
bool is_enabled(const CUDAAllocator& allocator);
std::uint32_t cache_info(const CUDAAllocator& allocator, std::int32_t device, std::size_t& largest);
std::uint32_t base_allocation(const CUDAAllocator& allocator, std::uint64_t address,
                              std::uint64_t& start, std::size_t& bytes);
std::uint32_t memory_info(const CUDAAllocator& allocator, std::int32_t device, std::size_t& free,
                          std::size_t& total);
std::uint32_t statistics(const CUDAAllocator& allocator, std::int32_t device, StatsRecord& out);
std::uint32_t reset_peaks(const CUDAAllocator& allocator, std::int32_t device);
std::uint32_t reset_accumulated(const CUDAAllocator& allocator, std::int32_t device);
std::uint32_t retire_stream(const CUDAAllocator& allocator, std::int32_t device,
                            std::uint64_t stream);
std::uint32_t copy_data(const CUDAAllocator& allocator, std::uint64_t to, std::uint64_t from,
                        std::size_t bytes);
std::uint32_t snapshot_segments(const CUDAAllocator& allocator, std::size_t& out);

}  // namespace bridge
}  // namespace plugalloc
