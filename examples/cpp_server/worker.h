// One thread of the server: its streams, its conversations, and its requests one after another.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <plugalloc/cuda_allocator.h>

#include "load.h"
#include "machine.h"
#include "model.h"
#include "tensor.h"

namespace server {

/// What came of the timed requests of one worker.
struct Tally {
  std::vector<double> latencies;  ///< Microseconds, of each request that was served.
  std::uint64_t refused = 0;      ///< Requests for which there was no memory.
  std::uint64_t wrong = 0;        ///< Requests with a wrong word in their result.
};

/// Serves requests on a stream of its own; prompts arrive through a second one.
class Worker {
 public:
  Worker(Machine& machine, plugalloc::CUDAAllocator& allocator, Gauge& gauge, const Load& load,
         int number);

  /// Serves so many requests, on the calling thread.
  void serve(int requests);
  /// Ends all conversations.
  void closeSessions();

  Tally tally;

 private:
  void serveOne();
  std::size_t choose(const Request& request);
  void close(std::size_t session);
  /// Runs a request; false if the result is wrong.
  [[nodiscard]] bool run(Session& session, const Request& request);
  [[nodiscard]] Tensor upload(const Pattern& prompt, std::size_t words);
  [[nodiscard]] bool isRight(const Tensor& result, const Pattern& expected);

  plugalloc::CUDAAllocator& allocator_;
  Gauge& gauge_;
  const Load& load_;
  std::unique_ptr<Queue> work_;
  std::unique_ptr<Queue> uploads_;
  HostBuffer prompt_;
  HostBuffer result_;
  Model model_;
  Requests requests_;
  std::vector<Session> sessions_;
  Word served_ = 0;
};

}  // namespace server
