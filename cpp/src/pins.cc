// Memory that stays in place, and observers of what is mapped.
#include <memory>
#include <utility>

#include "caching_state.h"
#include "errors.h"
#include "mapping_observer.h"

namespace plugalloc {
namespace bridge {

void tell_observer(const CppObserver& observer, bool mapped, std::int32_t device,
                   std::uint64_t address, std::uint64_t bytes) noexcept {
  reporting("mapping observer", [&] {
    observer.observer(mapped ? MappingChange::Mapped : MappingChange::Unmapping, device,
                      toPointer(address), bytes);
  });
}

}  // namespace bridge
}  // namespace plugalloc

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;

MemoryPin CachingAllocator::pinMemory(void* ptr) {
  std::int32_t device = 0;
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  MemoryPin pin;
  check(state_->core->pin(bridge::toNumber(ptr), device, pin.number, address, bytes));
  pin.device = static_cast<DeviceIndex>(device);
  pin.address = bridge::toPointer(address);
  pin.bytes = bytes;
  return pin;
}

void CachingAllocator::unpinMemory(const MemoryPin& pin) {
  check(state_->core->unpin(pin.device, pin.number));
}

std::uint64_t CachingAllocator::observeMappings(MappingObserver observer) {
  bridge::requireFunction("observer", observer);
  auto shared = std::make_unique<bridge::CppObserver>();
  shared->observer = std::move(observer);
  std::uint64_t number = 0;
  check(state_->core->observe_mappings(std::move(shared), number));
  return number;
}

bool CachingAllocator::unobserveMappings(std::uint64_t number) {
  bool found = false;
  check(state_->core->unobserve_mappings(number, found));
  return found;
}

PLUGALLOC_END_NAMESPACE
