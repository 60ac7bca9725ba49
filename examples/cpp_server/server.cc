#include "server.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <thread>

#include "tensor.h"
#include "worker.h"

namespace server {

namespace {

/// Lets every worker serve so many requests, each on a thread of its own. Seconds that it took.
double runAll(Machine& machine, std::deque<Worker>& workers, int requests) {
  std::vector<std::exception_ptr> failures(workers.size());
  std::vector<std::thread> threads;
  threads.reserve(workers.size());
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < workers.size(); ++i) {
    threads.emplace_back([&machine, &worker = workers[i], &failure = failures[i], requests] {
      try {
        machine.enterThread();
        worker.serve(requests);
      } catch (...) {
        failure = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  for (const std::exception_ptr& failure : failures) {
    if (failure != nullptr) {
      std::rethrow_exception(failure);
    }
  }
  return taken.count();
}

}  // namespace

Result serve(Machine& machine, plugalloc::CUDAAllocator& allocator, const Load& load) {
  machine.enterThread();
  Gauge gauge;
  std::deque<Worker> workers;  // Which leaves them where they are.
  for (int number = 0; number < load.workers; ++number) {
    workers.emplace_back(machine, allocator, gauge, load, number);
  }
  runAll(machine, workers, load.warmup);
  for (Worker& worker : workers) {
    worker.tally.latencies.clear();
  }
  Result result;
  const std::uint64_t before = gauge.allocations();
  result.seconds = runAll(machine, workers, load.requests);
  result.allocations = gauge.allocations() - before;
  result.live_peak = gauge.peak();
  result.used_at_end = machine.usedBytes();
  for (Worker& worker : workers) {
    worker.closeSessions();
    const Tally& tally = worker.tally;
    result.latencies.insert(result.latencies.end(), tally.latencies.begin(), tally.latencies.end());
    result.refused += tally.refused;
    result.wrong += tally.wrong;
  }
  std::sort(result.latencies.begin(), result.latencies.end());
  result.not_given_back = allocator.getDeviceStats(0).allocation[0].current;
  return result;
}

}  // namespace server
