/// @file
/// Streams of the device behind a caching allocator, whichever that is.
#pragma once

#include <functional>
#include <memory>

#include "plugalloc/cuda_allocator.h"

PLUGALLOC_BEGIN_NAMESPACE

/// A stream of one device of a caching allocator, and work of the host on it.
///
/// A program that calls CUDA has streams already, and passes those. This one is for a program that
/// runs without a GPU, too: on the simulated device it is the only way to queue work. It is made
/// and works in the same way on both.
///
///     plugalloc::DeviceStream stream(*allocator);
///     const plugalloc::StreamGuard guard(stream.get());
///     plugalloc::DataPtr data = allocator->allocate(bytes);
///     stream.launchHostFunc([p = data.get()] { compute(p); });   // on "sim": memory of the host
///     data.clear();                                              // in stream order
///     stream.synchronize();
///
/// The stream keeps its device, not the allocator's object. All methods may be called from any
/// thread. On the simulated device work runs in the thread of a caller, usually before the call
/// that queued it returns, and in every case in the order of its stream.
class PLUGALLOC_API DeviceStream {
 public:
  /// A new stream of `device` (-1: the current one), which does not synchronise with the default
  /// stream.
  /// @throws UnsupportedError if `allocator` is no `CachingAllocator`: only that knows its device;
  /// InvalidDeviceError; DeviceError if the driver makes no stream.
  explicit DeviceStream(CUDAAllocator& allocator, int device = -1);
  /// Destroys the stream; what is queued on it still runs. Memory that was allocated on it and is
  /// free then serves other streams, in order after that work; what is still allocated on it must
  /// be freed first.
  ~DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  /// The stream, for allocations, guards and `recordStream`. Valid as long as this object.
  [[nodiscard]] cudaStream_t get() const noexcept;
  /// The device that it belongs to.
  [[nodiscard]] int device() const noexcept;

  /// Queues `function`, as `cudaLaunchHostFunc` does. It runs once, on any thread; it must not call
  /// the device or the allocator, and must not throw, which ends the process.
  /// @throws InvalidArgumentError for an empty function; DeviceError if the driver refuses, for
  /// instance while the stream is being captured. The function does not run then.
  void launchHostFunc(std::function<void()> function);
  /// Makes work that is queued here from now on wait for what is queued on `other` now. Returns at
  /// once.
  /// @throws InvalidArgumentError if `other` is of another device; DeviceError.
  void waitFor(const DeviceStream& other);
  /// Waits until everything queued here has run.
  /// @throws DeviceError if the device is lost, or the stream is being captured.
  void synchronize() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

PLUGALLOC_END_NAMESPACE
