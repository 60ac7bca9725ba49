// Memory that stays in place, and observers of what is mapped.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <map>
#include <memory>
#include <stdexcept>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::shared_ptr<CachingAllocator> makeSim(std::size_t capacity = 64 * kMiB) {
  Options options;
  options.device = "sim";
  options.sim_capacity = capacity;
  return std::dynamic_pointer_cast<CachingAllocator>(createCachingAllocator(options));
}

}  // namespace

TEST_CASE("PinnedMemoryStays") {
  const auto allocator = makeSim();
  REQUIRE(allocator != nullptr);
  void* const block = allocator->raw_alloc(40 * kMiB);
  const MemoryPin pin = allocator->pinMemory(static_cast<char*>(block) + 100);
  CHECK(pin.address == block);
  CHECK(pin.bytes == 40 * kMiB);
  CHECK(pin.device == 0);
  allocator->raw_delete(block);
  allocator->emptyCache();
  CHECK(allocator->getMemoryInfo(0).first == 24 * kMiB);
  CHECK_THROWS_AS((void)allocator->pinMemory(block), InvalidPointerError);
  allocator->unpinMemory(pin);
  CHECK_THROWS_AS(allocator->unpinMemory(pin), InvalidArgumentError);
  allocator->emptyCache();
  CHECK(allocator->getMemoryInfo(0).first == 64 * kMiB);
}

TEST_CASE("ObserversAreToldOfMappings") {
  const auto allocator = makeSim();
  std::map<void*, std::size_t> mapped;
  const std::uint64_t number = allocator->observeMappings(
      [&](MappingChange change, int device, void* address, std::size_t bytes) {
        CHECK(device == 0);
        // The allocator can be asked.
        CHECK(allocator->getDeviceStats(0).num_ooms == 0);
        if (change == MappingChange::Mapped) {
          CHECK(mapped.emplace(address, bytes).second);
        } else {
          CHECK(mapped.erase(address) == 1);
        }
      });
  void* const block = allocator->raw_alloc(8 * kMiB);
  CHECK_FALSE(mapped.empty());
  CHECK(mapped.begin()->first == block);
  allocator->raw_delete(block);
  allocator->emptyCache();
  CHECK(mapped.empty());
  CHECK(allocator->unobserveMappings(number));
  CHECK_FALSE(allocator->unobserveMappings(number));
  allocator->raw_delete(allocator->raw_alloc(8 * kMiB));
  CHECK(mapped.empty());
  CHECK_THROWS_AS((void)allocator->observeMappings(nullptr), InvalidArgumentError);
}

TEST_CASE("WhatAnObserverThrowsGoesToTheHandler") {
  const auto allocator = makeSim();
  int handled = 0;
  setDeleterErrorHandler([&handled](const Error&) { ++handled; });
  const std::uint64_t number =
      allocator->observeMappings([](MappingChange, int, void*, std::size_t) {
        throw std::runtime_error("the observer is broken");
      });
  void* const block = allocator->raw_alloc(1000);
  CHECK(block != nullptr);
  CHECK(handled == 1);
  CHECK(allocator->unobserveMappings(number));
  allocator->raw_delete(block);
  setDeleterErrorHandler({});
}
