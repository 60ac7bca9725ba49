// Checkpoints of private pools, as a framework that keeps several graphs in one pool uses them.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
const MempoolId_t kPool{1, 0};

std::shared_ptr<CUDAAllocator> makeSim() {
  Options options;
  options.device = "sim";
  options.sim_capacity = 256 * kMiB;
  options.sim_devices = 2;
  return createCachingAllocator(options);
}

bool always(cudaStream_t) { return true; }

void nothing(void*) {}

template <typename Value>
bool contains(const std::vector<Value>& all, const Value& value) {
  return std::find(all.begin(), all.end(), value) != all.end();
}

CheckpointFault faultOf(CUDAAllocator& allocator, DeviceIndex device,
                        const std::shared_ptr<AllocatorState>& state) {
  try {
    allocator.setCheckpointPoolState(device, state);
  } catch (const CheckpointError& error) {
    CHECK(error.pool == kPool);
    CHECK(error.device == 0);
    return error.fault;
  }
  FAIL("no CheckpointError");
  return {};
}

struct OtherState : AllocatorState {};

}  // namespace

TEST_CASE("APoolGoesBackAndItsOwnersAreNew") {
  const auto allocator = makeSim();
  allocator->beginAllocateToPool(0, kPool, always);
  DataPtr stays = allocator->allocate(3 * kMiB);
  std::memset(stays.get(), 0x5a, 3 * kMiB);
  void* const dies = allocator->raw_alloc(1000);
  const auto state = allocator->getCheckpointState(0, kPool);
  allocator->raw_delete(dies);
  DataPtr stale = allocator->allocate(5 * kMiB);
  void* const stale_block = stale.get();
  // Whoever holds something in the pool lets go of it first.
  for (DataPtr* const held : {&stays, &stale}) {
    CHECK(held->compare_exchange_deleter(allocator->raw_deleter(), &nothing));
  }
  CheckpointDelta delta = allocator->setCheckpointPoolState(0, state);
  CHECK(delta.ptrs_freed.size() == 2);
  CHECK(contains(delta.ptrs_freed, stays.mutable_get()));
  CHECK(contains(delta.ptrs_freed, stale_block));
  REQUIRE(delta.dataptrs_allocd.size() == 2);
  for (const DataPtr& data : delta.dataptrs_allocd) {
    const bool known = data.get() == stays.get() || data.get() == dies;
    CHECK(known);
    CHECK(data.get() == data.get_context());
    const bool owns = data.get_deleter() == allocator->raw_deleter();
    CHECK(owns);
    CHECK(data.device() == Device{DeviceType::CUDA, 0});
  }
  CHECK(allocator->checkPoolLiveAllocations(0, kPool, {stays.mutable_get(), dies}));
  CHECK(static_cast<const unsigned char*>(stays.get())[3 * kMiB - 1] == 0x5a);
  CHECK(allocator->getDeviceStats(0).allocation[0].current == 2);
  CHECK(allocator->getDeviceStats(0).requested_bytes[0].current ==
        static_cast<std::int64_t>(3 * kMiB + 1000));
  delta.dataptrs_allocd.clear();
  CHECK(allocator->checkPoolLiveAllocations(0, kPool, {}));
  allocator->endAllocateToPool(0, kPool);
  allocator->releasePool(0, kPool);
  CHECK(allocator->getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("MisuseOfCheckpointsIsTold") {
  const auto allocator = makeSim();
  CHECK_THROWS_AS((void)allocator->getCheckpointState(0, kPool), InvalidArgumentError);
  CHECK_THROWS_AS((void)allocator->getCheckpointState(7, kPool), InvalidDeviceError);
  CHECK_THROWS_AS(allocator->setCheckpointPoolState(0, nullptr), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->setCheckpointPoolState(0, std::make_shared<OtherState>()),
                  InvalidArgumentError);
  allocator->beginAllocateToPool(0, kPool, always);
  const auto state = allocator->getCheckpointState(0, kPool);
  void* const block = allocator->raw_alloc(kMiB);
  const auto pin = dynamic_cast<CachingAllocator&>(*allocator).pinMemory(block);
  try {
    allocator->setCheckpointPoolState(0, state);
    FAIL("no error");
  } catch (const CheckpointError& error) {
    CHECK(error.fault == CheckpointFault::Pinned);
    CHECK(error.address == reinterpret_cast<std::uintptr_t>(block));
    CHECK(error.bytes == kMiB);
  }
  dynamic_cast<CachingAllocator&>(*allocator).unpinMemory(pin);
  CHECK(faultOf(*allocator, 1, state) == CheckpointFault::OtherDevice);
  CHECK(faultOf(*makeSim(), 0, state) == CheckpointFault::OtherAllocator);
  CHECK(allocator->checkPoolLiveAllocations(0, kPool, {block}));
  allocator->endAllocateToPool(0, kPool);
  allocator->releasePool(0, kPool);
  CHECK(faultOf(*allocator, 0, state) == CheckpointFault::PoolEnded);
  allocator->raw_delete(block);
}

TEST_CASE("ACheckpointOutlivesItsAllocator") {
  std::shared_ptr<AllocatorState> state;
  {
    const auto allocator = makeSim();
    allocator->createOrIncrefPool(0, kPool);
    state = allocator->getCheckpointState(0, kPool);
    allocator->releasePool(0, kPool);
  }
  CHECK(faultOf(*makeSim(), 0, state) == CheckpointFault::OtherAllocator);
}
