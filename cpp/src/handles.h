// Pointers as the plain numbers in which they cross the bridge. Internal.
#pragma once

#include <cstdint>

#include "plugalloc/types.h"

namespace plugalloc {
namespace bridge {

inline std::uint64_t toNumber(const void* pointer) noexcept {
  return reinterpret_cast<std::uintptr_t>(pointer);
}
inline void* toPointer(std::uint64_t address) noexcept {
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
}
inline cudaStream_t toStream(std::uint64_t stream) noexcept {
  return reinterpret_cast<cudaStream_t>(static_cast<std::uintptr_t>(stream));
}

}  // namespace bridge
}  // namespace plugalloc
