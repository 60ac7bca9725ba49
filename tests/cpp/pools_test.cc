// Private pools of the caching allocator, as a framework uses them.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstring>
#include <stdexcept>
#include <thread>
#include <unordered_set>
#include <vector>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
const MempoolId_t kPool{0, 3};

std::shared_ptr<CUDAAllocator> makeSim(std::size_t capacity = 256 * kMiB) {
  Options options;
  options.device = "sim";
  options.sim_capacity = capacity;
  return createCachingAllocator(options);
}

cudaStream_t streamOf(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

bool always(cudaStream_t) { return true; }

}  // namespace

TEST_CASE("APoolOfOneThread") {
  const auto allocator = makeSim();
  const auto mine = std::this_thread::get_id();
  allocator->beginAllocateToPool(
      0, kPool, [mine](cudaStream_t) { return std::this_thread::get_id() == mine; });
  void* const inside = allocator->raw_alloc(kMiB);
  void* outside = nullptr;
  std::thread([&] { outside = allocator->raw_alloc(kMiB); }).join();
  CHECK(allocator->checkPoolLiveAllocations(0, kPool, {inside}));
  CHECK_FALSE(allocator->checkPoolLiveAllocations(0, kPool, {inside, outside}));
  CHECK_FALSE(allocator->checkPoolLiveAllocations(0, kPool, {}));
  allocator->endAllocateToPool(0, kPool);
  allocator->raw_delete(inside);
  allocator->raw_delete(outside);
  CHECK(allocator->getPoolUseCount(0, kPool) == 1);
  allocator->releasePool(0, kPool);
  CHECK(allocator->getPoolUseCount(0, kPool) == 0);
}

TEST_CASE("MemoryOfAPoolInUseStays") {
  const auto allocator = makeSim(64 * kMiB);
  allocator->beginAllocateToPool(0, {1, 0}, always);
  void* const block = allocator->raw_alloc(40 * kMiB);
  std::memset(block, 0x5a, 40 * kMiB);
  allocator->raw_delete(block);
  allocator->endAllocateToPool(0, {1, 0});
  allocator->emptyCache();
  allocator->emptyCache({1, 0});
  CHECK_THROWS_AS((void)allocator->raw_alloc(40 * kMiB), OutOfMemoryError);
  CHECK(static_cast<unsigned char*>(block)[40 * kMiB - 1] == 0x5a);
  allocator->releasePool(0, {1, 0});
  void* const other = allocator->raw_alloc(60 * kMiB);
  allocator->raw_delete(other);
  allocator->emptyCache();
  CHECK(allocator->getMemoryInfo(0).first == 64 * kMiB);
}

TEST_CASE("WhatIsNotThere") {
  const auto allocator = makeSim();
  // As in PyTorch, whose pools are emptied after they were released.
  allocator->emptyCache({7, 7});
  CHECK(allocator->snapshot({7, 7}).segments.empty());
  CHECK_THROWS_AS(allocator->markCaptureEnd(0), InvalidArgumentError);
  allocator->markCaptureBegin(0);
  allocator->markCaptureEnd(0);
}

TEST_CASE("AFilterThatThrowsFailsTheAllocation") {
  const auto allocator = makeSim();
  bool broken = true;
  allocator->beginAllocateToPool(0, kPool, [&broken](cudaStream_t) {
    if (broken) {
      throw std::runtime_error("the filter is broken");
    }
    return true;
  });
  CHECK_THROWS_WITH_AS((void)allocator->raw_alloc(kMiB),
                       "the program's pool filter threw: the filter is broken", CallbackError);
  broken = false;
  allocator->raw_delete(allocator->raw_alloc(kMiB));
  allocator->endAllocateToPool(0, kPool);
  allocator->releasePool(0, kPool);
  CHECK_THROWS_AS(allocator->beginAllocateToPool(0, kPool, nullptr), InvalidArgumentError);
}

TEST_CASE("MisuseOfPoolsIsTold") {
  const auto allocator = makeSim();
  CHECK_THROWS_AS(allocator->releasePool(0, kPool), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->endAllocateToPool(0, kPool), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->setNoSplit(0, kPool), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->setUseOnOOM(0, kPool, true), InvalidArgumentError);
  CHECK_NOTHROW(allocator->setUseOnOOM(0, kPool, false));
  CHECK_THROWS_AS((void)allocator->checkPoolLiveAllocations(0, kPool, {}), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->createOrIncrefPool(5, kPool), InvalidDeviceError);
  CHECK_THROWS_AS(allocator->createOrIncrefPool(0, {0, 0}), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->createOrIncrefPool(0, kPool, allocator), InvalidArgumentError);
  CHECK(allocator->getPoolUseCount(0, kPool) == 0);
}

TEST_CASE("APoolOverAnotherAllocator") {
  const auto allocator = makeSim();
  const auto segments = makeSim();
  allocator->createOrIncrefPool(0, kPool, segments);
  allocator->beginAllocateToPool(0, kPool, always);
  void* const first = allocator->raw_alloc_with_stream(3 * kMiB, streamOf(4));
  void* const second = allocator->raw_alloc_with_stream(3 * kMiB, streamOf(4));
  allocator->endAllocateToPool(0, kPool);
  CHECK(segments->getDeviceStats(0).allocation[0].current == 1);
  CHECK(segments->getDeviceStats(0).requested_bytes[0].current ==
        static_cast<std::int64_t>(20 * kMiB));
  CHECK(allocator->getMemoryInfo(0).first == 256 * kMiB);
  std::memset(first, 1, 3 * kMiB);
  allocator->raw_delete(first);
  allocator->raw_delete(second);
  CHECK_THROWS_AS(allocator->createOrIncrefPool(0, kPool, segments), InvalidArgumentError);
  allocator->releasePool(0, kPool);
  allocator->releasePool(0, kPool);
  allocator->emptyCache(kPool);
  CHECK(segments->getDeviceStats(0).allocation[0].current == 0);
  CHECK(segments.use_count() == 1);
}

TEST_CASE("DeletersGiveToThePoolAndNotToWhoLentItsMemory") {
  // Whichever of the two is older.
  const auto one = makeSim();
  const auto two = makeSim();
  for (const auto& [allocator, segments] : {std::pair(one, two), std::pair(two, one)}) {
    allocator->createOrIncrefPool(0, kPool, segments);
    allocator->beginAllocateToPool(0, kPool, always);
    DataPtr data = allocator->allocate(1000);
    allocator->endAllocateToPool(0, kPool);
    CHECK(segments->getDeviceStats(0).allocation[0].current == 1);
    data.clear();
    CHECK(allocator->getDeviceStats(0).allocation[0].current == 0);
    CHECK(segments->getDeviceStats(0).allocation[0].current == 1);
    allocator->releasePool(0, kPool);
    allocator->releasePool(0, kPool);
    allocator->emptyCache(kPool);
    CHECK(segments->getDeviceStats(0).allocation[0].current == 0);
  }
}

TEST_CASE("UnsplitSegmentsAndUseBeforeFailing") {
  const auto allocator = makeSim(64 * kMiB);
  allocator->createOrIncrefPool(0, kPool);
  allocator->setNoSplit(0, kPool);
  allocator->beginAllocateToPool(0, kPool, always);
  void* const small = allocator->raw_alloc(100);
  void* const large = allocator->raw_alloc(40 * kMiB);
  allocator->endAllocateToPool(0, kPool);
  std::size_t bytes = 0;
  CHECK(allocator->getBaseAllocation(small, &bytes) == small);
  CHECK(bytes == 2 * kMiB);
  allocator->raw_delete(large);
  CHECK_THROWS_AS((void)allocator->raw_alloc(30 * kMiB), OutOfMemoryError);
  allocator->setUseOnOOM(0, kPool, true);
  void* const served = allocator->raw_alloc(30 * kMiB);
  CHECK(served == large);
  allocator->raw_delete(served);
  allocator->raw_delete(small);
  allocator->releasePool(0, kPool);
  allocator->releasePool(0, kPool);
}
