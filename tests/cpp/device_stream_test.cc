// Streams of an allocator's device, on the simulator.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <future>
#include <string>
#include <thread>
#include <vector>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::shared_ptr<CUDAAllocator> makeSim(int devices = 1) {
  Options options;
  options.device = "sim";
  options.sim_capacity = 256 * kMiB;
  options.sim_devices = devices;
  return createCachingAllocator(options);
}

/// Keeps a stream busy until it is released, in a thread of its own: work of the simulator runs in
/// the thread of a caller.
class Busy {
 public:
  explicit Busy(DeviceStream& stream) : thread_([this, &stream] { occupy(stream); }) {
    started_.get_future().wait();
  }
  ~Busy() { release(); }
  void release() {
    if (thread_.joinable()) {
      released_.set_value();
      thread_.join();
    }
  }

 private:
  void occupy(DeviceStream& stream) {
    stream.launchHostFunc([this] {
      started_.set_value();
      released_.get_future().wait();
    });
  }

  std::promise<void> started_;
  std::promise<void> released_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("FunctionsRunOnceInTheOrderOfTheirStream") {
  const auto allocator = makeSim();
  DeviceStream stream(*allocator);
  const StreamGuard guard(stream.get());
  const DataPtr data = allocator->allocate(kMiB);
  std::vector<int> seen;
  for (int value = 1; value <= 3; ++value) {
    stream.launchHostFunc([&seen, value, bytes = static_cast<unsigned char*>(data.get())] {
      seen.push_back(bytes[kMiB - 1]);
      std::memset(bytes, value, kMiB);
    });
  }
  stream.synchronize();
  REQUIRE(seen.size() == 3);
  CHECK(seen[1] == 1);
  CHECK(seen[2] == 2);
  CHECK(static_cast<unsigned char*>(data.get())[0] == 3);
}

TEST_CASE("AStreamWaitsForWhatWasQueuedOnAnother") {
  const auto allocator = makeSim();
  DeviceStream first(*allocator);
  DeviceStream second(*allocator);
  CHECK(first.get() != second.get());
  bool ran = false;
  Busy busy(first);
  second.waitFor(first);
  second.launchHostFunc([&ran] { ran = true; });
  CHECK_FALSE(ran);
  busy.release();
  second.synchronize();
  CHECK(ran);
}

TEST_CASE("MemoryInUseOnAnotherStreamIsNotHandedOut") {
  const auto allocator = makeSim();
  DeviceStream own(*allocator);
  DeviceStream other(*allocator);
  const StreamGuard guard(own.get());
  Busy busy(other);
  DataPtr shared = allocator->allocate(3 * kMiB);
  const void* const address = shared.get();
  allocator->recordStream(shared, other.get());
  shared.clear();
  DataPtr next = allocator->allocate(3 * kMiB);
  CHECK(next.get() != address);
  CHECK(allocator->getDeviceStats(0).active[0].current == 2);
  busy.release();
  next.clear();
  allocator->emptyCache();
  CHECK(allocator->getDeviceStats(0).active[0].current == 0);
  CHECK(allocator->getMemoryInfo(0).first == 256 * kMiB);
}

TEST_CASE("MemoryOfADestroyedStreamServesAnother") {
  const auto allocator = makeSim();
  {
    DeviceStream gone(*allocator);
    const StreamGuard guard(gone.get());
    allocator->allocate(200 * kMiB).clear();
  }
  DeviceStream next(*allocator);
  const StreamGuard guard(next.get());
  CHECK(static_cast<bool>(allocator->allocate(200 * kMiB)));
  CHECK(allocator->getDeviceStats(0).num_alloc_retries == 0);
}

TEST_CASE("AStreamKeepsItsDevice") {
  auto allocator = makeSim(2);
  DeviceStream stream(*allocator, 1);
  CHECK(stream.device() == 1);
  allocator.reset();
  bool ran = false;
  stream.launchHostFunc([&ran] { ran = true; });
  stream.synchronize();
  CHECK(ran);
}

TEST_CASE("OnAGpuTheSameHolds") {
  Options options;
  options.device = "cuda";
  std::shared_ptr<CUDAAllocator> allocator;
  try {
    allocator = createCachingAllocator(options);
  } catch (const DeviceError& error) {
    CHECK(error.kind == DeviceErrorKind::NoDevice);
    MESSAGE("skipped: ", std::string(error.what()));
    return;
  }
  DeviceStream first(*allocator);
  DeviceStream second(*allocator);
  std::promise<void> released;
  std::atomic<bool> ran{false};
  first.launchHostFunc([&released] { released.get_future().wait(); });
  second.waitFor(first);
  second.launchHostFunc([&ran] { ran = true; });
  const StreamGuard guard(first.get());
  DataPtr shared = allocator->allocate(3 * kMiB);
  const void* const address = shared.get();
  allocator->recordStream(shared, second.get());
  shared.clear();
  const DataPtr next = allocator->allocate(3 * kMiB);
  CHECK(next.get() != address);
  CHECK_FALSE(ran);
  released.set_value();
  second.synchronize();
  CHECK(ran);
}

TEST_CASE("WhatCannotBeIsTypedErrors") {
  const auto allocator = makeSim(2);
  DeviceStream stream(*allocator);
  CHECK_THROWS_AS(stream.launchHostFunc({}), InvalidArgumentError);
  CHECK_THROWS_AS(DeviceStream(*allocator, 2), InvalidDeviceError);
  const DeviceStream elsewhere(*allocator, 1);
  CHECK_THROWS_AS(stream.waitFor(elsewhere), InvalidArgumentError);
  const auto custom = createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); });
  try {
    const DeviceStream none(*custom);
    FAIL("user functions have no streams");
  } catch (const UnsupportedError& error) {
    CHECK(error.operation == "DeviceStream");
    CHECK(error.by == "pluggable");
  }
}
