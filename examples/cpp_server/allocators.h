// The allocators that the server can run on, each behind plugalloc::CUDAAllocator.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include <plugalloc/cuda_allocator.h>

#include "cuda_driver.h"

namespace server {

/// An allocator, and how to ask it what it takes from the device.
struct Source {
  std::shared_ptr<plugalloc::CUDAAllocator> allocator;
  /// The most bytes that it held at once.
  std::function<std::size_t()> reserved_peak;
};

/// plugalloc on `device` ("cuda" or "sim"), with options `conf`.
Source makePlugalloc(const std::string& device, const std::string& conf);
/// The simulated device's own allocations and frees, which wait for the device as cudaMalloc's do:
/// plugalloc with its cache turned off.
Source makeUncachedSim();
/// cudaMalloc and cudaFree.
Source makeCudaMalloc(std::shared_ptr<CudaDriver> driver);
/// cudaMallocAsync and cudaFreeAsync on the device's default pool. `keep`: the pool keeps all its
/// memory, as servers set it; else it has the driver's default and gives memory back whenever a
/// stream is waited for.
Source makeCudaMallocAsync(std::shared_ptr<CudaDriver> driver, bool keep);

}  // namespace server
