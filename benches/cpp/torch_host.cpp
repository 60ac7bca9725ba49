// PyTorch's own library, through its C++ interface.
//
//     torch_host --mode native|dataptr|pluggable [--suite ...] [--name NAME]
//
// Its options come from PYTORCH_ALLOC_CONF, as always. `pluggable` needs libtorch_cuda, and is
// there when the program was compiled with WITH_PLUGGABLE.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "suite.hpp"

#ifdef WITH_PLUGGABLE
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include "free_list.hpp"
#endif

namespace {

namespace caching = c10::cuda::CUDACachingAllocator;
using bench::Stream;

std::shared_ptr<c10::GatheredContext> gather() { return std::make_shared<c10::GatheredContext>(); }

struct Torch {
  static constexpr bool kHasStatistics = true;
  void* alloc(std::size_t bytes, Stream stream) {
    return caching::raw_alloc_with_stream(bytes, stream);
  }
  void free(void* pointer, std::size_t, Stream) { caching::raw_delete(pointer); }
  void enterThread() { (void)cudaSetDevice(0); }
  void readStatistics() { (void)caching::getDeviceStats(0); }
  void recordHistory(bool on, bool contexts) {
    caching::recordHistory(on, contexts ? &gather : nullptr, 100000,
                           contexts ? caching::RecordContext::ALL : caching::RecordContext::NEVER,
                           true, {});
  }
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

void dataPtrSuite(const bench::CommandLine& line, const bench::Report& report) {
  c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromExternal(makeStreams(1)[0], 0));
  caching::CUDAAllocator* const allocator = caching::get();
  for (const std::size_t bytes : bench::kHotSizes) {
    report.time("hot " + bench::sizeName(bytes),
                bench::sampleTime(line.effort, [&](std::uint64_t count) {
                  for (std::uint64_t k = 0; k < count; ++k) {
                    const c10::DataPtr data = allocator->allocate(bytes);
                  }
                }));
  }
}

#ifdef WITH_PLUGGABLE
void usePluggable() {
  namespace pluggable = torch::cuda::CUDAPluggableAllocator;
  pluggable::changeCurrentAllocator(pluggable::createCustomAllocator(
      bench::freeListAlloc<cudaStream_t>, bench::freeListFree<cudaStream_t>));
}
#else
void usePluggable() {
  std::fprintf(stderr, "compiled without libtorch_cuda\n");
  std::exit(1);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const bench::CommandLine line(argc, argv);
  const bench::Report report(line.name.empty() ? "torch " + line.mode : line.name);
  (void)cudaSetDevice(0);
  if (line.mode == "pluggable") {
    usePluggable();
  }
  caching::init(1);
  if (line.mode == "dataptr") {
    dataPtrSuite(line, report);
    return 0;
  }
  Torch client;
  return bench::runSuite(line, report, client, makeStreams) ? 0 : 2;
}
