// The allocator over user functions.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

using namespace plugalloc;

namespace {

cudaStream_t streamOf(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

using Freed = std::vector<std::tuple<void*, std::size_t, int, cudaStream_t>>;

PluggableAllocator makeNoting(Freed& freed) {
  return PluggableAllocator(
      [](std::size_t size, int, cudaStream_t) { return size == 0 ? nullptr : std::malloc(size); },
      [&freed](void* pointer, std::size_t size, int device, cudaStream_t stream) {
        freed.emplace_back(pointer, size, device, stream);
        std::free(pointer);
      });
}

struct OwnError {
  int code;
};

}  // namespace

TEST_CASE("FreeGetsExactlyWhatTheAllocationWas") {
  Freed freed;
  PluggableAllocator allocator = makeNoting(freed);
  void* block = nullptr;
  {
    const DeviceGuard guard(3);
    block = allocator.raw_alloc_with_stream(1000, streamOf(7));
  }
  const StreamGuard other(streamOf(8), 1);
  allocator.raw_delete(block);
  REQUIRE(freed.size() == 1);
  CHECK(freed[0] == std::make_tuple(block, std::size_t{1000}, 3, streamOf(7)));
}

TEST_CASE("DeleterIsStableAndOneForAll") {
  Freed freed;
  PluggableAllocator one = makeNoting(freed);
  PluggableAllocator two = makeNoting(freed);
  CHECK((one.raw_deleter() == two.raw_deleter()));
  DataPtr data = two.allocate(64);
  CHECK(data.get_context() == data.get());
  CHECK((data.get_deleter() == one.raw_deleter()));
  CHECK(data.device() == Device{DeviceType::CUDA, 0});
  data.clear();
  CHECK(freed.size() == 1);
  CHECK(two.getDeviceStats(0).allocation[0].freed == 1);
}

TEST_CASE("PointersAreRefusedWithTextAndAddress") {
  Freed freed;
  PluggableAllocator allocator = makeNoting(freed);
  int local = 0;
  try {
    allocator.raw_delete(&local);
    FAIL("a foreign pointer");
  } catch (const InvalidPointerError& error) {
    CHECK(error.kind == PointerFault::Foreign);
    CHECK(error.address == reinterpret_cast<std::uintptr_t>(&local));
    CHECK(std::string(error.what()).find("Trying to free a pointer not allocated here: 0x") == 0);
  }
  void* const block = allocator.raw_alloc(16);
  allocator.raw_delete(block);
  try {
    allocator.raw_delete(block);
    FAIL("freed twice");
  } catch (const InvalidPointerError& error) {
    CHECK(error.kind == PointerFault::DoubleFree);
  }
  CHECK(freed.size() == 1);
}

TEST_CASE("NullIsOutOfMemoryUnlessNothingWasAsked") {
  PluggableAllocator allocator([](std::size_t, int, cudaStream_t) -> void* { return nullptr; },
                               [](void*, std::size_t, int, cudaStream_t) {});
  CHECK(allocator.raw_alloc(0) == nullptr);
  const DataPtr nothing = allocator.allocate(0);
  CHECK((nothing.get_deleter() == allocator.raw_deleter()));
  try {
    (void)allocator.raw_alloc(77);
    FAIL("no memory");
  } catch (const OutOfMemoryError& error) {
    CHECK(error.requested == 77);
    CHECK(error.allocated == 0);
  }
  CHECK(allocator.getDeviceStats(0).num_ooms == 1);
}

TEST_CASE("ExceptionsOfAllocFnPassUnchanged") {
  bool fail = true;
  PluggableAllocator allocator(
      [&fail](std::size_t size, int, cudaStream_t) -> void* {
        if (fail) {
          throw OwnError{17};
        }
        return std::malloc(size);
      },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); });
  try {
    (void)allocator.allocate(8);
    FAIL("it throws");
  } catch (const OwnError& error) {
    CHECK(error.code == 17);
  }
  CHECK(allocator.getDeviceStats(0).allocation[0].allocated == 0);
  fail = false;
  allocator.raw_delete(allocator.raw_alloc(8));
}

TEST_CASE("FunctionsMayCallTheAllocator") {
  PluggableAllocator* self = nullptr;
  std::vector<void*> inner;
  PluggableAllocator allocator(
      [&](std::size_t size, int, cudaStream_t) {
        if (size == 64) {
          inner.push_back(self->raw_alloc(8));
        }
        return std::malloc(size);
      },
      [&](void* pointer, std::size_t size, int, cudaStream_t) {
        if (size == 64) {
          self->raw_deleter()(inner.back());
        }
        std::free(pointer);
      });
  self = &allocator;
  void* const block = allocator.raw_alloc(64);
  CHECK(allocator.getDeviceStats(0).allocation[0].current == 2);
  allocator.raw_delete(block);
  CHECK(allocator.getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("CopyTakesFunctionsButNoAllocations") {
  Freed freed;
  int resets = 0;
  PluggableAllocator original = makeNoting(freed);
  original.set_reset_fn([&resets] { ++resets; });
  original.setMemoryFraction(0.25, 0);
  void* const block = original.raw_alloc(8);
  PluggableAllocator copy(original);
  copy.emptyCache();
  CHECK(resets == 1);
  CHECK(copy.getMemoryFraction(0) == 0.25);
  CHECK(copy.getDeviceStats(0).allocation[0].current == 0);
  CHECK_THROWS_AS(copy.raw_delete(block), InvalidPointerError);
  copy.raw_deallocate(block);
  CHECK(freed.size() == 1);
  CHECK(original.getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("MemoryOutlivesItsAllocator") {
  Freed freed;
  DataPtr data;
  {
    PluggableAllocator allocator = makeNoting(freed);
    data = allocator.allocate(32);
  }
  CHECK(freed.empty());
  data.clear();
  CHECK(freed.size() == 1);
}

TEST_CASE("DeletersGiveToTheAllocatorOnTop") {
  Freed freed;
  PluggableAllocator below = makeNoting(freed);
  int above = 0;
  PluggableAllocator top(
      [&below](std::size_t size, int, cudaStream_t stream) {
        return below.raw_alloc_with_stream(size, stream);
      },
      [&](void* pointer, std::size_t, int, cudaStream_t) {
        ++above;
        below.raw_deleter()(pointer);
      });
  DataPtr data = top.allocate(8);
  data.clear();
  CHECK(above == 1);
  CHECK(freed.size() == 1);
  CHECK(top.getDeviceStats(0).allocation[0].current == 0);
  CHECK(below.getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("FunctionsOutliveTheCallThatIsInside") {
  // The last free lets the allocator go while its function runs.
  const auto witness = std::make_shared<int>(7);
  std::shared_ptr<CUDAAllocator> allocator;
  long uses = 0;
  allocator = createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [&allocator, &uses, witness](void* pointer, std::size_t, int, cudaStream_t) {
        allocator.reset();
        uses = witness.use_count();
        std::free(pointer);
      });
  DataPtr data = allocator->allocate(16);
  data.clear();
  CHECK(allocator == nullptr);
  CHECK(uses == 2);
  CHECK(witness.use_count() == 1);
}

TEST_CASE("EmptyFunctionsAreRefused") {
  CHECK_THROWS_AS(createCustomAllocator(nullptr, nullptr), InvalidArgumentError);
}
