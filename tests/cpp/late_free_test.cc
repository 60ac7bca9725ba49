// An allocator that goes away while a free of its last allocation is under way on another thread:
// the free, which is over as the statistics have it, still finds the engine.
#include <plugalloc/plugalloc.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

namespace {

enum Stage { kBefore, kInside, kGone };
std::atomic<Stage> stage{kBefore};
thread_local bool waits = false;

void waitFor(Stage wanted) {
  while (stage != wanted) {
    std::this_thread::yield();
  }
}

}  // namespace

/// In place of the system library's: a free of shared memory closes what was shared in the middle.
extern "C" int close(int descriptor) {
  if (waits) {
    waits = false;
    stage = kInside;
    waitFor(kGone);
  }
  return static_cast<int>(syscall(SYS_close, descriptor));
}

int main() {
  plugalloc::Options options;
  options.device = "sim";
  auto allocator = plugalloc::createCachingAllocator(options);
  plugalloc::DataPtr data = allocator->allocate(4 << 20);
  (void)allocator->shareIpcHandle(data.get());
  std::thread thread([&data] {
    waits = true;
    data.clear();
    waits = false;
  });
  waitFor(kInside);
  const bool counted = allocator->getDeviceStats(0).allocation[0].current == 0;
  allocator.reset();
  stage = kGone;
  thread.join();
  std::puts(counted ? "freed" : "the free was not seen in the middle");
  return counted ? 0 : 1;
}
