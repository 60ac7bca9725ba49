#include "cuda_driver.h"

#include <dlfcn.h>

namespace server {

void CudaDriver::check(int result, const char* call) const {
  if (result == 0) {
    return;
  }
  const char* name = nullptr;
  const char* text = nullptr;
  error_name_(result, &name);
  error_text_(result, &text);
  throw CudaError(std::string(call) + ": " + (name == nullptr ? "error" : name) + " (" +
                  std::to_string(result) + "): " + (text == nullptr ? "" : text));
}

template <typename Function>
void CudaDriver::find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library_, name));
  if (function == nullptr) {
    throw CudaError(std::string("the driver in libcuda.so.1 has no ") + name);
  }
}

void CudaDriver::findCalls() {
  find(error_name_, "cuGetErrorName");
  find(error_text_, "cuGetErrorString");
  find(ctx_set_current, "cuCtxSetCurrent");
  find(device_get_name, "cuDeviceGetName");
  find(mem_get_info, "cuMemGetInfo_v2");
  find(mem_alloc, "cuMemAlloc_v2");
  find(mem_free, "cuMemFree_v2");
  find(mem_alloc_async, "cuMemAllocAsync");
  find(mem_free_async, "cuMemFreeAsync");
  find(get_default_pool, "cuDeviceGetDefaultMemPool");
  find(pool_set, "cuMemPoolSetAttribute");
  find(pool_get, "cuMemPoolGetAttribute");
  find(host_alloc, "cuMemHostAlloc");
  find(host_free, "cuMemFreeHost");
  find(stream_create, "cuStreamCreate");
  find(stream_destroy, "cuStreamDestroy_v2");
  find(stream_synchronize, "cuStreamSynchronize");
  find(stream_wait_event, "cuStreamWaitEvent");
  find(event_create, "cuEventCreate");
  find(event_destroy, "cuEventDestroy_v2");
  find(event_record, "cuEventRecord");
  find(copy_async, "cuMemcpyAsync");
  find(set_words_async, "cuMemsetD32Async");
  find(module_load, "cuModuleLoadData");
  find(module_function, "cuModuleGetFunction");
  find(launch, "cuLaunchKernel");
}

CudaDriver::CudaDriver() {
  library_ = dlopen("libcuda.so.1", RTLD_NOW);
  if (library_ == nullptr) {
    throw CudaError(std::string("there is no CUDA driver: ") + dlerror());
  }
  findCalls();
  int (*init)(unsigned) = nullptr;
  int (*device_count)(int*) = nullptr;
  int (*device_get)(int*, int) = nullptr;
  int (*context_retain)(void**, int) = nullptr;
  find(init, "cuInit");
  find(device_count, "cuDeviceGetCount");
  find(device_get, "cuDeviceGet");
  find(context_retain, "cuDevicePrimaryCtxRetain");
  check(init(0), "cuInit");
  int count = 0;
  check(device_count(&count), "cuDeviceGetCount");
  if (count == 0) {
    throw CudaError("there is a CUDA driver, but no GPU");
  }
  check(device_get(&device_, 0), "cuDeviceGet");
  check(context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
  enterThread();
}

}  // namespace server
