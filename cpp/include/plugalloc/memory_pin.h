/// @file
/// Memory that stays where it is, and who is told of what appears and disappears: for libraries
/// that register memory, such as NCCL or a network card's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "plugalloc/export.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// Memory that `CachingAllocator::pinMemory` keeps in place. A plain value: copies are the same
/// pin, which ends once.
struct MemoryPin {
  std::uint64_t number = 0;  ///< Names the pin on its device.
  DeviceIndex device = 0;    ///< The device.
  void* address = nullptr;   ///< Where the memory that stays starts, at or before the allocation.
  std::size_t bytes = 0;     ///< How many bytes stay from there: whole handles, or a segment.
};

/// What happens to a span of addresses.
enum class MappingChange {
  Mapped,     ///< Memory has appeared there, and may be used.
  Unmapping,  ///< The memory there is about to disappear. Nobody uses it any more.
};

/// Told of a span of `bytes` at `address` of `device`.
using MappingObserver =
    std::function<void(MappingChange change, int device, void* address, std::size_t bytes)>;

PLUGALLOC_END_NAMESPACE
