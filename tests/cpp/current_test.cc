// The allocator of the process. The cases run in this order, in a process of their own.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

using namespace plugalloc;

namespace {

std::shared_ptr<CUDAAllocator> makeCustom(int& freed) {
  return createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [&freed](void* pointer, std::size_t, int, cudaStream_t) {
        ++freed;
        std::free(pointer);
      });
}

}  // namespace

TEST_CASE("SwapsUntilInitialisedAndOldPointersGoHome") {
  int freed_first = 0;
  int freed_second = 0;
  auto first = makeCustom(freed_first);
  const auto second = makeCustom(freed_second);
  changeCurrentAllocator(first);
  CHECK(getCurrentAllocator() == first);
  const DeleterFnPtr deleter = first->raw_deleter();
  void* const bare = getCurrentAllocator()->raw_alloc(100);
  DataPtr owned = getCurrentAllocator()->allocate(200);

  changeCurrentAllocator(second);
  CHECK(getCurrentAllocator() == second);
  CHECK((getCurrentAllocator()->raw_deleter() == deleter));
  first.reset();
  deleter(bare);
  owned.clear();
  CHECK(freed_first == 2);
  CHECK(freed_second == 0);

  // Whoever reads meanwhile sees one of the two.
  std::atomic<bool> stop{false};
  std::atomic<int> others{0};
  std::vector<std::thread> readers;
  const auto third = makeCustom(freed_second);
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        const auto seen = getCurrentAllocator();
        others += seen != second && seen != third ? 1 : 0;
      }
    });
  }
  for (int i = 0; i < 1000; ++i) {
    changeCurrentAllocator(third);
    changeCurrentAllocator(second);
  }
  second->init(1);
  CHECK_THROWS_AS(changeCurrentAllocator(third), AlreadyInitializedError);
  CHECK(getCurrentAllocator() == second);
  CHECK_THROWS_AS(changeCurrentAllocator(third), AlreadyInitializedError);
  stop = true;
  for (std::thread& reader : readers) {
    reader.join();
  }
  CHECK(others == 0);
  try {
    changeCurrentAllocator(makeCustom(freed_first));
    FAIL("the current one is initialised");
  } catch (const AlreadyInitializedError& error) {
    CHECK(error.allocator == "pluggable");
  }
  CHECK(getCurrentAllocator() == second);
  CHECK_THROWS_AS(changeCurrentAllocator(nullptr), InvalidArgumentError);
}
