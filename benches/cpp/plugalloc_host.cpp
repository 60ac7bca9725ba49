// Plugalloc through its C++ interface, and the host's heap for the limit.
//
//     plugalloc_host --mode calls|dataptr|pluggable|malloc [--suite ...] [--device auto|cuda|sim]
//     plugalloc_host --mode which-device      prints cuda or sim
//     plugalloc_host --mode pairs N           N hot pairs of 512 bytes and nothing else
//     plugalloc_host --mode replace N [LIVE [KIB [AHEAD]]]
//                                             N replacements among LIVE (512) blocks of up to KIB
//                                             (8192) where AHEAD (0) MiB were in use before
//     plugalloc_host --mode threads N         N threads on streams of their own, and nothing else
//     plugalloc_host --mode shared N          N threads on one stream, and nothing else
//     plugalloc_host --mode turns N           hot pairs on N streams in turn, and nothing else
#include <plugalloc/plugalloc.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "free_list.hpp"
#include "streams.hpp"
#include "suite.hpp"

namespace {

using bench::Stream;

std::shared_ptr<plugalloc::GatheredContext> gather() {
  return std::make_shared<plugalloc::GatheredContext>();
}

/// The virtual calls, through the abstract class.
struct Calls {
  static constexpr bool kHasStatistics = true;
  plugalloc::CUDAAllocator* allocator;

  void* alloc(std::size_t bytes, Stream stream) {
    return allocator->raw_alloc_with_stream(bytes, stream);
  }
  void free(void* pointer, std::size_t, Stream) { allocator->raw_delete(pointer); }
  void enterThread() { plugalloc::setCurrentDevice(0); }
  void readStatistics() { (void)allocator->getDeviceStats(0); }
  void recordHistory(bool on, bool contexts) {
    allocator->recordHistory(
        on, contexts ? &gather : nullptr, 100000,
        contexts ? plugalloc::RecordContext::ALL : plugalloc::RecordContext::NEVER, true, {});
  }
};

/// The host's heap. It has no streams.
struct Malloc {
  static constexpr bool kHasStatistics = false;
  void* alloc(std::size_t bytes, Stream) {
    void* pointer = std::malloc(bytes);
    asm volatile("" : "+r"(pointer));  // The pair is not to be optimised away.
    return pointer;
  }
  void free(void* pointer, std::size_t, Stream) { std::free(pointer); }
  void enterThread() {}
};

std::shared_ptr<plugalloc::CUDAAllocator> open(const std::string& device) {
  plugalloc::Options options;
  options.device = device;
  return plugalloc::createCachingAllocator(options);
}

/// `allocate()` on the current stream: created and dropped.
void dataPtrSuite(const bench::CommandLine& line, plugalloc::CUDAAllocator& allocator,
                  Stream stream) {
  const bench::Report report("plugalloc DataPtr");
  const plugalloc::StreamGuard guard(stream, 0);
  for (const std::size_t bytes : bench::kHotSizes) {
    report.time("hot " + bench::sizeName(bytes),
                bench::sampleTime(line.effort, [&](std::uint64_t count) {
                  for (std::uint64_t k = 0; k < count; ++k) {
                    const plugalloc::DataPtr data = allocator.allocate(bytes);
                  }
                }));
  }
}

int runPairs(const bench::CommandLine& line) {
  plugalloc::Options options;
  options.device = "sim";
  options.sim_capacity = bench::kMiB * 4096;
  const auto allocator = plugalloc::createCachingAllocator(options);
  const Stream stream = bench::makeStreams(false, 1)[0];
  const long count = line.rest.empty() ? 0 : std::strtol(line.rest[0].c_str(), nullptr, 10);
  if (line.mode == "replace") {
    Calls client{allocator.get()};
    const auto number = [&line](std::size_t at, std::size_t otherwise) {
      return at < line.rest.size() ? std::strtoul(line.rest[at].c_str(), nullptr, 10) : otherwise;
    };
    const std::size_t bytes = number(2, 8 * bench::kKiB) * bench::kKiB;
    for (std::size_t ahead = number(3, 0); ahead > 0; ahead = 0) {
      const std::size_t count_ahead = ahead * bench::kMiB / (64 * bench::kKiB);
      const bench::LiveSet<Calls> before(client, stream, 1, count_ahead, 128 * bench::kKiB);
    }
    bench::LiveSet<Calls> set(client, stream, 1, number(1, 512), bytes);
    set.replace(static_cast<std::uint64_t>(count));
    return 0;
  }
  for (long k = 0; k < count; ++k) {
    allocator->raw_delete(allocator->raw_alloc_with_stream(512, stream));
  }
  return 0;
}

int run(const bench::CommandLine& line) {
  if (line.mode == "pairs" || line.mode == "replace") {
    return runPairs(line);
  }
  const bool gpu = line.device != "sim" && bench::Driver::get().present();
  if (line.mode == "which-device") {
    std::puts(gpu ? "cuda" : "sim");
    return 0;
  }
  const bench::MakeStreams streams = [gpu](int n) { return bench::makeStreams(gpu, n); };
  if (line.mode == "malloc") {
    Malloc client;
    return bench::runSuite(line, bench::Report("glibc malloc"), client, streams) ? 0 : 2;
  }
  if (line.mode == "pluggable") {
    const auto allocator = plugalloc::createCustomAllocator(
        bench::freeListAlloc<cudaStream_t>, bench::freeListFree<cudaStream_t>);
    Calls client{allocator.get()};
    return bench::runSuite(line, bench::Report("plugalloc pluggable"), client, streams) ? 0 : 2;
  }
  const auto allocator = open(line.device);
  if (line.mode == "dataptr") {
    dataPtrSuite(line, *allocator, streams(1)[0]);
    return 0;
  }
  Calls client{allocator.get()};
  const bench::Report report("plugalloc C++");
  if (line.mode == "threads" || line.mode == "shared") {
    const int count = line.rest.empty() ? 1 : std::atoi(line.rest[0].c_str());
    const auto own = streams(line.mode == "threads" ? count : 1);
    report.rate(line.mode, bench::threadsRate(line.effort, client, own, count));
    return 0;
  }
  if (line.mode == "turns") {
    const int count = line.rest.empty() ? 1 : std::atoi(line.rest[0].c_str());
    // As in the growth suite, the peak was reached before.
    { const bench::LiveSet<Calls> high(client, streams(1)[0], 1, 100000, 64 * bench::kKiB); }
    report.time(line.mode, bench::hotInTurn(line.effort, client, streams(count)));
    return 0;
  }
  return bench::runSuite(line, report, client, streams) ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(bench::CommandLine(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "plugalloc_host: %s\n", error.what());
    return 1;
  }
}
