/// @file
/// What every allocator of device memory does, whatever the device: PyTorch's `c10::Allocator` and
/// `c10::DeviceAllocator` in one class. `CUDAAllocator` adds what is CUDA's own.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "plugalloc/data_ptr.h"
#include "plugalloc/error.h"
#include "plugalloc/export.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// The part of the interface that is not CUDA's own.
///
/// Every method may be called from any thread at any time, unless it says otherwise. Methods report
/// errors as exceptions derived from `Error`; a method that throws has changed nothing. A method
/// that an allocator does not have throws `UnsupportedError`, which names both.
class PLUGALLOC_API DeviceAllocator {
 public:
  virtual ~DeviceAllocator();
  DeviceAllocator(const DeviceAllocator&) = delete;
  DeviceAllocator& operator=(const DeviceAllocator&) = delete;

  /// The allocator's name, for messages: "caching", "pluggable". A string of static life.
  [[nodiscard]] virtual const char* name() const noexcept = 0;

  /// @name Memory
  /// @{

  /// Allocates `nbytes` on the current device for use on its current stream (see stream.h).
  /// 0 bytes: a null pointer with device and deleter set, and nothing is allocated. The result owns
  /// the memory; its context is the pointer itself and its deleter is `raw_deleter()`.
  /// @throws OutOfMemoryError if it does not fit, InvalidDeviceError for an unknown device.
  [[nodiscard]] virtual DataPtr allocate(std::size_t nbytes) = 0;
  /// Allocates `count` bytes as `allocate` does, and copies them there with `copy_data`.
  [[nodiscard]] DataPtr clone(const void* data, std::size_t count);
  /// True where the data pointer is the whole context, so that the memory can be handed over as a
  /// bare pointer.
  [[nodiscard]] virtual bool is_simple_data_ptr(const DataPtr& pointer) const;
  /// The deleter of everything that `allocate` returns: the same function for every allocator of
  /// one class and for the whole life of the process. It finds the allocator that a pointer came
  /// from by itself, never throws (see `setDeleterErrorHandler`) and ignores null. Where user
  /// functions get their memory from another allocator of the class, make that one first: of two
  /// that know a pointer it is the younger one's. Null where bare pointers are not supported (the
  /// default).
  [[nodiscard]] virtual DeleterFnPtr raw_deleter() const;
  /// `allocate` as a bare pointer, which the caller gives to `raw_deallocate`.
  /// @throws UnsupportedError if the allocator's pointers are not their own contexts.
  [[nodiscard]] void* raw_allocate(std::size_t nbytes);
  /// Gives a pointer of `raw_allocate` to `raw_deleter()`. Does not throw for a bad pointer.
  /// @throws UnsupportedError if the allocator has no raw deleter.
  void raw_deallocate(void* ptr);
  /// Copies `count` bytes of device memory, in order with the current stream of the current device,
  /// and returns when they are copied.
  /// @throws DeviceError if the device refuses, UnsupportedError if there is no way to copy.
  virtual void copy_data(void* dest, const void* src, std::size_t count) const = 0;
  /// @}

  /// @name State
  /// @{

  /// True once the allocator may not be exchanged any more (see `changeCurrentAllocator`).
  [[nodiscard]] virtual bool initialized() = 0;
  /// Gives cached memory back to the device: `{0, 0}` that of the default pools and of every
  /// private pool that nobody uses, another id only that pool's. May wait for the device.
  virtual void emptyCache(MempoolId_t mempool_id = {0, 0}) = 0;
  /// Tells that `stream` uses the memory too: once freed, it is not reused before what is queued
  /// there by then has run. Null, memory with another deleter and the stream of the allocation
  /// itself are ignored. The stream must live until the memory is freed. It may be another
  /// device's, save that a default stream is taken for that of the memory's device.
  virtual void recordStream(const DataPtr& pointer, cudaStream_t stream) = 0;
  /// Bytes of a device, free and in all, as its driver counts them.
  [[nodiscard]] virtual std::pair<std::size_t, std::size_t> getMemoryInfo(DeviceIndex device);
  /// @}

  /// @name Statistics
  /// @throws InvalidDeviceError for an unknown device.
  /// @{

  /// The statistics of a device. Holds other threads up only while the counts are read; what they
  /// do meanwhile may be in it.
  [[nodiscard]] virtual DeviceStats getDeviceStats(DeviceIndex device) = 0;
  /// Sets `allocated` and `freed` of every statistic, and every counter of events, to 0.
  virtual void resetAccumulatedStats(DeviceIndex device) = 0;
  /// Sets `peak` of every statistic to `current`.
  virtual void resetPeakStats(DeviceIndex device) = 0;
  /// @}

 protected:
  DeviceAllocator() = default;
  /// Throws `UnsupportedError` about `operation` of this allocator.
  [[noreturn]] void unsupported(const char* operation) const;
};

PLUGALLOC_END_NAMESPACE
