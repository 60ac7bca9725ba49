// What Rust calls to tell a C++ observer. Internal.
#pragma once

#include <cstdint>

#include "plugalloc/memory_pin.h"

namespace plugalloc {
namespace bridge {

/// An observer of mappings.
struct CppObserver {
  MappingObserver observer;
};

/// Calls it. What it throws goes where errors of deleters go.
void tell_observer(const CppObserver& observer, bool mapped, std::int32_t device,
                   std::uint64_t address, std::uint64_t bytes) noexcept;

}  // namespace bridge
}  // namespace plugalloc
