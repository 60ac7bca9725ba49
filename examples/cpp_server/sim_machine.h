// The simulated device: work is functions of the host, queued on streams of the allocator's device.
#pragma once

#include <memory>

#include <plugalloc/cuda_allocator.h>

#include "machine.h"

namespace server {

/// `allocator` is a caching allocator over the simulator, whose device this is.
std::unique_ptr<Machine> makeSimMachine(std::shared_ptr<plugalloc::CUDAAllocator> allocator);

}  // namespace server
