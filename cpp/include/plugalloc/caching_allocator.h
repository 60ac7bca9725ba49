/// @file
/// The caching allocator: plugalloc's engine over CUDA or the simulator.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "plugalloc/cuda_allocator.h"

PLUGALLOC_BEGIN_NAMESPACE

/// `CUDAAllocator` over the engine. Make it with `createCachingAllocator` (plugalloc.h).
///
/// An allocator that dies while some of its allocations live keeps its engine: they stay usable and
/// can be given back with `raw_deleter()`, and the engine's memory stays with the process. One that
/// dies without any gives everything back. At process exit memory is abandoned, not freed. No
/// method may run while the allocator is being destroyed.
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
  void init(int device_count) override;
  /// @throws UnsupportedError for a pool other than `{0, 0}`.
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
  void cacheInfo(DeviceIndex device, std::size_t* largest_block) override;
  void* getBaseAllocation(void* ptr, std::size_t* size) override;

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
