// Serves the same load with two allocators behind one interface: user functions (here malloc, as
// other servers' cudaMalloc), and plugalloc's caching allocator.
//
//     cpp_server [--workers N] [--requests N] [--device auto|cuda|sim]
#include <plugalloc/plugalloc.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "server.h"

namespace {

struct Arguments {
  server::Load load;
  std::string device = "auto";
};

Arguments parse(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i + 1 < count; i += 2) {
    if (std::strcmp(values[i], "--workers") == 0) {
      arguments.load.workers = std::atoi(values[i + 1]);
    } else if (std::strcmp(values[i], "--requests") == 0) {
      arguments.load.requests = std::atoi(values[i + 1]);
    } else if (std::strcmp(values[i], "--device") == 0) {
      arguments.device = values[i + 1];
    } else {
      std::fprintf(stderr, "unknown argument %s\n", values[i]);
      std::exit(2);
    }
  }
  return arguments;
}

void report(plugalloc::CUDAAllocator& allocator, const server::Result& result) {
  const plugalloc::DeviceStats stats = allocator.getDeviceStats(0);
  constexpr double kMiB = 1 << 20;
  std::printf("%-10s %8.0f requests/s %12.0f allocations/s %6llu refused", allocator.name(),
              static_cast<double>(result.requests) / result.seconds,
              static_cast<double>(result.allocations) / result.seconds,
              static_cast<unsigned long long>(result.refused));
  std::printf("   live peak %.0f MiB, reserved peak %.0f MiB\n",
              static_cast<double>(stats.requested_bytes[0].peak) / kMiB,
              static_cast<double>(stats.reserved_bytes[0].peak) / kMiB);
}

void serveWith(const std::shared_ptr<plugalloc::CUDAAllocator>& allocator,
               const server::Load& load) {
  plugalloc::changeCurrentAllocator(allocator);
  report(*plugalloc::getCurrentAllocator(), server::serve(*plugalloc::getCurrentAllocator(), load));
}

}  // namespace

int main(int count, char** values) {
  const Arguments arguments = parse(count, values);
  try {
    serveWith(plugalloc::createCustomAllocator(
                  [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
                  [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); }),
              arguments.load);
    plugalloc::Options options;
    options.device = arguments.device;
    serveWith(plugalloc::createCachingAllocator(options), arguments.load);
  } catch (const plugalloc::Error& error) {
    std::fprintf(stderr, "cpp_server: %s\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
