// Streams for a program that has no CUDA headers: the driver's own where there is a GPU, else
// numbers, which the simulated device takes for streams.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "workloads.hpp"

namespace bench {

/// The few calls of the driver that are needed, found at run time.
class Driver {
 public:
  static Driver& get() {
    static Driver driver;
    return driver;
  }
  /// Whether there is a driver with a GPU.
  bool present() const { return present_; }

  Stream makeStream() {
    constexpr unsigned kNonBlocking = 1;
    Stream stream = nullptr;
    if (stream_create_ == nullptr || stream_create_(&stream, kNonBlocking) != 0) {
      std::fprintf(stderr, "the driver makes no stream\n");
      std::exit(1);
    }
    return stream;
  }
  void enterThread() const {
    if (present_) {
      ctx_set_current_(context_);
    }
  }

 private:
  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
      return;
    }
    const auto init = find<int (*)(unsigned)>(library, "cuInit");
    const auto count_devices = find<int (*)(int*)>(library, "cuDeviceGetCount");
    const auto device_get = find<int (*)(int*, int)>(library, "cuDeviceGet");
    const auto retain = find<int (*)(void**, int)>(library, "cuDevicePrimaryCtxRetain");
    ctx_set_current_ = find<int (*)(void*)>(library, "cuCtxSetCurrent");
    stream_create_ = find<int (*)(Stream*, unsigned)>(library, "cuStreamCreate");
    int count = 0;
    int device = 0;
    present_ = init != nullptr && count_devices != nullptr && device_get != nullptr &&
               retain != nullptr && ctx_set_current_ != nullptr && init(0) == 0 &&
               count_devices(&count) == 0 && count > 0 && device_get(&device, 0) == 0 &&
               retain(&context_, device) == 0 && ctx_set_current_(context_) == 0;
  }

  template <typename Function>
  static Function find(void* library, const char* name) {
    return reinterpret_cast<Function>(dlsym(library, name));
  }

  bool present_ = false;
  void* context_ = nullptr;
  int (*ctx_set_current_)(void*) = nullptr;
  int (*stream_create_)(Stream*, unsigned) = nullptr;
};

/// `count` streams of the driver, or numbers.
inline std::vector<Stream> makeStreams(bool real, int count) {
  static std::uintptr_t next = 0x55550000;
  std::vector<Stream> streams;
  for (int k = 0; k < count; ++k) {
    next += 0x40;
    streams.push_back(real ? Driver::get().makeStream() : reinterpret_cast<Stream>(next));
  }
  return streams;
}

}  // namespace bench
