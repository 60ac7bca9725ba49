#include "server.h"

#include <plugalloc/error.h>
#include <plugalloc/stream.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace server {

namespace {

/// One thread of the server. A real one would have made the stream with cudaStreamCreate.
class Worker {
 public:
  Worker(plugalloc::CUDAAllocator& allocator, const Load& load, int number)
      : allocator_(allocator),
        load_(load),
        stream_(reinterpret_cast<cudaStream_t>(static_cast<std::uintptr_t>(number + 1))),
        random_(static_cast<std::uint32_t>(number)) {}

  void run() {
    const plugalloc::StreamGuard guard(stream_);
    for (int request = 0; request < load_.requests; ++request) {
      serveOne();
    }
  }

  Result result;

 private:
  /// A request: input, activations layer by layer, and a key-value cache that outlives it.
  void serveOne() {
    const std::size_t tokens = 1 + std::uniform_int_distribution<std::size_t>(0, 511)(random_);
    const std::size_t row = tokens * load_.hidden * sizeof(float);
    try {
      plugalloc::DataPtr activation = take(row);
      plugalloc::DataPtr cache = take(2 * row);
      for (int layer = 0; layer < load_.layers; ++layer) {
        activation = runLayer(row, tokens);
      }
      sessions_.push_back(std::move(cache));
      ++result.requests;
    } catch (const plugalloc::OutOfMemoryError&) {
      sessions_.clear();
      ++result.refused;
    }
    while (sessions_.size() > static_cast<std::size_t>(load_.sessions)) {
      sessions_.pop_front();
    }
  }

  /// Attention scores and a wide intermediate, both gone at the end of the layer.
  plugalloc::DataPtr runLayer(std::size_t row, std::size_t tokens) {
    const plugalloc::DataPtr scores = take(tokens * tokens * sizeof(float));
    const plugalloc::DataPtr wide = take(4 * row);
    return take(row);
  }

  plugalloc::DataPtr take(std::size_t bytes) {
    ++result.allocations;
    return allocator_.allocate(bytes);
  }

  plugalloc::CUDAAllocator& allocator_;
  const Load& load_;
  cudaStream_t stream_;
  std::mt19937 random_;
  std::deque<plugalloc::DataPtr> sessions_;
};

}  // namespace

Result serve(plugalloc::CUDAAllocator& allocator, const Load& load) {
  std::deque<Worker> workers;  // Which leaves them where they are.
  for (int number = 0; number < load.workers; ++number) {
    workers.emplace_back(allocator, load, number);
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (Worker& worker : workers) {
    threads.emplace_back([&worker] { worker.run(); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  Result sum;
  sum.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const Worker& worker : workers) {
    sum.requests += worker.result.requests;
    sum.allocations += worker.result.allocations;
    sum.refused += worker.result.refused;
  }
  return sum;
}

}  // namespace server
