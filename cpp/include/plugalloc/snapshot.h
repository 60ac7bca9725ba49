/// @file
/// What an allocator shows of its inside: snapshots, traces, checkpoints and handles for other
/// processes. Field names are PyTorch's. All sizes are bytes, all addresses device addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "plugalloc/data_ptr.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// Where in the program something happened, as a framework records it. Derive from it. Contexts are
/// shared between threads, and destroyed on whichever thread frees memory, with locks of the
/// allocator held: a destructor must not call the allocator, nor wait for another thread.
struct PLUGALLOC_API GatheredContext {
  virtual ~GatheredContext();
};

/// Makes the context of the calling thread. Called without any lock of the allocator, but inside of
/// its calls: it must not call the allocator.
using CreateContextFn = std::shared_ptr<GatheredContext> (*)();

/// When contexts are gathered.
enum struct RecordContext {
  NEVER = 0,  ///< Not at all.
  STATE = 1,  ///< For what is live.
  ALLOC = 2,  ///< Also kept in the history.
  ALL = 3,    ///< Also at frees.
};

/// One block of a segment.
struct BlockInfo {
  std::size_t size = 0;            ///< As served.
  std::size_t requested_size = 0;  ///< As asked for.
  std::int32_t gc_counter = 0;     ///< Always 0: blocks have no age here.
  bool allocated = false;          ///< In use.
  bool active = false;             ///< In use, or freed and waiting for streams.
  std::shared_ptr<GatheredContext> context_when_allocated;  ///< May be null.
};

/// One piece of memory taken from the device, or one contiguous mapped range.
struct SegmentInfo {
  DeviceIndex device = 0;                                   ///< The device.
  std::size_t address = 0;                                  ///< Where it starts.
  std::size_t total_size = 0;                               ///< How long it is.
  std::size_t requested_size = 0;                           ///< Asked for by its active blocks.
  std::size_t allocated_size = 0;                           ///< In use.
  std::size_t active_size = 0;                              ///< In use or waiting for streams.
  cudaStream_t stream = nullptr;                            ///< The stream that it serves.
  bool is_large = false;                                    ///< For requests above 1 MiB.
  bool is_expandable = false;                               ///< Of virtual memory.
  MempoolId_t owner_private_pool_id{};                      ///< Its pool.
  std::int64_t registration_counter = 0;                    ///< Numbers the segments by age.
  std::vector<BlockInfo> blocks;                            ///< In order; they fill the segment.
  std::shared_ptr<GatheredContext> context_when_allocated;  ///< May be null.
};

/// One event of an allocator's history.
struct TraceEntry {
  /// What happened.
  enum Action {
    ALLOC,           ///< Memory was handed out.
    FREE_REQUESTED,  ///< The program freed it.
    FREE_COMPLETED,  ///< It can be reused.
    SEGMENT_ALLOC,   ///< A segment was taken from the device.
    SEGMENT_FREE,    ///< A segment is about to be given back.
    SEGMENT_MAP,     ///< Memory was mapped.
    SEGMENT_UNMAP,   ///< Memory was unmapped.
    SNAPSHOT,        ///< A snapshot was taken.
    OOM,             ///< A request failed for want of memory.
    USER_DEFINED,    ///< Whatever the program adds.
  };
  Action action_ = ALLOC;                     ///< What happened.
  DeviceIndex device_ = 0;                    ///< Where.
  std::size_t addr_ = 0;                      ///< The address; for OOM the device's free bytes.
  std::size_t size_ = 0;                      ///< Bytes.
  cudaStream_t stream_ = nullptr;             ///< The stream.
  MempoolId_t mempool_{};                     ///< The pool.
  std::uint64_t time_us_ = 0;                 ///< Microseconds since 1970.
  std::shared_ptr<GatheredContext> context_;  ///< May be null.
  std::string compile_context_;               ///< The innermost `pushCompileContext`.
  std::string user_metadata_;                 ///< The thread's `setUserMetadata`.
};

/// One mark of `recordAnnotation`.
struct AnnotationEntry {
  DeviceIndex device_ = 0;                                 ///< The device.
  std::uint64_t time_us_ = 0;                              ///< Microseconds since 1970.
  std::unordered_map<std::string, std::string> metadata_;  ///< What was passed.
};

/// The options in force.
struct AllocatorConfigInfo {
  double garbage_collection_threshold = 0;            ///< A share; 0: off.
  std::size_t max_split_size = 0;                     ///< Bytes; the largest number: no limit.
  bool expandable_segments = false;                   ///< Virtual memory in use.
  bool graph_capture_record_stream_reuse = false;     ///< As configured.
  std::string last_allocator_settings;                ///< The options as text, every key.
  std::vector<std::size_t> roundup_power2_divisions;  ///< By size class.
};

/// Everything at one moment.
struct SnapshotInfo {
  std::vector<SegmentInfo> segments;                   ///< Of all devices.
  std::vector<std::vector<TraceEntry>> device_traces;  ///< By device.
  std::vector<AnnotationEntry> external_annotations;   ///< In order of time.
  AllocatorConfigInfo config_metadata;                 ///< The options.
};

/// How `CachingAllocator::dumpSnapshot` writes. Both have PyTorch's structure.
enum class SnapshotFormat {
  Pickle,  ///< Protocol 2: for `torch/cuda/_memory_viz.py` and the web viewer.
  Json,    ///< The same as text.
};

/// Told when a request fails for want of memory, before the exception: device, how many bytes would
/// have been taken from it for the request (which may be fewer), the limit or the device's total,
/// the driver's free bytes. Called without any lock.
using OutOfMemoryObserver = std::function<void(std::int64_t device, std::size_t allocated,
                                               std::size_t device_total, std::size_t device_free)>;
/// Told when a request is refused at the limit before the driver is asked: device, bytes of the
/// request, bytes allocated, the device's total. Called without any lock.
using OomRejectionObserver = std::function<void(std::int64_t device, std::size_t requested,
                                                std::size_t allocated, std::size_t device_total)>;
/// Told of every event. Called under a lock of the allocator, which it must not call back: what it
/// allocates and frees there is refused (`UnsupportedError`), other calls may never return.
using AllocatorTraceTracker = std::function<void(const TraceEntry&)>;

/// A pool's allocations at one moment (`getCheckpointState`). Compile derived classes with run-time
/// type information: `setCheckpointPoolState` asks for the class.
struct PLUGALLOC_API AllocatorState {
  virtual ~AllocatorState();
};

/// What going back to a checkpoint changed.
struct CheckpointDelta {
  std::vector<void*> ptrs_freed;         ///< Was live before; not to be freed by who had it.
  std::vector<DataPtr> dataptrs_allocd;  ///< Is live now; the caller owns it. May be in both.
};

/// Memory as another process can open it.
struct ShareableHandle {
  std::ptrdiff_t offset = 0;  ///< Of the pointer inside what is shared, in bytes.
  std::string handle;         ///< Opaque bytes.
};

PLUGALLOC_END_NAMESPACE
