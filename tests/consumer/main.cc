// What a program does first with an allocator: get one, use it, run out of memory, exchange it.
#include <plugalloc/plugalloc.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#if __has_include(<rust/cxx.h>)
#error "cxx is visible to programs"
#endif

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
int failures = 0;

void expect(bool condition, const char* what) {
  if (!condition) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

void runOutOfMemory(plugalloc::CUDAAllocator& allocator) {
  try {
    void* const block = allocator.raw_alloc(100 * kMiB);
    allocator.raw_delete(block);
    expect(false, "100 MiB of 64 are out of memory");
  } catch (const plugalloc::OutOfMemoryError& error) {
    expect(error.requested == 100 * kMiB, "the error tells what was requested");
    expect(error.total == 64 * kMiB, "the error tells the device's memory");
    expect(error.allocated == 8 * kMiB, "the error tells what is allocated");
    std::printf("%s\n", error.what());
  }
}

}  // namespace

int main() {
  plugalloc::Options options;
  options.device = "sim";
  options.sim_capacity = 64 * kMiB;
  const auto allocator = plugalloc::createCachingAllocator(options);
  plugalloc::changeCurrentAllocator(allocator);

  const auto stream = reinterpret_cast<cudaStream_t>(std::uintptr_t{1});
  void* const block = plugalloc::getCurrentAllocator()->raw_alloc_with_stream(8 * kMiB, stream);
  expect(block != nullptr, "8 MiB fit");
  runOutOfMemory(*allocator);
  allocator->raw_delete(block);
  {
    const plugalloc::StreamGuard guard(stream);
    const plugalloc::DataPtr data = allocator->allocate(8 * kMiB);
    expect(data.get() == block, "freed memory is used again");
  }
  const plugalloc::DeviceStats stats = allocator->getDeviceStats(0);
  expect(stats.allocation[0].allocated == 2, "two allocations were counted");
  expect(stats.num_ooms == 1, "one failure was counted");

  const auto custom = plugalloc::createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); });
  try {
    int local = 0;
    custom->raw_delete(&local);
    expect(false, "a foreign pointer is refused");
  } catch (const plugalloc::InvalidPointerError& error) {
    expect(error.kind == plugalloc::PointerFault::Foreign, "and called foreign");
  }
  std::printf("plugalloc %s, %d failure(s)\n", plugalloc::version(), failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
