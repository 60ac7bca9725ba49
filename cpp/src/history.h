// Histories: what Rust calls to gather contexts and to tell of events, and what both kinds of
// allocator do with theirs. Internal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "plugalloc/snapshot.h"

namespace plugalloc {
namespace bridge {

struct HistoryCore;
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

/// The methods of the same purpose, of whichever allocator the history is.
/// @{
SnapshotInfo takeSnapshot(const HistoryCore& history, MempoolId_t pool, bool traces);
std::string dump(const HistoryCore& history, SnapshotFormat format);
void record(const HistoryCore& history, bool enabled, CreateContextFn context_recorder,
            std::size_t max_entries, RecordContext when, bool clear,
            const std::vector<std::string>& skip_actions);
using Annotations = std::vector<std::pair<std::string, std::string>>;
void annotate(const HistoryCore& history, const Annotations& metadata);
void observe(const HistoryCore& history, OutOfMemoryObserver observer);
void observeRejections(const HistoryCore& history, OomRejectionObserver observer);
void track(const HistoryCore& history, AllocatorTraceTracker tracker);
/// @}

/// Labels of the thread's events, in the histories of all allocators. Text that is not UTF-8 is
/// replaced where it is not.
void pushCompileContext(const std::string& name);
void setUserMetadata(const std::string& text);

}  // namespace bridge
}  // namespace plugalloc
