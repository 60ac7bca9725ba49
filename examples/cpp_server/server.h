// The server: workers, run together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <plugalloc/cuda_allocator.h>

#include "load.h"
#include "machine.h"

namespace server {

/// What came of a load.
struct Result {
  std::vector<double> latencies;  ///< Microseconds, of each timed request, in order of size.
  std::uint64_t refused = 0;      ///< Requests for which there was no memory; the warm-up's too.
  std::uint64_t wrong = 0;        ///< Requests with a wrong result; the warm-up's too.
  std::uint64_t allocations = 0;  ///< Of the timed requests.
  double seconds = 0;             ///< Of the timed part, from first to last.
  std::size_t live_peak = 0;      ///< Bytes that the server had asked for, at most.
  std::size_t used_at_end = 0;    ///< Bytes of the device in use before the sessions ended.
  std::int64_t not_given_back =
      0;  ///< Allocations that were left at the end; 0 unless there is a fault.
};

/// Serves the load with memory of `allocator`. The server knows the interface and nothing else: any
/// allocator can be passed.
Result serve(Machine& machine, plugalloc::CUDAAllocator& allocator, const Load& load);

}  // namespace server
