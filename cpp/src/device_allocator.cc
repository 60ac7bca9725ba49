// What the base class does for every allocator.
#include "plugalloc/device_allocator.h"

PLUGALLOC_BEGIN_NAMESPACE

void deleteNothing(void*) noexcept {}

DeviceAllocator::~DeviceAllocator() = default;

DataPtr DeviceAllocator::clone(const void* data, std::size_t count) {
  DataPtr copy = allocate(count);
  if (count != 0) {
    copy_data(copy.mutable_get(), data, count);
  }
  return copy;
}

bool DeviceAllocator::is_simple_data_ptr(const DataPtr& pointer) const {
  return pointer.get() == pointer.get_context();
}

DeleterFnPtr DeviceAllocator::raw_deleter() const { return nullptr; }

void* DeviceAllocator::raw_allocate(std::size_t nbytes) {
  DataPtr pointer = allocate(nbytes);
  if (pointer.get() != pointer.get_context()) {
    unsupported("raw_allocate");
  }
  return pointer.release_context();
}

void DeviceAllocator::raw_deallocate(void* ptr) {
  const DeleterFnPtr deleter = raw_deleter();
  if (deleter == nullptr) {
    unsupported("raw_deallocate");
  }
  deleter(ptr);
}

std::pair<std::size_t, std::size_t> DeviceAllocator::getMemoryInfo(DeviceIndex) {
  unsupported("getMemoryInfo");
}

void DeviceAllocator::unsupported(const char* operation) const {
  throw UnsupportedError(operation, name(), "this allocator does not have it");
}

PLUGALLOC_END_NAMESPACE
