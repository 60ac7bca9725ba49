// DataPtr has PyTorch's semantics.
#include <doctest/doctest.h>
#include <plugalloc/data_ptr.h>

#include <utility>

using plugalloc::DataPtr;
using plugalloc::Device;
using plugalloc::DeviceType;

/// Of other_library.cc.
plugalloc::DataPtr borrowedElsewhere(void* data);

namespace {

int deleted = 0;
int deleted_otherwise = 0;
void countDelete(void*) { ++deleted; }
void countOther(void*) { ++deleted_otherwise; }

constexpr Device kCuda0{DeviceType::CUDA, 0};

DataPtr make(int& value) { return DataPtr(&value, &value, &countDelete, kCuda0); }

}  // namespace

TEST_CASE("DeletesTheContextOnce") {
  deleted = 0;
  int value = 0;
  {
    DataPtr pointer = make(value);
    CHECK(pointer);
    CHECK(pointer != nullptr);
    DataPtr moved = std::move(pointer);
    CHECK(!pointer);
    CHECK(moved.get() == &value);
  }
  CHECK(deleted == 1);
}

TEST_CASE("AssignmentGivesTheOldContextBack") {
  deleted = 0;
  int one = 0;
  int two = 0;
  DataPtr pointer = make(one);
  pointer = make(two);
  CHECK(deleted == 1);
  CHECK(pointer.get() == &two);
  pointer.clear();
  CHECK(deleted == 2);
  CHECK(pointer == nullptr);
  CHECK(pointer.device() == kCuda0);
}

TEST_CASE("NullContextIsNotDeleted") {
  deleted = 0;
  {
    const DataPtr pointer(nullptr, nullptr, &countDelete, kCuda0);
  }
  CHECK(deleted == 0);
  {
    const DataPtr nothing;
  }
  int value = 0;
  {
    const DataPtr borrowed(&value, kCuda0);
  }
  CHECK(deleted == 0);
}

TEST_CASE("ReleasedContextIsTheCallers") {
  deleted = 0;
  int value = 0;
  {
    DataPtr pointer = make(value);
    CHECK(pointer.release_context() == &value);
    CHECK(pointer.get() == &value);
    CHECK(pointer.get_context() == nullptr);
  }
  CHECK(deleted == 0);
  {
    DataPtr pointer = make(value);
    const auto context = pointer.move_context();
    CHECK((context.get_deleter() == &countDelete));
  }
  CHECK(deleted == 1);
}

TEST_CASE("DeleterIsExchangedOnlyIfExpected") {
  deleted = deleted_otherwise = 0;
  int value = 0;
  {
    DataPtr pointer = make(value);
    CHECK_FALSE(pointer.compare_exchange_deleter(&countOther, &countOther));
    CHECK((pointer.get_deleter() == &countDelete));
    CHECK(pointer.compare_exchange_deleter(&countDelete, &countOther));
    CHECK(pointer.get_context() == &value);
  }
  CHECK(deleted == 0);
  CHECK(deleted_otherwise == 1);
}

TEST_CASE("ContextIsCastOnlyForItsDeleter") {
  int value = 3;
  const DataPtr pointer = make(value);
  CHECK(*pointer.cast_context<int>(&countDelete) == 3);
  CHECK(pointer.cast_context<int>(&countOther) == nullptr);
}

TEST_CASE("DeviceAndDataCanBeReset") {
  int one = 0;
  int two = 0;
  deleted = 0;
  DataPtr pointer = make(one);
  pointer.unsafe_set_device(Device{DeviceType::CUDA, 3});
  CHECK(pointer.device().index == 3);
  CHECK(pointer.unsafe_reset_data_and_ctx(&two));
  CHECK(deleted == 0);
  CHECK(pointer.get() == &two);
  DataPtr apart(&one, &two, &countDelete, kCuda0);
  CHECK_FALSE(apart.unsafe_reset_data_and_ctx(&one));
}

TEST_CASE("OwnsNothingIsToldInEveryLibrary") {
  int value = 0;
  DataPtr pointer = borrowedElsewhere(&value);
  CHECK((pointer.get_deleter() == &plugalloc::deleteNothing));
  CHECK(pointer.compare_exchange_deleter(&plugalloc::deleteNothing, &countDelete));
}
