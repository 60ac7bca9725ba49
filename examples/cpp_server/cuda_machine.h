// A GPU: work is kernels and copies on streams of the CUDA driver.
#pragma once

#include <memory>

#include "cuda_driver.h"
#include "machine.h"

namespace server {

std::unique_ptr<Machine> makeCudaMachine(std::shared_ptr<CudaDriver> driver);

}  // namespace server
