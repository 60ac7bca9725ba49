// Exceptions of what Rust calls: they wait in the thread until Rust asks for them. Internal.
#pragma once

#include <cstdint>

#include "handles.h"
#include "plugalloc/src/ffi/bridge.rs.h"

namespace plugalloc {
namespace bridge {

/// Keeps the exception that is being handled for `take_driven_error`. Call it in a catch clause.
void keepDrivenError() noexcept;

/// Runs the body: 0, or 1 where its exception waits in the thread.
template <typename Body>
std::uint32_t guarded(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (...) {
    keepDrivenError();
    return 1;
  }
}

/// The same for a body that gives a pointer.
template <typename Body>
AllocResult guardedAlloc(Body&& body) noexcept {
  try {
    return {toNumber(body()), 0};
  } catch (...) {
    keepDrivenError();
    return {0, 1};
  }
}

/// The device as the interface has it.
/// @throws InvalidArgumentError if it is no signed byte.
DeviceIndex toIndex(std::int32_t device);

}  // namespace bridge
}  // namespace plugalloc
