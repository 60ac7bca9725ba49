/// @file
/// The current device and the current stream of a thread.
///
/// An allocation that names no device goes to the current one, and one that names no stream goes to
/// the current stream of that device. Both are values of the calling thread: nothing here calls a
/// driver. A thread that has set nothing asks the providers that the host program installed, and
/// without those uses device 0 and the default stream. A program that changes devices with CUDA's
/// own calls installs providers that ask CUDA, or sets both.
#pragma once

#include "plugalloc/export.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// How many devices can be told apart by this header.
inline constexpr int kMaxDevices = 64;

/// Gives the current device of the calling thread. Called on every allocation: it must be quick,
/// thread-safe and must not throw.
using CurrentDeviceProvider = int (*)();
/// Gives the current stream of the calling thread on a device; the same demands.
using CurrentStreamProvider = cudaStream_t (*)(int device);

/// Installs the function that is asked by threads that have set no device; null removes it.
/// Thread-safe; threads see it from their next call on.
PLUGALLOC_API void setCurrentDeviceProvider(CurrentDeviceProvider provider) noexcept;
/// Installs the function that is asked by threads that have set no stream; null removes it.
PLUGALLOC_API void setCurrentStreamProvider(CurrentStreamProvider provider) noexcept;

/// The current device of the calling thread.
[[nodiscard]] PLUGALLOC_API int currentDevice() noexcept;
/// Sets it; -1 goes back to the provider.
/// @throws InvalidArgumentError for a device below -1 or not below `kMaxDevices`.
PLUGALLOC_API void setCurrentDevice(int device);

/// The current stream of the calling thread on `device`; -1: on the current device. A device out of
/// range has the default stream.
[[nodiscard]] PLUGALLOC_API cudaStream_t currentStream(int device = -1) noexcept;
/// Sets it. The stream stays the caller's, who destroys it only after its memory was freed.
/// @throws InvalidArgumentError for a device out of range.
PLUGALLOC_API void setCurrentStream(cudaStream_t stream, int device = -1);
/// Goes back to the provider.
PLUGALLOC_API void resetCurrentStream(int device = -1);

/// Sets the current device of this thread for a scope. Destroy it on the thread that made it.
class PLUGALLOC_API DeviceGuard {
 public:
  /// @throws InvalidArgumentError for a device out of range; nothing is changed then.
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

/// Sets the current device and its current stream of this thread for a scope. Destroy it on the
/// thread that made it.
class PLUGALLOC_API StreamGuard {
 public:
  /// `device` -1: the current device.
  /// @throws InvalidArgumentError for a device out of range; nothing is changed then.
  explicit StreamGuard(cudaStream_t stream, int device = -1);
  ~StreamGuard();
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  int previous_device_;
  int device_;
  cudaStream_t previous_stream_;
  bool had_stream_;
};

PLUGALLOC_END_NAMESPACE
