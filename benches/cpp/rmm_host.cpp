// RAPIDS RMM's memory resources. They take memory from cudaMalloc, so this needs a GPU.
//
//     rmm_host --mode pool|arena|binning [--suite ...]
#include <cuda_runtime_api.h>

#include <rmm/cuda_stream_view.hpp>
#include <rmm/mr/arena_memory_resource.hpp>
#include <rmm/mr/binning_memory_resource.hpp>
#include <rmm/mr/cuda_memory_resource.hpp>
#include <rmm/mr/pool_memory_resource.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "suite.hpp"

namespace {

using bench::Stream;

constexpr std::size_t kPoolBytes = std::size_t{16} << 30;
constexpr std::size_t kAlignment = 256;

template <typename Resource>
struct Rmm {
  static constexpr bool kHasStatistics = false;
  Resource& resource;

  void* alloc(std::size_t bytes, Stream stream) {
    return resource.allocate(rmm::cuda_stream_view{stream}, bytes, kAlignment);
  }
  void free(void* pointer, std::size_t bytes, Stream stream) {
    resource.deallocate(rmm::cuda_stream_view{stream}, pointer, bytes, kAlignment);
  }
  void enterThread() { (void)cudaSetDevice(0); }
};

std::vector<Stream> makeStreams(int count) {
  std::vector<Stream> streams(static_cast<std::size_t>(count));
  for (Stream& stream : streams) {
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) {
      std::fprintf(stderr, "the runtime makes no stream\n");
      std::exit(1);
    }
  }
  return streams;
}

template <typename Resource>
int run(const bench::CommandLine& line, Resource& resource) {
  Rmm<Resource> client{resource};
  const bench::Report report("rmm " + line.mode);
  return bench::runSuite(line, report, client, makeStreams) ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  const bench::CommandLine line(argc, argv);
  (void)cudaFree(nullptr);
  rmm::mr::cuda_memory_resource device;
  if (line.mode == "pool") {
    rmm::mr::pool_memory_resource pool{device, kPoolBytes};
    return run(line, pool);
  }
  if (line.mode == "arena") {
    rmm::mr::arena_memory_resource arena{device, kPoolBytes};
    return run(line, arena);
  }
  if (line.mode == "binning") {
    rmm::mr::pool_memory_resource pool{device, kPoolBytes};
    // Bins of fixed size for the powers of two from 512 bytes to 8 MiB; the rest goes to the pool.
    rmm::mr::binning_memory_resource binning{pool, 9, 23};
    return run(line, binning);
  }
  std::fprintf(stderr, "unknown mode '%s': pool, arena or binning\n", line.mode.c_str());
  return 2;
}
