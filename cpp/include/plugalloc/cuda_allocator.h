/// @file
/// The abstract allocator: what a program holds, and what it may implement. Standard library only.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "plugalloc/device_allocator.h"
#include "plugalloc/snapshot.h"

PLUGALLOC_BEGIN_NAMESPACE

/// An allocator of CUDA memory, with the names, arguments and meaning of PyTorch's
/// `c10::cuda::CUDACachingAllocator::CUDAAllocator`.
///
/// Threads, errors: as for `DeviceAllocator`. Memory is stream-ordered: it may be used at once by
/// work queued on the stream it was allocated on, and it may be freed while such work is queued.
/// Work on any other stream is announced with `recordStream` before the memory is freed.
///
/// Methods that are not pure throw `UnsupportedError` unless their text says otherwise; an
/// allocator overrides those that it has. Compile derived classes with run-time type information
/// (not with -fno-rtti): `DeviceStream` asks an allocator for its class.
class PLUGALLOC_API CUDAAllocator : public DeviceAllocator {
 public:
  ~CUDAAllocator() override;

  /// @name Bare pointers
  /// @{

  /// Allocates `nbytes` on the current device for use on its current stream; 0 bytes: null. The
  /// caller frees it with `raw_delete`, on any thread.
  /// @throws OutOfMemoryError if it does not fit, InvalidDeviceError for an unknown device.
  [[nodiscard]] virtual void* raw_alloc(std::size_t nbytes) = 0;
  /// The same on the current device for use on `stream`, which must live until the memory is freed.
  [[nodiscard]] virtual void* raw_alloc_with_stream(std::size_t nbytes, cudaStream_t stream) = 0;
  /// Frees a pointer of this allocator. Null is ignored. Does not wait for queued work.
  /// @throws InvalidPointerError if it is not the start of a live allocation of this allocator.
  virtual void raw_delete(void* ptr) = 0;
  /// Allocates `nbytes` at the address `addr`, if it is free.
  [[nodiscard]] virtual void* allocateWithAddress(std::size_t nbytes, void* addr);
  /// @}

  /// @name Set-up
  /// @{

  /// Makes the allocator ready for devices 0 to `device_count` - 1. Idempotent; later allocations
  /// work without it too.
  virtual void init(int device_count) = 0;
  /// The most that may be taken from a device, as a share of its memory; 1 where not limited.
  [[nodiscard]] virtual double getMemoryFraction(DeviceIndex device) = 0;
  /// Limits what is taken from a device; 1 removes the limit. Memory taken already stays.
  /// @throws InvalidArgumentError for a fraction outside [0, 1], InvalidDeviceError.
  virtual void setMemoryFraction(double fraction, DeviceIndex device) = 0;
  /// Turns caching on or off. While off, every allocation is the device's own.
  virtual void enable(bool value) = 0;
  /// Whether caching is on.
  [[nodiscard]] virtual bool isEnabled() const = 0;
  /// @}

  /// @name Looking inside
  /// @{

  /// Raises `*largest_block` to the largest block, in bytes, that can be had at once: where it is 0
  /// it is first set to the driver's free bytes, then raised to the largest cached block.
  virtual void cacheInfo(DeviceIndex device, std::size_t* largest_block) = 0;
  /// The start of the segment around `ptr`; its bytes go to `*size`, if that is not null.
  /// @throws InvalidPointerError if it is in no memory of this allocator.
  virtual void* getBaseAllocation(void* ptr, std::size_t* size) = 0;
  /// What is mapped by stream and kind of pool, in growable segments of `device`.
  [[nodiscard]] virtual std::vector<StreamSegmentSize> getExpandableSegmentSizes(
      DeviceIndex device);
  /// Everything at this moment; `{0, 0}`: of all pools. Expensive, and stops other threads.
  [[nodiscard]] virtual SnapshotInfo snapshot(MempoolId_t mempool_id = {0, 0},
                                              bool include_traces = true);
  /// The context that was gathered when `ptr` was allocated; null (the default) if none was.
  [[nodiscard]] virtual std::shared_ptr<GatheredContext> getContextForPointer(const void* ptr);
  /// @}

  /// @name Pools and graph capture
  /// @{

  /// Sends allocations on streams for which `filter` is true to the pool, until
  /// `endAllocateToPool`. The filter is called under a lock: it must not call the allocator.
  virtual void beginAllocateToPool(DeviceIndex device, MempoolId_t mempool_id,
                                   std::function<bool(cudaStream_t)> filter);
  /// Ends what `beginAllocateToPool` began.
  virtual void endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id);
  /// Gives one use of the pool up; with the last its memory can go back.
  virtual void releasePool(DeviceIndex device, MempoolId_t mempool_id);
  /// How many users the pool has.
  [[nodiscard]] virtual int getPoolUseCount(DeviceIndex device, MempoolId_t mempool_id);
  /// Makes a pool with one use, or adds a use. `allocator`, if not null, is where a new pool takes
  /// its segments from; it is kept until the last of them is gone.
  virtual void createOrIncrefPool(DeviceIndex device, MempoolId_t mempool_id,
                                  std::shared_ptr<CUDAAllocator> allocator = nullptr);
  /// Whether requests that would fail may be served from this pool.
  virtual void setUseOnOOM(DeviceIndex device, MempoolId_t mempool_id, bool use_on_oom);
  /// Makes the pool serve each request with a segment of its own.
  virtual void setNoSplit(DeviceIndex device, MempoolId_t mempool_id);
  /// True where the pool's live allocations are exactly these.
  [[nodiscard]] virtual bool checkPoolLiveAllocations(
      DeviceIndex device, MempoolId_t mempool_id,
      const std::unordered_set<void*>& expected_live_allocations);
  /// Tells that a graph capture begins on the device. Does nothing by default.
  virtual void markCaptureBegin(DeviceIndex device);
  /// Tells that a graph capture has ended. Does nothing by default.
  virtual void markCaptureEnd(DeviceIndex device);
  /// What is live in a private pool that is in use, to go back to.
  [[nodiscard]] virtual std::shared_ptr<AllocatorState> getCheckpointState(DeviceIndex device,
                                                                           MempoolId_t id);
  /// Brings a pool back to a state: frees all that is live in it, and makes live again what was
  /// live then, at the same addresses. Work that is queued must not need what is freed.
  virtual CheckpointDelta setCheckpointPoolState(DeviceIndex device,
                                                 std::shared_ptr<AllocatorState> state);
  /// @}

  /// @name Other processes, other devices
  /// @{

  /// A handle with which another process opens the memory around `ptr`. The memory stays in place.
  [[nodiscard]] virtual ShareableHandle shareIpcHandle(void* ptr);
  /// Opens another process's memory; the last owner of the result closes it.
  [[nodiscard]] virtual std::shared_ptr<void> getIpcDevPtr(std::string handle);
  /// Lets `device` reach the memory of `device_to_access`, present and future. Twice is fine.
  virtual void enablePeerAccess(DeviceIndex device, DeviceIndex device_to_access);
  /// Queues a copy of `count` bytes between devices on `stream`. 0 on success. `p2p_enabled` says
  /// whether peers were enabled for each other.
  virtual CudaStatus memcpyAsync(void* dst, int dst_device, const void* src, int src_device,
                                 std::size_t count, cudaStream_t stream, bool p2p_enabled);
  /// @}

  /// @name History
  /// @{

  /// Whether events are being recorded on the current device; false by default.
  [[nodiscard]] virtual bool isHistoryEnabled();
  /// Begins or ends recording: `context_recorder` (needed unless `when` is NEVER) gathers contexts,
  /// at most `max_entries` events are kept, those named in `skip_actions` are left out.
  virtual void recordHistory(bool enabled, CreateContextFn context_recorder,
                             std::size_t max_entries, RecordContext when, bool clearHistory,
                             const std::vector<std::string>& skip_actions);
  /// Adds a mark to the history. Does nothing by default, and without a history.
  virtual void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& metadata);
  /// Names what this thread compiles, for its events from now on. Does nothing by default.
  virtual void pushCompileContext(std::string& metadata);
  /// Ends the innermost `pushCompileContext`. Does nothing by default.
  virtual void popCompileContext();
  /// Whether `setUserMetadata` has an effect; false by default.
  [[nodiscard]] virtual bool supportsUserMetadata() const;
  /// Text for this thread's events from now on. Does nothing by default.
  virtual void setUserMetadata(const std::string& metadata);
  /// The text that was set; empty by default.
  [[nodiscard]] virtual std::string getUserMetadata();
  /// Adds an observer, for the life of the allocator.
  virtual void attachOutOfMemoryObserver(OutOfMemoryObserver observer);
  /// Adds an observer, for the life of the allocator.
  virtual void attachOomRejectionObserver(OomRejectionObserver observer);
  /// Adds a tracker, for the life of the allocator. What it calls of the allocator is refused
  /// (`UnsupportedError`), since locks are held meanwhile; `getContextForPointer` gives null there.
  virtual void attachAllocatorTraceTracker(AllocatorTraceTracker tracker);
  /// @}

 protected:
  CUDAAllocator() = default;
};

PLUGALLOC_END_NAMESPACE
