// The part of an inference server that meets the allocator: workers with a stream each, requests of
// random shapes, and tensors that live for a layer, a request, or a session.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <plugalloc/cuda_allocator.h>

namespace server {

/// What is to be served.
struct Load {
  int workers = 4;            ///< Threads, each with a stream of its own.
  int requests = 2000;        ///< For each worker.
  int layers = 12;            ///< Of the model.
  std::size_t hidden = 1024;  ///< Floats of one token.
  int sessions = 32;          ///< Requests of each worker whose key-value cache is kept.
};

/// What came of it.
struct Result {
  std::uint64_t requests = 0;     ///< Served.
  std::uint64_t allocations = 0;  ///< Made for them.
  std::uint64_t refused = 0;      ///< Requests for which there was no memory.
  double seconds = 0;             ///< From first to last.
};

/// Serves the load with memory of `allocator`. The server knows the interface and nothing else: any
/// allocator can be passed.
Result serve(plugalloc::CUDAAllocator& allocator, const Load& load);

}  // namespace server
