// Memory shared with other processes; here both ends are in one, which opens its own memory as it
// would another's.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstring>
#include <memory>
#include <string>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::shared_ptr<CUDAAllocator> makeSim() {
  Options options;
  options.device = "sim";
  options.sim_capacity = 64 * kMiB;
  return createCachingAllocator(options);
}

}  // namespace

TEST_CASE("SharedMemoryIsTheSameMemory") {
  const auto giver = makeSim();
  auto taker = makeSim();
  void* const block = giver->raw_alloc(9 * kMiB);
  void* const inside = static_cast<char*>(block) + 3 * kMiB;
  const ShareableHandle shared = giver->shareIpcHandle(inside);
  CHECK(shared.handle.compare(0, 6, std::string("plug\x01") + "e") == 0);
  CHECK(shared.offset >= static_cast<std::ptrdiff_t>(3 * kMiB));
  CHECK(giver->shareIpcHandle(inside).handle == shared.handle);
  std::memset(block, 0x11, 9 * kMiB);
  try {
    std::shared_ptr<void> opened = taker->getIpcDevPtr(shared.handle);
    const std::shared_ptr<void> again = taker->getIpcDevPtr(shared.handle);
    CHECK(opened.get() == again.get());
    CHECK(opened.get() != block);
    char* const there = static_cast<char*>(opened.get()) + shared.offset;
    CHECK(there[0] == 0x11);
    there[0] = 0x22;
    CHECK(static_cast<char*>(inside)[0] == 0x22);
    // What is open outlives the allocator that opened it.
    opened.reset();
    taker.reset();
    CHECK(there[0] == 0x22);
  } catch (const UnsupportedError& error) {
    MESSAGE("skipped: " << error.what());
  }
  giver->raw_delete(block);
  giver->emptyCache();
}

TEST_CASE("WhatCannotBeSharedOrOpenedIsTold") {
  const auto allocator = makeSim();
  CHECK_THROWS_AS((void)allocator->getIpcDevPtr(""), InvalidArgumentError);
  CHECK_THROWS_AS((void)allocator->getIpcDevPtr(std::string(64, '\0')), InvalidArgumentError);
  int local = 0;
  CHECK_THROWS_AS((void)allocator->shareIpcHandle(&local), InvalidPointerError);
  void* const block = allocator->raw_alloc(kMiB);
  std::string handle = allocator->shareIpcHandle(block).handle;
  handle[4] = 2;
  CHECK_THROWS_AS((void)allocator->getIpcDevPtr(handle), InvalidArgumentError);
  handle[4] = 1;
  allocator->raw_delete(block);
  // Its descriptors were closed with it.
  CHECK_THROWS_AS((void)allocator->getIpcDevPtr(handle), Error);
}
