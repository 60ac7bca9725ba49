/// @file
/// The caching allocator: plugalloc's engine over CUDA or the simulator.
#pragma once

#include <cstddef>
#include <functional>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "plugalloc/cuda_allocator.h"
#include "plugalloc/memory_pin.h"

PLUGALLOC_BEGIN_NAMESPACE

/// `CUDAAllocator` over the engine. Make it with `createCachingAllocator` (plugalloc.h).
///
/// An allocator that dies while some of its allocations live keeps its engine: they stay usable and
/// can be given back with `raw_deleter()`, and the engine's memory stays with the process. So does
/// that of one that dies while the last of them is being given back on another thread. One that
/// dies without any gives everything back. At process exit memory is abandoned, not freed. No
/// method may run while the allocator is being destroyed; deleters may.
class PLUGALLOC_API CachingAllocator final : public CUDAAllocator {
 public:
  struct State;
  /// Takes the engine over; made only inside the library.
  explicit CachingAllocator(std::shared_ptr<State> state);
  ~CachingAllocator() override;

  [[nodiscard]] const char* name() const noexcept override;

  [[nodiscard]] DataPtr allocate(std::size_t nbytes) override;
  [[nodiscard]] DeleterFnPtr raw_deleter() const override;
  /// Waits for the current stream only.
  void copy_data(void* dest, const void* src, std::size_t count) const override;
  [[nodiscard]] void* raw_alloc(std::size_t nbytes) override;
  [[nodiscard]] void* raw_alloc_with_stream(std::size_t nbytes, cudaStream_t stream) override;
  void raw_delete(void* ptr) override;

  /// True after `init` or the first allocation.
  [[nodiscard]] bool initialized() override;
  /// Marks the allocator as in use; its devices were settled when it was made.
  /// @throws InvalidArgumentError for a number below 0.
  void init(int device_count) override;
  /// A pool that is in use keeps what it has. While a capture may be under way nothing is given
  /// back. May wait for the device. As in PyTorch, a pool that is not there has nothing to give
  /// back: one that was released is gone with the last of its memory.
  void emptyCache(MempoolId_t mempool_id = {0, 0}) override;
  /// @throws InvalidPointerError if the memory has been freed.
  void recordStream(const DataPtr& pointer, cudaStream_t stream) override;
  [[nodiscard]] std::pair<std::size_t, std::size_t> getMemoryInfo(DeviceIndex device) override;
  [[nodiscard]] DeviceStats getDeviceStats(DeviceIndex device) override;
  void resetAccumulatedStats(DeviceIndex device) override;
  void resetPeakStats(DeviceIndex device) override;

  [[nodiscard]] double getMemoryFraction(DeviceIndex device) override;
  void setMemoryFraction(double fraction, DeviceIndex device) override;
  void enable(bool value) override;
  [[nodiscard]] bool isEnabled() const override;
  /// @throws InvalidArgumentError for null, InvalidDeviceError.
  void cacheInfo(DeviceIndex device, std::size_t* largest_block) override;
  /// Of memory that is cached, too: nothing needs to live at `ptr`.
  void* getBaseAllocation(void* ptr, std::size_t* size) override;

  /// @name Pools
  /// A pool is in use until it was released as often as it was created and begun. Until then its
  /// memory stays where it is, idle or not, and serves the pool's own streams alone.
  ///
  /// @throws InvalidDeviceError, and InvalidArgumentError about a pool that is not in the state
  /// that the method needs.
  /// @{

  /// Makes the pool if need be, and adds a use. The pool that was begun last is asked first. Where
  /// pools ended that graphs used, or 64 others, the device is waited for, so that this one can
  /// have their memory. `filter` is called from every thread that allocates, several at a time.
  /// Where it throws the allocation fails: with the same error if it is of a kind of error.h, else
  /// with a `CallbackError` that has its text. While a pool is open and one of its streams is
  /// being captured, or none has allocated yet, no event of the device is asked and nothing is
  /// given back.
  void beginAllocateToPool(DeviceIndex device, MempoolId_t mempool_id,
                           std::function<bool(cudaStream_t)> filter) override;
  /// The use that `beginAllocateToPool` added stays until `releasePool`.
  void endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id) override;
  /// With the last use the pool's memory serves others: at once, or, if the pool was used in a
  /// capture, when the device has been waited for, which is put off until memory is short, the
  /// cache is emptied, or another pool is begun. Its graphs may still run, but are not launched any
  /// more. What is live stays so.
  void releasePool(DeviceIndex device, MempoolId_t mempool_id) override;
  /// 0 where there is no such pool.
  [[nodiscard]] int getPoolUseCount(DeviceIndex device, MempoolId_t mempool_id) override;
  /// `allocator` gives the pool whole segments (`raw_alloc_with_stream` on `device`, in multiples
  /// of 2 MiB), which the pool divides and caches; null from it means that it has no memory, and
  /// what it throws is treated as what a filter throws. Its segments must be aligned to 2 MiB. It
  /// is called with locks held: it must not call this allocator.
  void createOrIncrefPool(DeviceIndex device, MempoolId_t mempool_id,
                          std::shared_ptr<CUDAAllocator> allocator = nullptr) override;
  /// Off is no error for a pool that is not there.
  void setUseOnOOM(DeviceIndex device, MempoolId_t mempool_id, bool use_on_oom) override;
  /// A segment is 2 MiB for requests up to 1 MiB, `large_segment_size_mb` below 10 MiB, else the
  /// next multiple of 2 MiB. Such allocations count as large in the statistics.
  void setNoSplit(DeviceIndex device, MempoolId_t mempool_id) override;
  [[nodiscard]] bool checkPoolLiveAllocations(
      DeviceIndex device, MempoolId_t mempool_id,
      const std::unordered_set<void*>& expected_live_allocations) override;
  /// For captures without a pool, or whose stream has not allocated yet: until as many have ended,
  /// no event of the device is asked and nothing is given back.
  void markCaptureBegin(DeviceIndex device) override;
  /// @throws InvalidArgumentError where as many have ended as were marked to begin.
  void markCaptureEnd(DeviceIndex device) override;
  /// Holds addresses and sizes alone, and keeps nothing alive. What was freed and waits for other
  /// streams is not live.
  [[nodiscard]] std::shared_ptr<AllocatorState> getCheckpointState(DeviceIndex device,
                                                                   MempoolId_t id) override;
  /// What is live before and afterwards at the same address with the same served size keeps its
  /// contents and the streams, pins and exports that it has; the rest of what is live ends as by
  /// `raw_delete`. Of what is allocated again the contents are whatever is in the memory; streams
  /// of its device that were recorded for it by the time of the checkpoint are recorded again.
  ///
  /// Nothing is waited for and nothing ordered: the caller guarantees that no queued work, and no
  /// graph launched later, needs what is freed. Every claim to an allocation of the pool ends: take
  /// it out of `DataPtr`s that hold it first (`compare_exchange_deleter`, `release_context`). Other
  /// pools stay as they are. Other threads' calls come before or after it as a whole.
  /// @throws CheckpointError, whose `fault` tells why the pool cannot be brought back, and
  /// InvalidArgumentError for null and for a state of another class; then nothing has changed.
  CheckpointDelta setCheckpointPoolState(DeviceIndex device,
                                         std::shared_ptr<AllocatorState> state) override;
  /// @}

  /// @name Streams that end
  /// Not in PyTorch's interface: cast to `CachingAllocator` for it.
  /// @{

  /// Says that `stream` of `device` is about to be destroyed; it must exist still. The allocator
  /// keeps memory of a stream, and asks the driver about it, long after the last call that names
  /// it, and a driver may fault at the name of a stream that is gone: call this before
  /// cudaStreamDestroy for each stream that allocated or was recorded. `DeviceStream` does so by
  /// itself. What is live stays so, and what is free serves other streams once the work queued so
  /// far has run. A stream that is made later under the same name is a new one.
  /// @throws InvalidDeviceError, and DeviceError if the stream is being captured, or if the device
  /// refuses.
  void retireStream(DeviceIndex device, cudaStream_t stream);
  /// @}

  /// @name Memory in place
  /// Not in PyTorch's interface: cast to `CachingAllocator` for them.
  /// @{

  /// Keeps the physical memory under the live allocation around `ptr` where it is: it is neither
  /// moved, nor divided, nor given back until `unpinMemory`, even when the allocation is freed
  /// before. The memory goes on serving its stream. An allocation can be pinned more than once.
  /// @throws InvalidPointerError if nothing is live there, UnsupportedError for an allocation that
  /// was made with caching off.
  [[nodiscard]] MemoryPin pinMemory(void* ptr);
  /// Ends a pin.
  /// @throws InvalidArgumentError if it has ended already, or never was.
  void unpinMemory(const MemoryPin& pin);

  /// Calls `observer` for all memory that is there, and from then on whenever memory has appeared,
  /// before the request returns that it was made for, or is about to disappear, before it is
  /// unmapped: in the same spans. What was about to disappear and is used again is told as having
  /// appeared. Memory that moves between heaps stays mapped where it was until it is given back.
  ///
  /// It is called on the thread that allocates, frees or empties the cache, for one event at a
  /// time, with no lock of the allocator held. It may call any method of the allocator; memory that
  /// would disappear by such a call does so later. It must not wait for another thread that calls
  /// the allocator. What it throws goes to the handler of `setDeleterErrorHandler`.
  /// @return its number, for `unobserveMappings`.
  /// @throws InvalidArgumentError for an empty function.
  std::uint64_t observeMappings(MappingObserver observer);
  /// Removes an observer, which is not called any more afterwards; false if it is not there.
  bool unobserveMappings(std::uint64_t number);
  /// @}

  /// Shares the memory under the live allocation around `ptr`, which stays in place until the
  /// allocation is freed; the others close it before that. The handle begins with "plug", a version
  /// byte (1) and a letter: 'e' for file descriptors, which this process keeps open for so long and
  /// the other one fetches with pidfd_getfd (Linux 5.6, the right to trace this process), 'f' for
  /// fabric handles, 'c' for a legacy handle.
  /// @throws InvalidPointerError if nothing is live there, UnsupportedError if the device cannot
  /// share this memory.
  [[nodiscard]] ShareableHandle shareIpcHandle(void* ptr) override;
  /// Opens it for the current device; what was shared is at `offset` from the result. The same
  /// handle gives the same pointer for as long as anybody has it open. The last owner waits for the
  /// device; during a capture the memory is unmapped later.
  /// @throws InvalidArgumentError for bytes of another format or version, UnsupportedError if the
  /// file descriptors cannot be fetched, DeviceError if the driver refuses.
  [[nodiscard]] std::shared_ptr<void> getIpcDevPtr(std::string handle) override;

  /// @name History
  /// @{

  /// Every device is locked while what there is of it is copied. The segments of a device add up
  /// to what is reserved, their blocks to the segments. Memory that is kept and serves no stream
  /// is a segment of one free block. What is recorded and what is there fit each other, save for
  /// allocations that are about to return, which have no event yet. Of memory that moves,
  /// `SEGMENT_UNMAP` comes when it ceases to serve at its old addresses, although it may stay
  /// mapped there for a while. As in PyTorch, a pool that is not there has no segments.
  [[nodiscard]] SnapshotInfo snapshot(MempoolId_t mempool_id = {0, 0},
                                      bool include_traces = true) override;
  /// The snapshot with its history as the bytes of a file, without contexts, which only the program
  /// can read. Not in PyTorch's interface: cast to `CachingAllocator` for it.
  [[nodiscard]] std::string dumpSnapshot(SnapshotFormat format = SnapshotFormat::Pickle);
  [[nodiscard]] std::shared_ptr<GatheredContext> getContextForPointer(const void* ptr) override;
  /// Records on all devices alike, so that it does not depend on the current one.
  [[nodiscard]] bool isHistoryEnabled() override;
  /// On all devices. While events are recorded each allocation and free takes one lock of its
  /// device more; otherwise nothing. An event takes about 100 bytes, beside its context. Ending it
  /// forgets what was recorded.
  /// @throws InvalidArgumentError for a null `context_recorder` unless `when` is NEVER, and for an
  /// action that is none.
  void recordHistory(bool enabled, CreateContextFn context_recorder, std::size_t max_entries,
                     RecordContext when, bool clearHistory,
                     const std::vector<std::string>& skip_actions) override;
  /// For the current device.
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& metadata) override;
  /// Whether a history is recorded or not: contexts nest as they were pushed. They are the
  /// thread's, in the histories of all allocators, as is its metadata.
  void pushCompileContext(std::string& metadata) override;
  void popCompileContext() override;
  [[nodiscard]] bool supportsUserMetadata() const override;
  void setUserMetadata(const std::string& metadata) override;
  [[nodiscard]] std::string getUserMetadata() override;
  /// @throws InvalidArgumentError for an empty function; so for the two below.
  void attachOutOfMemoryObserver(OutOfMemoryObserver observer) override;
  void attachOomRejectionObserver(OomRejectionObserver observer) override;
  /// Calls leave the hot path from now on. What it throws, and what the observers throw, goes to
  /// the handler of `setDeleterErrorHandler`.
  void attachAllocatorTraceTracker(AllocatorTraceTracker tracker) override;
  /// @}

  void enablePeerAccess(DeviceIndex device, DeviceIndex device_to_access) override;
  /// @throws DeviceError if the device refuses; else returns 0.
  CudaStatus memcpyAsync(void* dst, int dst_device, const void* src, int src_device,
                         std::size_t count, cudaStream_t stream, bool p2p_enabled) override;

 private:
  friend class DeviceStream;
  void* allocateOn(int device, std::size_t nbytes, cudaStream_t stream);
  std::shared_ptr<State> state_;
};

PLUGALLOC_END_NAMESPACE
