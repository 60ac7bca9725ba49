// A CUDA runtime with nothing behind it, so that PyTorch's allocator can be measured where there is
// no GPU: one idle device of 80 GiB, whose memory is addresses that nobody maps, whose events are
// always complete, and whose calls return at once. What is measured with it is therefore the
// allocator's own time on the host, at its best: on a GPU the runtime's time is added.
//
// It has the symbols that libc10_cuda.so of PyTorch 2.11 asks for. Those that a cached allocation
// never reaches refuse.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <unordered_map>

namespace {

constexpr std::size_t kCapacity = std::size_t{80} << 30;
constexpr std::size_t kPage = std::size_t{2} << 20;

/// Addresses and bytes of the device.
class Memory {
 public:
  bool take(std::uint64_t key, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (used_ + bytes > kCapacity) {
      return false;
    }
    used_ += bytes;
    sizes_[key] = bytes;
    return true;
  }
  bool give(std::uint64_t key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(key);
    if (found == sizes_.end()) {
      return false;
    }
    used_ -= found->second;
    sizes_.erase(found);
    return true;
  }
  std::size_t unused() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kCapacity - used_;
  }
  /// Addresses are given once and never again.
  std::uint64_t addresses(std::size_t bytes) { return next_.fetch_add(bytes + kPage); }

 private:
  std::mutex mutex_;
  std::size_t used_ = 0;
  std::unordered_map<std::uint64_t, std::size_t> sizes_;
  std::atomic<std::uint64_t> next_{0x600000000000};
};

Memory& memory() {
  static auto* const one = new Memory;
  return *one;
}

std::size_t wholePages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

template <typename Handle>
Handle newHandle() {
  static std::atomic<std::uintptr_t> next{0x1000};
  return reinterpret_cast<Handle>(next.fetch_add(0x40));
}

CUresult addressReserve(CUdeviceptr* out, std::size_t bytes, std::size_t, CUdeviceptr,
                        unsigned long long) {
  *out = memory().addresses(wholePages(bytes));
  return CUDA_SUCCESS;
}
CUresult memCreate(CUmemGenericAllocationHandle* out, std::size_t bytes,
                   const CUmemAllocationProp*, unsigned long long) {
  const auto handle = reinterpret_cast<std::uintptr_t>(newHandle<void*>());
  if (!memory().take(handle, bytes)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *out = handle;
  return CUDA_SUCCESS;
}
CUresult memRelease(CUmemGenericAllocationHandle handle) {
  return memory().give(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult granularity(std::size_t* out, const CUmemAllocationProp*,
                     CUmemAllocationGranularity_flags) {
  *out = kPage;
  return CUDA_SUCCESS;
}
CUresult deviceAttribute(int* out, CUdevice_attribute, CUdevice) {
  *out = 1;
  return CUDA_SUCCESS;
}
CUresult errorString(CUresult, const char** out) {
  *out = "refused by the stand-in driver";
  return CUDA_SUCCESS;
}
// For calls whose arguments do not matter; on x86-64 and Arm the caller cleans up.
CUresult agree() { return CUDA_SUCCESS; }
CUresult refuse() { return CUDA_ERROR_NOT_SUPPORTED; }

struct Entry {
  const char* name;
  void* function;
};

template <typename Function>
void* address(Function* function) {
  return reinterpret_cast<void*>(function);
}

const Entry kDriver[] = {
    {"cuMemAddressReserve", address(&addressReserve)},
    {"cuMemAddressFree", address(&agree)},
    {"cuMemCreate", address(&memCreate)},
    {"cuMemRelease", address(&memRelease)},
    {"cuMemMap", address(&agree)},
    {"cuMemUnmap", address(&agree)},
    {"cuMemSetAccess", address(&agree)},
    {"cuMemGetAllocationGranularity", address(&granularity)},
    {"cuDeviceGetAttribute", address(&deviceAttribute)},
    {"cuGetErrorString", address(&errorString)},
};

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** out, std::size_t bytes) {
  const std::size_t whole = wholePages(bytes);
  const std::uint64_t start = memory().addresses(whole);
  if (!memory().take(start, whole)) {
    return cudaErrorMemoryAllocation;
  }
  *out = reinterpret_cast<void*>(start);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const bool known = pointer == nullptr || memory().give(reinterpret_cast<std::uintptr_t>(pointer));
  return known ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMemGetInfo(std::size_t* unused, std::size_t* total) {
  *unused = memory().unused();
  *total = kCapacity;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* out) {
  *out = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* out) {
  *out = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  std::memset(out, 0, sizeof *out);
  std::strcpy(out->name, "stand-in");
  out->totalGlobalMem = kCapacity;
  out->major = 9;
  out->multiProcessorCount = 132;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* out) {
  *out = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  *out = newHandle<cudaStream_t>();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned, int) {
  *out = newHandle<cudaStream_t>();
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = newHandle<cudaEvent_t>();
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t, cudaEvent_t) {
  *out = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* out) {
  *out = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* out,
                                     unsigned long long*, cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, std::size_t*) {
  *out = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* out, int, int) {
  *out = 0;
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorStandIn"; }
const char* cudaGetErrorString(cudaError_t) { return "refused by the stand-in runtime"; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** out, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *out = address(&refuse);
  for (const Entry& entry : kDriver) {
    if (std::strcmp(entry.name, name) == 0) {
      *out = entry.function;
    }
  }
  if (result != nullptr) {
    *result = cudaDriverEntryPointSuccess;
  }
  return cudaSuccess;
}

}  // extern "C"

// Calls that do nothing here, and calls that nobody reaches. They are defined in assembler because
// their types are CUDA's, and what they have in common is only what they return.
#define STAND_IN(name, status)                                 \
  asm(".globl " #name "\n.type " #name ", @function\n" #name   \
      ":\n  movl $" #status ", %eax\n  ret\n")
STAND_IN(cudaSetDevice, 0);
STAND_IN(cudaDeviceSynchronize, 0);
STAND_IN(cudaStreamQuery, 0);
STAND_IN(cudaStreamSynchronize, 0);
STAND_IN(cudaStreamWaitEvent, 0);
STAND_IN(cudaThreadExchangeStreamCaptureMode, 0);
STAND_IN(cudaEventDestroy, 0);
STAND_IN(cudaEventRecord, 0);
STAND_IN(cudaEventQuery, 0);
STAND_IN(cudaEventSynchronize, 0);
STAND_IN(cudaGetLastError, 0);
STAND_IN(cudaDeviceEnablePeerAccess, 801);
STAND_IN(cudaDeviceGetDefaultMemPool, 801);
STAND_IN(cudaFreeAsync, 801);
STAND_IN(cudaMallocAsync, 801);
STAND_IN(cudaGraphNodeGetDependencies, 801);
STAND_IN(cudaIpcCloseMemHandle, 801);
STAND_IN(cudaIpcGetMemHandle, 801);
STAND_IN(cudaIpcOpenMemHandle, 801);
STAND_IN(cudaMemPoolGetAttribute, 801);
STAND_IN(cudaMemPoolSetAccess, 801);
STAND_IN(cudaMemPoolSetAttribute, 801);
STAND_IN(cudaMemPoolTrimTo, 801);
STAND_IN(cudaMemcpy, 801);
STAND_IN(cudaMemcpyAsync, 801);
STAND_IN(cudaMemcpyPeerAsync, 801);
