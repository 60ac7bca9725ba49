// The hooks of the allocator over user functions, and what it answers without them.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace plugalloc;

namespace {

cudaStream_t streamOf(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

std::shared_ptr<PluggableAllocator> makeMalloc() {
  return std::dynamic_pointer_cast<PluggableAllocator>(createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); }));
}

}  // namespace

TEST_CASE("HooksAreCalledWithTheirArguments") {
  const auto allocator = makeMalloc();
  std::vector<std::string> log;
  allocator->set_init_fn([&](int count) { log.push_back("init " + std::to_string(count)); });
  allocator->set_reset_fn([&] { log.push_back("reset"); });
  allocator->set_memory_fraction_fn([&](double fraction, int device) {
    log.push_back("fraction " + std::to_string(fraction) + " " + std::to_string(device));
  });
  allocator->set_record_stream_fn([&](void*, cudaStream_t stream) {
    log.push_back("stream " + std::to_string(reinterpret_cast<std::uintptr_t>(stream)));
  });
  CHECK_FALSE(allocator->initialized());
  allocator->init(2);
  CHECK(allocator->initialized());
  allocator->emptyCache();
  allocator->setMemoryFraction(0.5, 1);
  CHECK(allocator->getMemoryFraction(1) == 0.5);
  CHECK(allocator->getMemoryFraction(0) == 1.0);
  CHECK_THROWS_AS(allocator->setMemoryFraction(1.5, 0), InvalidArgumentError);
  const DataPtr data = allocator->allocate(8);
  allocator->recordStream(data, streamOf(5));
  allocator->recordStream(DataPtr(), streamOf(6));
  CHECK(log == std::vector<std::string>{"init 2", "reset", "fraction 0.500000 1", "stream 5"});
}

TEST_CASE("PoolHooksUnderBothNames") {
  const auto allocator = makeMalloc();
  const MempoolId_t pool{0, 4};
  std::vector<std::string> log;
  allocator->beginAllocateToPool(0, pool, {});
  allocator->set_begin_allocate_to_pool(
      [&](int device, MempoolId_t id, std::function<bool(cudaStream_t)> filter) {
        log.push_back("begin " + std::to_string(device) + " " + std::to_string(id.second));
        CHECK(filter(streamOf(1)));
      });
  const auto end = [&](int, MempoolId_t) { log.push_back("end"); };
  allocator->set_end_allocate_to_pool(end);
  allocator->set_end_allocate_to_pool_fn(end);
  allocator->set_release_pool([&](int, MempoolId_t) { log.push_back("release"); });
  allocator->beginAllocateToPool(1, pool, [](cudaStream_t) { return true; });
  allocator->endAllocateToPool(1, pool);
  allocator->releasePool(1, pool);
  CHECK(log == std::vector<std::string>{"begin 1 4", "end", "release"});
}

TEST_CASE("BaseAllocationFromHookOrMetadata") {
  const auto allocator = makeMalloc();
  void* const block = allocator->raw_alloc(1234);
  std::size_t size = 0;
  CHECK(allocator->getBaseAllocation(block, &size) == block);
  CHECK(size == 1234);
  CHECK(allocator->getBaseAllocation(block, nullptr) == block);
  int local = 0;
  CHECK_THROWS_AS(allocator->getBaseAllocation(&local, &size), InvalidPointerError);
  int segment = 0;
  allocator->set_base_alloc_fn([&](void*, std::size_t* bytes) -> void* {
    *bytes = 4096;
    return &segment;
  });
  CHECK(allocator->getBaseAllocation(block, &size) == &segment);
  CHECK(size == 4096);
  allocator->raw_delete(block);
}

TEST_CASE("CopiesWithTheUsersFunction") {
  const auto allocator = makeMalloc();
  const int value = 7;
  CHECK_THROWS_AS((void)allocator->clone(&value, sizeof value), UnsupportedError);
  allocator->set_copy_data_fn(
      [](void* dest, const void* src, std::size_t count) { std::memcpy(dest, src, count); });
  const DataPtr copy = allocator->clone(&value, sizeof value);
  CHECK(std::memcmp(copy.get(), &value, sizeof value) == 0);
}

TEST_CASE("AnswersWithoutHooks") {
  const auto allocator = makeMalloc();
  CHECK(std::string(allocator->name()) == "pluggable");
  CHECK(allocator->isEnabled());
  allocator->enable(false);
  CHECK(allocator->isEnabled());
  std::size_t largest = 99;
  allocator->cacheInfo(0, &largest);
  CHECK(largest == 99);
  allocator->emptyCache();
  allocator->init(1);
  CHECK_THROWS_AS((void)allocator->getPoolUseCount(0, {0, 1}), UnsupportedError);
  CHECK_THROWS_AS((void)allocator->getMemoryInfo(0), UnsupportedError);
}

TEST_CASE("StatisticsAreExact") {
  const auto allocator = makeMalloc();
  std::vector<void*> blocks;
  for (std::size_t i = 1; i <= 8; ++i) {
    blocks.push_back(allocator->raw_alloc(i << 18));
  }
  for (std::size_t i = 0; i < 3; ++i) {
    allocator->raw_delete(blocks[i]);
  }
  const DeviceStats stats = allocator->getDeviceStats(0);
  CHECK(stats.allocation[0].current == 5);
  CHECK(stats.allocation[0].peak == 8);
  CHECK(stats.allocation[0].allocated == 8);
  CHECK(stats.allocation[0].freed == 3);
  CHECK(stats.allocated_bytes[0].peak == std::int64_t{36} << 18);
  CHECK(stats.allocated_bytes[0].current == std::int64_t{30} << 18);
  CHECK(stats.allocated_bytes[0].freed == std::int64_t{6} << 18);
  CHECK(stats.allocated_bytes[1].allocated == std::int64_t{10} << 18);
  for (std::size_t i = 3; i < 8; ++i) {
    allocator->raw_delete(blocks[i]);
  }
}
