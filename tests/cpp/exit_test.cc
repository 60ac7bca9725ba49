// A process may end with live memory, live threads' values and live allocators: nothing is torn
// down, and deleters that run among the last destructors still work.
#include <plugalloc/plugalloc.h>

#include <cstdio>
#include <memory>
#include <utility>

namespace {

/// Destroyed after main, in an order that nobody controls.
plugalloc::DataPtr early;
std::shared_ptr<plugalloc::CUDAAllocator> allocator;

void freeWhatIsNotOurs() {
  int local = 0;
  try {
    allocator->raw_delete(&local);
  } catch (const plugalloc::InvalidPointerError&) {
    std::puts("refused");
  }
}

/// Meets an error when what the library keeps for the main thread has ended.
struct Late {
  ~Late() { freeWhatIsNotOurs(); }
};

Late late_error;
plugalloc::DataPtr late;

}  // namespace

int main() {
  plugalloc::Options options;
  options.device = "sim";
  allocator = plugalloc::createCachingAllocator(options);
  plugalloc::changeCurrentAllocator(allocator);
  early = allocator->allocate(1 << 20);
  late = plugalloc::getCurrentAllocator()->allocate(512);
  (void)allocator->raw_alloc(4096);
  freeWhatIsNotOurs();
  std::puts("leaving with live memory");
  return 0;
}
