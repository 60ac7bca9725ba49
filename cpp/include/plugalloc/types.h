/// @file
/// Handles, identifiers and statistics. Plain values: copying them is thread-safe and never fails.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "plugalloc/export.h"

/// CUDA's stream handle, declared as CUDA's own headers declare it, so that both can be included.
struct CUstream_st;
using cudaStream_t = CUstream_st*;

PLUGALLOC_BEGIN_NAMESPACE

/// The index of a device, from zero, as CUDA counts them. It is a signed byte, as in PyTorch: cast
/// to `int` before printing it.
using DeviceIndex = std::int8_t;

/// One graph capture.
using CaptureId_t = unsigned long long;

/// A memory pool: `{0, 0}` is the default pool, `{n, 0}` is made by a graph capture, `{0, n}` by a
/// user.
using MempoolId_t = std::pair<CaptureId_t, CaptureId_t>;

/// A status as CUDA's runtime numbers them (`cudaError_t`): 0 is success. The type is `int`, since
/// CUDA's own enumeration cannot be declared without CUDA's headers.
using CudaStatus = int;

/// One quantity over time. Units are those of the field that holds it: bytes or a count.
struct Stat {
  std::int64_t current = 0;    ///< Now.
  std::int64_t peak = 0;       ///< The most since the last `resetPeakStats`.
  std::int64_t allocated = 0;  ///< All increases since the last `resetAccumulatedStats`.
  std::int64_t freed = 0;      ///< All decreases since the last `resetAccumulatedStats`.
};

/// The places of a `StatArray`.
enum class StatType : std::uint64_t {
  AGGREGATE = 0,   ///< Everything.
  SMALL_POOL = 1,  ///< Requests of at most 1 MiB.
  LARGE_POOL = 2,  ///< Larger requests.
  NUM_TYPES = 3,   ///< How many places there are.
};

/// One quantity, in all and by the size of the requests; index it with a cast `StatType`.
using StatArray = std::array<Stat, static_cast<std::size_t>(StatType::NUM_TYPES)>;

/// The statistics of one device, under PyTorch's names. Names that end in `_bytes` count bytes.
/// Where threads are at work at the same time, a peak may be higher than the truth, usually by some
/// percent: it is an upper bound then. Otherwise it is exact.
struct DeviceStats {
  StatArray allocation;            ///< Live allocations.
  StatArray segment;               ///< Whole segments; virtual memory is not counted.
  StatArray active;                ///< Blocks allocated, or freed and waiting for other streams.
  StatArray inactive_split;        ///< Free blocks inside segments that were split.
  StatArray allocated_bytes;       ///< Of live allocations, rounded as they are served.
  StatArray reserved_bytes;        ///< Taken from the device.
  StatArray active_bytes;          ///< Of active blocks.
  StatArray inactive_split_bytes;  ///< Of inactive split blocks.
  StatArray requested_bytes;       ///< Asked for by the blocks that are active.

  Stat oversize_allocations;  ///< Live allocations of `max_split_size` or more.
  Stat oversize_segments;     ///< Segments of `max_split_size` or more.

  std::int64_t num_alloc_retries = 0;     ///< Requests decided only after memory was reclaimed.
  std::int64_t num_ooms = 0;              ///< Out-of-memory errors.
  std::int64_t num_sync_all_streams = 0;  ///< Times that every pending free was waited for.
  std::int64_t num_device_alloc = 0;      ///< Times that memory was taken from the device.
  std::int64_t num_device_free = 0;       ///< Times that memory was given back to the device.
  std::int64_t max_split_size = -1;       ///< In bytes; -1: no limit.
};

/// What one stream holds mapped in growable segments of one pool (`getExpandableSegmentSizes`).
struct StreamSegmentSize {
  cudaStream_t stream = nullptr;  ///< The stream.
  bool is_small_pool = false;     ///< Whether these segments serve requests of at most 1 MiB.
  std::size_t total_size = 0;     ///< Mapped, in bytes.
};

PLUGALLOC_END_NAMESPACE
