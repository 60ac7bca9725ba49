// What Rust calls for a history: to gather contexts, and to tell of events. Internal.
#pragma once

#include <cstdint>
#include <memory>

#include "plugalloc/snapshot.h"

namespace plugalloc {
namespace bridge {

struct TraceRecord;
struct OutOfMemoryRecord;

/// What gathers contexts.
struct CppContextSource {
  CreateContextFn gather;
};

/// A tracker of events.
struct CppTracker {
  AllocatorTraceTracker tracker;
};

/// An observer of requests that fail: one of the two.
struct CppOutOfMemoryObserver {
  OutOfMemoryObserver observer;
  OomRejectionObserver rejection;
};

/// Gathers one; null where that throws, and what it throws goes where errors of deleters go.
std::shared_ptr<GatheredContext> gather_context(const CppContextSource& source) noexcept;

/// Tells a tracker. What it throws goes where errors of deleters go.
void tell_tracker(const CppTracker& tracker, const TraceRecord& event) noexcept;

/// Tells an observer; one of rejections only of those. What it throws goes where errors of deleters
/// go.
void tell_out_of_memory(const CppOutOfMemoryObserver& to, const OutOfMemoryRecord& event) noexcept;

}  // namespace bridge
}  // namespace plugalloc
