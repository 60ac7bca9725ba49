/// @file
/// An allocator over user functions.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "plugalloc/cuda_allocator.h"

PLUGALLOC_BEGIN_NAMESPACE

/// Gives `size` bytes on `device` for use on `stream`. Null for more than 0 bytes means that there
/// is no memory; an exception reaches the caller of the allocator as it is.
using AllocFn = std::function<void*(std::size_t size, int device, cudaStream_t stream)>;
/// Takes a pointer of `AllocFn` back, with exactly the size, device and stream of its allocation.
using FreeFn = std::function<void(void* ptr, std::size_t size, int device, cudaStream_t stream)>;

/// `CUDAAllocator` whose memory comes from user functions, as PyTorch's `CUDAPluggableAllocator`.
///
/// Every request reaches `alloc_fn` and every free `free_fn` (pass-through). What PyTorch's class
/// refuses is answered from the metadata kept anyway: statistics, resets, the size of an
/// allocation, history and snapshots. Functions and hooks are called outside every lock and may
/// call the allocator; `free_fn` may also let it go.
///
/// Hooks are set before the allocator is used by several threads; everything else is thread-safe.
/// An allocator that dies while some of its allocations live leaves its functions and metadata
/// behind, so that `raw_deleter()` still gives those back to its own `free_fn`.
class PLUGALLOC_API PluggableAllocator final : public CUDAAllocator {
 public:
  /// Over these functions.
  /// @throws InvalidArgumentError if one of them is empty.
  PluggableAllocator(AllocFn alloc_fn, FreeFn free_fn);
  /// Copies functions, hooks and memory fractions, as PyTorch's does. The copy has no allocations
  /// and is not initialised: a pointer goes back to the object that allocated it, and to no other.
  PluggableAllocator(const PluggableAllocator& other);
  PluggableAllocator& operator=(const PluggableAllocator&) = delete;
  ~PluggableAllocator() override;

  /// @name Hooks. An empty function removes a hook.
  /// @{

  /// Called by `init` with the number of devices.
  void set_init_fn(std::function<void(int)> init_fn);
  /// Called by `emptyCache`.
  void set_reset_fn(std::function<void()> reset_fn);
  /// Called by `setMemoryFraction`.
  void set_memory_fraction_fn(std::function<void(double, int)> memory_fraction_fn);
  /// Called by `getBaseAllocation`: returns the start, and writes the bytes if it knows them.
  void set_base_alloc_fn(std::function<void*(void*, std::size_t*)> base_alloc_fn);
  /// Called by `recordStream`.
  void set_record_stream_fn(std::function<void(void*, cudaStream_t)> record_stream_fn);
  /// Called by `beginAllocateToPool`.
  void set_begin_allocate_to_pool(
      std::function<void(int, MempoolId_t, std::function<bool(cudaStream_t)>)> begin_fn);
  /// Called by `endAllocateToPool`.
  void set_end_allocate_to_pool_fn(std::function<void(int, MempoolId_t)> end_fn);
  /// The same, under the name that matches `set_begin_allocate_to_pool`.
  void set_end_allocate_to_pool(std::function<void(int, MempoolId_t)> end_fn);
  /// Called by `releasePool`.
  void set_release_pool(std::function<void(int, MempoolId_t)> release_fn);
  /// Called by `copy_data` (and `clone`): copies bytes and returns when they are copied. Not in
  /// PyTorch, whose class always calls CUDA.
  void set_copy_data_fn(std::function<void(void*, const void*, std::size_t)> copy_fn);
  /// @}

  [[nodiscard]] const char* name() const noexcept override;

  [[nodiscard]] DataPtr allocate(std::size_t nbytes) override;
  [[nodiscard]] DeleterFnPtr raw_deleter() const override;
  /// @throws UnsupportedError without a `set_copy_data_fn`.
  void copy_data(void* dest, const void* src, std::size_t count) const override;
  /// Calls `alloc_fn`, for 0 bytes too (null is no error then).
  /// @throws OutOfMemoryError if `alloc_fn` gives null, InvalidArgumentError if it gives a pointer
  /// that is live already (which is not freed), and whatever `alloc_fn` throws.
  [[nodiscard]] void* raw_alloc(std::size_t nbytes) override;
  [[nodiscard]] void* raw_alloc_with_stream(std::size_t nbytes, cudaStream_t stream) override;
  /// Forgets the pointer, then calls `free_fn`, whose exception reaches the caller.
  /// @throws InvalidPointerError if the pointer is not live here; `kind` tells a double free from a
  /// foreign pointer if the free was among the last ones.
  void raw_delete(void* ptr) override;

  /// True after `init`, as in PyTorch; allocations do not count.
  [[nodiscard]] bool initialized() override;
  void init(int device_count) override;
  /// Calls the reset hook; nothing is cached here.
  void emptyCache(MempoolId_t mempool_id = {0, 0}) override;
  /// Calls the hook, if any; null is ignored.
  void recordStream(const DataPtr& pointer, cudaStream_t stream) override;
  /// Current, peak, allocated and freed, in counts and bytes. Every request is the source's own, so
  /// reserved, active, requested and allocated bytes are the same.
  [[nodiscard]] DeviceStats getDeviceStats(DeviceIndex device) override;
  void resetAccumulatedStats(DeviceIndex device) override;
  void resetPeakStats(DeviceIndex device) override;

  /// The fraction that was set last; 1 before.
  [[nodiscard]] double getMemoryFraction(DeviceIndex device) override;
  /// Remembers the fraction and calls the hook, which is who enforces it.
  void setMemoryFraction(double fraction, DeviceIndex device) override;
  /// Does nothing: there is no cache to turn off.
  void enable(bool value) override;
  /// Always true.
  [[nodiscard]] bool isEnabled() const override;
  /// Leaves `*largest_block` as it is: nothing is cached, and the source's free memory is unknown.
  void cacheInfo(DeviceIndex device, std::size_t* largest_block) override;
  /// The hook's answer; without one, `ptr` itself. The size is that of the allocation at `ptr`
  /// unless the hook writes another.
  /// @throws InvalidPointerError without a hook, if `ptr` is not the start of a live allocation.
  void* getBaseAllocation(void* ptr, std::size_t* size) override;

  /// Calls the hook, if any.
  void beginAllocateToPool(DeviceIndex device, MempoolId_t mempool_id,
                           std::function<bool(cudaStream_t)> filter) override;
  /// Calls the hook, if any.
  void endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id) override;
  /// Calls the hook, if any.
  void releasePool(DeviceIndex device, MempoolId_t mempool_id) override;

  /// @name History and snapshots
  /// As those of `CachingAllocator`. Every allocation is the source's own: a segment of one block,
  /// which comes and goes with it (`SEGMENT_ALLOC`, `SEGMENT_FREE`).
  /// @{

  /// All that is live. Calls wait while it is copied.
  /// @throws UnsupportedError for a pool other than {0, 0}: only the user's functions know what is
  /// from which.
  [[nodiscard]] SnapshotInfo snapshot(MempoolId_t mempool_id = {0, 0},
                                      bool include_traces = true) override;
  /// The snapshot with its history as the bytes of a file, without contexts.
  [[nodiscard]] std::string dumpSnapshot(SnapshotFormat format = SnapshotFormat::Pickle);
  [[nodiscard]] std::shared_ptr<GatheredContext> getContextForPointer(const void* ptr) override;
  [[nodiscard]] bool isHistoryEnabled() override;
  /// On all devices. `FREE_COMPLETED` comes before `free_fn` is called, since the pointer may be
  /// given again from then on.
  /// @throws InvalidArgumentError for a null `context_recorder` unless `when` is NEVER, and for an
  /// action that is none.
  void recordHistory(bool enabled, CreateContextFn context_recorder, std::size_t max_entries,
                     RecordContext when, bool clearHistory,
                     const std::vector<std::string>& skip_actions) override;
  /// For the current device.
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& metadata) override;
  void pushCompileContext(std::string& metadata) override;
  void popCompileContext() override;
  [[nodiscard]] bool supportsUserMetadata() const override;
  void setUserMetadata(const std::string& metadata) override;
  [[nodiscard]] std::string getUserMetadata() override;
  /// Called where `alloc_fn` gives null, with 0 for what it cannot know. That it refuses requests
  /// at a limit nobody is told: there is no `attachOomRejectionObserver` here.
  /// @throws InvalidArgumentError for an empty function; so for the one below.
  void attachOutOfMemoryObserver(OutOfMemoryObserver observer) override;
  /// What it throws, and what the observer throws, goes to the handler of `setDeleterErrorHandler`.
  void attachAllocatorTraceTracker(AllocatorTraceTracker tracker) override;
  /// @}

  struct State;

 private:
  void* allocateOn(int device, std::size_t nbytes, cudaStream_t stream);
  std::shared_ptr<State> state_;
};

PLUGALLOC_END_NAMESPACE
