// The calls of the CUDA driver that the server makes, found at run time: it builds without a CUDA
// toolkit, and starts without a driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include <plugalloc/types.h>

namespace server {

using DevicePointer = std::uint64_t;
inline constexpr int kCudaOutOfMemory = 2;
inline constexpr int kPoolReleaseThreshold = 4;
inline constexpr int kPoolReservedHigh = 6;

/// A call of the driver that failed.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The driver, its first device, and that device's primary context.
class CudaDriver {
 public:
  /// Opens driver and device.
  /// @throws CudaError saying what was looked for, where there is no driver or no GPU.
  CudaDriver();
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  /// Throws what the driver says of a result other than 0.
  void check(int result, const char* call) const;
  /// Makes the context current in the calling thread.
  void enterThread() const { check(ctx_set_current(context_), "cuCtxSetCurrent"); }
  [[nodiscard]] int device() const { return device_; }

  int (*ctx_set_current)(void*) = nullptr;
  int (*device_get_name)(char*, int, int) = nullptr;
  int (*mem_get_info)(std::size_t*, std::size_t*) = nullptr;
  int (*mem_alloc)(DevicePointer*, std::size_t) = nullptr;
  int (*mem_free)(DevicePointer) = nullptr;
  int (*mem_alloc_async)(DevicePointer*, std::size_t, cudaStream_t) = nullptr;
  int (*mem_free_async)(DevicePointer, cudaStream_t) = nullptr;
  int (*get_default_pool)(void**, int) = nullptr;
  int (*pool_set)(void*, int, void*) = nullptr;
  int (*pool_get)(void*, int, void*) = nullptr;
  int (*host_alloc)(void**, std::size_t, unsigned) = nullptr;
  int (*host_free)(void*) = nullptr;
  int (*stream_create)(cudaStream_t*, unsigned) = nullptr;
  int (*stream_destroy)(cudaStream_t) = nullptr;
  int (*stream_synchronize)(cudaStream_t) = nullptr;
  int (*stream_wait_event)(cudaStream_t, void*, unsigned) = nullptr;
  int (*event_create)(void**, unsigned) = nullptr;
  int (*event_destroy)(void*) = nullptr;
  int (*event_record)(void*, cudaStream_t) = nullptr;
  int (*copy_async)(DevicePointer, DevicePointer, std::size_t, cudaStream_t) = nullptr;
  int (*set_words_async)(DevicePointer, unsigned, std::size_t, cudaStream_t) = nullptr;
  int (*module_load)(void**, const void*) = nullptr;
  int (*module_function)(void**, void*, const char*) = nullptr;
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                cudaStream_t, void**, void**) = nullptr;

 private:
  void findCalls();
  template <typename Function>
  void find(Function& function, const char* name);

  void* library_ = nullptr;
  void* context_ = nullptr;
  int device_ = 0;
  int (*error_name_)(int, const char**) = nullptr;
  int (*error_text_)(int, const char**) = nullptr;
};

}  // namespace server
