// An inference server's use of an allocator: serves a load with the allocator of one's choice,
// checks every result, and prints throughput, latencies and memory. `cpp_server --help` lists the
// options.
#include <plugalloc/plugalloc.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "allocators.h"
#include "cuda_machine.h"
#include "options.h"
#include "report.h"
#include "server.h"
#include "sim_machine.h"

namespace {

using server::CudaDriver;

/// The driver, or null where the simulated device is asked for, or is all there is.
std::shared_ptr<CudaDriver> openDriver(const std::string& device) {
  if (device == "sim") {
    return nullptr;
  }
  try {
    return std::make_shared<CudaDriver>();
  } catch (const server::CudaError& error) {
    if (device == "cuda") {
      throw;
    }
    std::fprintf(stderr, "cpp_server: %s; using the simulated device\n", error.what());
    return nullptr;
  }
}

server::Source sourceOnGpu(const server::Options& options,
                           const std::shared_ptr<CudaDriver>& driver) {
  if (options.allocator == "cudaMalloc") {
    return server::makeCudaMalloc(driver);
  }
  if (options.allocator == "cudaMallocAsync") {
    return server::makeCudaMallocAsync(driver, options.keep);
  }
  return server::makePlugalloc("cuda", options.conf);
}

server::Source sourceOnSim(const server::Options& options) {
  if (options.allocator == "cudaMalloc") {
    return server::makeUncachedSim();
  }
  if (options.allocator == "cudaMallocAsync") {
    throw plugalloc::UnsupportedError("--allocator cudaMallocAsync", "the simulated device",
                                      "it has no memory pools; use plugalloc or cudaMalloc");
  }
  return server::makePlugalloc("sim", options.conf);
}

int run(server::Options options) {
  const std::shared_ptr<CudaDriver> driver = openDriver(options.device);
  server::settle(options.load, driver != nullptr);
  const server::Source source =
      driver != nullptr ? sourceOnGpu(options, driver) : sourceOnSim(options);
  const std::unique_ptr<server::Machine> machine = driver != nullptr
                                                       ? server::makeCudaMachine(driver)
                                                       : server::makeSimMachine(source.allocator);
  plugalloc::changeCurrentAllocator(source.allocator);

  const server::Result result =
      server::serve(*machine, *plugalloc::getCurrentAllocator(), options.load);
  const server::Setting setting{options.allocator, machine->kind(), machine->name(),
                                source.reserved_peak()};
  (options.json ? server::printJson : server::printText)(setting, options.load, result);
  if (std::fflush(stdout) != 0) {
    std::fputs("cpp_server: the result cannot be written\n", stderr);
    return EXIT_FAILURE;
  }
  if (result.wrong > 0 || result.not_given_back != 0) {
    std::fprintf(stderr, "cpp_server: %llu wrong results, %lld allocations left\n",
                 static_cast<unsigned long long>(result.wrong),
                 static_cast<long long>(result.not_given_back));
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(server::parse(count, values));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cpp_server: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
