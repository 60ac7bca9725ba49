// The current device and stream of each thread.
#include "plugalloc/stream.h"

#include <array>
#include <atomic>
#include <string>

#include "errors.h"
#include "thread_values.h"

namespace plugalloc {
namespace bridge {

__thread int thread_device = -1;
std::atomic<CurrentDeviceProvider> device_provider{nullptr};

}  // namespace bridge
}  // namespace plugalloc

PLUGALLOC_BEGIN_NAMESPACE

using bridge::device_provider;
using bridge::thread_device;

namespace {

std::atomic<CurrentStreamProvider> stream_provider{nullptr};

struct ThreadStream {
  cudaStream_t stream = nullptr;
  bool set = false;
};

thread_local std::array<ThreadStream, kMaxDevices> thread_streams;

int checkedDevice(int device, int lowest) {
  if (device < lowest || device >= kMaxDevices) {
    bridge::throwInvalidArgument("device", std::to_string(device),
                                 "a device from 0 to " + std::to_string(kMaxDevices - 1));
  }
  return device;
}

int chosenDevice(int device) { return checkedDevice(device == -1 ? currentDevice() : device, 0); }

}  // namespace

void setCurrentDeviceProvider(CurrentDeviceProvider provider) noexcept {
  device_provider.store(provider, std::memory_order_release);
}

void setCurrentStreamProvider(CurrentStreamProvider provider) noexcept {
  stream_provider.store(provider, std::memory_order_release);
}

int currentDevice() noexcept { return bridge::currentDeviceInline(); }

void setCurrentDevice(int device) { thread_device = checkedDevice(device, -1); }

cudaStream_t currentStream(int device) noexcept {
  const int chosen = device == -1 ? currentDevice() : device;
  if (chosen < 0 || chosen >= kMaxDevices) {
    return nullptr;
  }
  const ThreadStream& own = thread_streams[static_cast<std::size_t>(chosen)];
  if (own.set) {
    return own.stream;
  }
  const CurrentStreamProvider provider = stream_provider.load(std::memory_order_acquire);
  return provider == nullptr ? nullptr : provider(chosen);
}

void setCurrentStream(cudaStream_t stream, int device) {
  thread_streams[static_cast<std::size_t>(chosenDevice(device))] = {stream, true};
}

void resetCurrentStream(int device) {
  thread_streams[static_cast<std::size_t>(chosenDevice(device))] = {};
}

DeviceGuard::DeviceGuard(int device) : previous_(thread_device) {
  thread_device = checkedDevice(device, 0);
}

DeviceGuard::~DeviceGuard() { thread_device = previous_; }

StreamGuard::StreamGuard(cudaStream_t stream, int device)
    : previous_device_(thread_device),
      device_(chosenDevice(device)),
      previous_stream_(thread_streams[static_cast<std::size_t>(device_)].stream),
      had_stream_(thread_streams[static_cast<std::size_t>(device_)].set) {
  thread_device = device_;
  thread_streams[static_cast<std::size_t>(device_)] = {stream, true};
}

StreamGuard::~StreamGuard() {
  thread_streams[static_cast<std::size_t>(device_)] = {previous_stream_, had_stream_};
  thread_device = previous_device_;
}

PLUGALLOC_END_NAMESPACE
