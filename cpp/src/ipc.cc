// Memory shared with other processes.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "caching_state.h"
#include "errors.h"
#include "thread_values.h"

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;

ShareableHandle CachingAllocator::shareIpcHandle(void* ptr) {
  std::uint64_t offset = 0;
  rust::Vec<std::uint8_t> bytes;
  check(state_->core->share(bridge::toNumber(ptr), offset, bytes));
  ShareableHandle shared;
  shared.offset = static_cast<std::ptrdiff_t>(offset);
  shared.handle.assign(bytes.begin(), bytes.end());
  return shared;
}

std::shared_ptr<void> CachingAllocator::getIpcDevPtr(std::string handle) {
  const std::int32_t device = bridge::currentDeviceInline();
  const rust::Slice<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(handle.data()),
                                              handle.size());
  std::uint64_t address = 0;
  check(state_->core->open_shared(device, bytes, address));
  // The state, since the allocator may be gone by then.
  auto close = [state = state_, device](void* opened) noexcept {
    bridge::reporting("deleter",
                      [&] { check(state->core->close_shared(device, bridge::toNumber(opened))); });
  };
  // Calls `close` itself if it has no memory for the count.
  return {bridge::toPointer(address), std::move(close)};
}

PLUGALLOC_END_NAMESPACE
