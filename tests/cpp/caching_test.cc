// The caching allocator over the simulator.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::shared_ptr<CUDAAllocator> makeSim(std::size_t capacity = 256 * kMiB, int devices = 1) {
  Options options;
  options.device = "sim";
  options.sim_capacity = capacity;
  options.sim_devices = devices;
  return createCachingAllocator(options);
}

cudaStream_t streamOf(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

}  // namespace

TEST_CASE("ReusesFreedMemoryOfTheSameStream") {
  const auto allocator = makeSim();
  void* const first = allocator->raw_alloc_with_stream(3 * kMiB, streamOf(1));
  REQUIRE(first != nullptr);
  allocator->raw_delete(first);
  void* const second = allocator->raw_alloc_with_stream(3 * kMiB, streamOf(1));
  CHECK(first == second);
  allocator->raw_delete(second);
}

TEST_CASE("SimulatedMemoryCanBeWritten") {
  const auto allocator = makeSim();
  const DataPtr data = allocator->allocate(kMiB);
  std::memset(data.get(), 0x5a, kMiB);
  const DataPtr copy = allocator->clone(data.get(), kMiB);
  CHECK(copy.get() != data.get());
  CHECK(std::memcmp(copy.get(), data.get(), kMiB) == 0);
}

TEST_CASE("OutOfMemoryCarriesNumbers") {
  const auto allocator = makeSim(64 * kMiB);
  void* const block = allocator->raw_alloc(40 * kMiB);
  try {
    (void)allocator->raw_alloc(100 * kMiB);
    FAIL("100 MiB of 64");
  } catch (const OutOfMemoryError& error) {
    CHECK(error.requested == 100 * kMiB);
    CHECK(error.device == 0);
    CHECK(error.total == 64 * kMiB);
    CHECK(error.limit == 64 * kMiB);
    CHECK(error.allocated == 40 * kMiB);
    CHECK(error.reserved >= error.allocated);
    CHECK(error.free <= 24 * kMiB);
    CHECK(std::string(error.what()).find("CUDA out of memory") != std::string::npos);
  }
  CHECK(allocator->getDeviceStats(0).num_ooms == 1);
  allocator->raw_delete(block);
}

TEST_CASE("RequestsOfAnExbibyteAreOutOfMemory") {
  const auto allocator = makeSim();
  CHECK_THROWS_AS((void)allocator->raw_alloc(std::size_t{1} << 60), OutOfMemoryError);
  CHECK_THROWS_AS((void)allocator->raw_alloc(std::size_t{1} << 60), SizeTooLargeError);
}

TEST_CASE("BadPointersAreToldApart") {
  const auto allocator = makeSim();
  void* const block = allocator->raw_alloc(4096);
  const auto kindOf = [&](void* pointer) {
    try {
      allocator->raw_delete(pointer);
    } catch (const InvalidPointerError& error) {
      CHECK(error.address == reinterpret_cast<std::uintptr_t>(pointer));
      CHECK(std::string(error.what()).find("Trying to free a pointer not allocated here") == 0);
      return error.kind;
    }
    throw std::runtime_error("was accepted");
  };
  CHECK(kindOf(static_cast<char*>(block) + 512) == PointerFault::Interior);
  allocator->raw_delete(block);
  CHECK(kindOf(block) == PointerFault::DoubleFree);
  int local = 0;
  CHECK(kindOf(&local) == PointerFault::Foreign);
  allocator->raw_delete(nullptr);
}

TEST_CASE("BadNumbersAndNullAreTold") {
  const auto allocator = makeSim();
  CHECK_THROWS_WITH_AS(allocator->cacheInfo(0, nullptr),
                       "invalid largest_block null; expected a number to raise",
                       InvalidArgumentError);
  CHECK_THROWS_WITH_AS(allocator->init(-1), "invalid device_count -1; expected 0 or more",
                       InvalidArgumentError);
  CHECK_FALSE(allocator->initialized());
  CHECK_THROWS_AS((void)makeSim(std::size_t(-1)), InvalidArgumentError);
}

TEST_CASE("BadPointersAreToldWithWhatWasAskedFor") {
  const auto allocator = std::dynamic_pointer_cast<CachingAllocator>(makeSim());
  int local = 0;
  const auto check = [](PointerUse purpose, const char* begin, const auto& call) {
    try {
      call();
      FAIL("was accepted");
    } catch (const InvalidPointerError& error) {
      CHECK(error.purpose == purpose);
      CHECK(std::string(error.what()).find(begin) == 0);
    }
  };
  check(PointerUse::Free, "Trying to free a pointer", [&] { allocator->raw_delete(&local); });
  check(PointerUse::Base, "Trying to find the memory around a pointer",
        [&] { (void)allocator->getBaseAllocation(&local, nullptr); });
  check(PointerUse::Pin, "Trying to pin a pointer", [&] { (void)allocator->pinMemory(&local); });
  check(PointerUse::Share, "Trying to share a pointer",
        [&] { (void)allocator->shareIpcHandle(&local); });
  DataPtr data = allocator->allocate(512);
  allocator->raw_delete(data.get());
  check(PointerUse::RecordStream, "Trying to record a stream for a pointer",
        [&] { allocator->recordStream(data, reinterpret_cast<cudaStream_t>(std::uintptr_t{2})); });
  (void)data.release_context();
}

TEST_CASE("StatisticsCountCallsAndBytes") {
  const auto allocator = makeSim();
  void* const small = allocator->raw_alloc(1000);
  void* const large = allocator->raw_alloc(3 * kMiB);
  DeviceStats stats = allocator->getDeviceStats(0);
  const auto all = static_cast<std::size_t>(StatType::AGGREGATE);
  CHECK(stats.allocation[all].current == 2);
  CHECK(stats.requested_bytes[all].current == static_cast<std::int64_t>(1000 + 3 * kMiB));
  allocator->raw_delete(small);
  allocator->raw_delete(large);
  allocator->resetPeakStats(0);
  allocator->resetAccumulatedStats(0);
  stats = allocator->getDeviceStats(0);
  CHECK(stats.allocation[all].peak == 0);
  CHECK(stats.allocation[all].freed == 0);
  CHECK_THROWS_AS((void)allocator->getDeviceStats(7), InvalidDeviceError);
}

TEST_CASE("EmptyCacheGivesEverythingBack") {
  const auto allocator = makeSim();
  allocator->raw_delete(allocator->raw_alloc(32 * kMiB));
  std::size_t largest = 1;
  allocator->cacheInfo(0, &largest);
  CHECK(largest >= 32 * kMiB);
  CHECK(allocator->getMemoryInfo(0).first < 256 * kMiB);
  allocator->emptyCache();
  CHECK(allocator->getMemoryInfo(0) == std::make_pair(256 * kMiB, 256 * kMiB));
}

TEST_CASE("MemoryFractionLimits") {
  const auto allocator = makeSim();
  CHECK(allocator->getMemoryFraction(0) == 1.0);
  allocator->setMemoryFraction(0.5, 0);
  CHECK_THROWS_AS((void)allocator->raw_alloc(200 * kMiB), OutOfMemoryError);
  allocator->setMemoryFraction(1.0, 0);
  allocator->raw_delete(allocator->raw_alloc(200 * kMiB));
  CHECK_THROWS_AS(allocator->setMemoryFraction(2.0, 0), InvalidArgumentError);
}

TEST_CASE("AllocatesOnTheCurrentDevice") {
  const auto allocator = makeSim(64 * kMiB, 2);
  const DeviceGuard guard(1);
  const DataPtr data = allocator->allocate(kMiB);
  CHECK(data.device() == Device{DeviceType::CUDA, 1});
  CHECK(allocator->getDeviceStats(1).allocation[0].current == 1);
  CHECK(allocator->getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("ThreadsOnTheirOwnStreams") {
  const auto allocator = makeSim();
  std::vector<std::thread> threads;
  for (std::uintptr_t number = 1; number <= 4; ++number) {
    threads.emplace_back([&allocator, number] {
      const StreamGuard guard(streamOf(number));
      for (std::size_t round = 0; round < 500; ++round) {
        const DataPtr data = allocator->allocate(512 + round * 300);
        std::memset(data.get(), static_cast<int>(number), 512);
      }
    });
  }
  std::for_each(threads.begin(), threads.end(), [](std::thread& thread) { thread.join(); });
  CHECK(allocator->getDeviceStats(0).allocation[0].allocated == 2000);
  CHECK(allocator->getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("ErrorsAtTheEndOfAThreadAreExceptionsToo") {
  const auto allocator = makeSim();
  int caught = 0;
  std::thread thread([&] {
    struct Last {
      std::function<void()> body;
      ~Last() { body(); }
    };
    const auto fail = [&] {
      try {
        (void)allocator->raw_alloc(512 * kMiB);
      } catch (const OutOfMemoryError&) {
        ++caught;
      }
    };
    // Made before the library has values of its own in this thread, so that it outlives them.
    static thread_local Last last{fail};
    (void)&last;
    fail();
  });
  thread.join();
  CHECK(caught == 2);
}

TEST_CASE("OptionsAreChecked") {
  Options options;
  options.device = "abacus";
  CHECK_THROWS_AS((void)createCachingAllocator(options), InvalidArgumentError);
  options.device = "\xff";
  CHECK_THROWS_AS((void)createCachingAllocator(options), InvalidArgumentError);
  options.device = "sim";
  options.conf = "\xff:1";
  CHECK_THROWS_AS((void)createCachingAllocator(options), ConfigError);
  options.conf.clear();
  options.sim_devices = -1;
  CHECK_THROWS_AS((void)createCachingAllocator(options), InvalidArgumentError);
  options.sim_devices = 1;
  options.conf = "expandable_segments:True,no_such_key:1";
  try {
    (void)createCachingAllocator(options);
    FAIL("an unknown key");
  } catch (const ConfigError& error) {
    CHECK(error.key == "no_such_key");
    CHECK(error.position == 25);
  }
}

TEST_CASE("CudaWithoutAGpuIsATypedErrorAndAutoFallsBack") {
  Options options;
  options.device = "cuda";
  try {
    (void)createCachingAllocator(options);
    MESSAGE("there is a GPU");
  } catch (const DeviceError& error) {
    CHECK(error.kind == DeviceErrorKind::NoDevice);
    options.device = "auto";
    options.sim_capacity = 64 * kMiB;
    CHECK(createCachingAllocator(options)->getMemoryInfo(0).second == 64 * kMiB);
  }
}
