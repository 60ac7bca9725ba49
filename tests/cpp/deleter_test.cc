// Deleters never throw: what goes wrong in one is told later, or to a handler.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

using namespace plugalloc;

namespace {

std::shared_ptr<CUDAAllocator> makeMalloc(bool* fail = nullptr) {
  return createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [fail](void* pointer, std::size_t, int, cudaStream_t) {
        std::free(pointer);
        if (fail != nullptr && *fail) {
          throw std::logic_error("the source failed");
        }
      });
}

}  // namespace

TEST_CASE("ErrorIsReportedByTheNextAllocation") {
  const auto allocator = makeMalloc();
  void* const block = allocator->raw_alloc(8);
  const DeleterFnPtr deleter = allocator->raw_deleter();
  deleter(block);
  deleter(block);
  CHECK_THROWS_AS((void)allocator->raw_alloc(8), InvalidPointerError);
  allocator->raw_deallocate(allocator->raw_allocate(8));
  deleter(nullptr);
}

TEST_CASE("ExceptionOfTheSourceIsReportedAsItIs") {
  bool fail = true;
  const auto allocator = makeMalloc(&fail);
  {
    const DataPtr data = allocator->allocate(8);
  }
  CHECK_THROWS_AS(allocator->emptyCache(), std::logic_error);
  CHECK(allocator->getDeviceStats(0).allocation[0].current == 0);
  void* const block = allocator->raw_alloc(8);
  CHECK_THROWS_AS(allocator->raw_delete(block), std::logic_error);
  CHECK_THROWS_AS(allocator->raw_delete(block), InvalidPointerError);
}

TEST_CASE("HandlerIsTold") {
  std::string told;
  setDeleterErrorHandler([&told](const Error& error) {
    told = error.what();
    throw std::runtime_error("a handler that throws is no matter");
  });
  const auto allocator = makeMalloc();
  int local = 0;
  allocator->raw_deleter()(&local);
  CHECK(told.find("Trying to free a pointer not allocated here") == 0);
  bool fail = true;
  const auto failing = makeMalloc(&fail);
  failing->raw_deallocate(failing->raw_allocate(8));
  CHECK(told == "the program's free_fn threw: the source failed");
  setDeleterErrorHandler(nullptr);
  allocator->raw_deallocate(allocator->raw_allocate(8));
}
