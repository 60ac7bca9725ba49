// History and snapshots of an allocator over user functions, and whoever is told of events.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pluggable_state.h"
#include "handles.h"
#include "history.h"
#include "plugalloc/src/ffi/bridge.rs.h"

PLUGALLOC_BEGIN_NAMESPACE

SnapshotInfo PluggableAllocator::snapshot(MempoolId_t mempool_id, bool include_traces) {
  return bridge::takeSnapshot(*state_->history, mempool_id, include_traces);
}

std::string PluggableAllocator::dumpSnapshot(SnapshotFormat format) {
  return bridge::dump(*state_->history, format);
}

std::shared_ptr<GatheredContext> PluggableAllocator::getContextForPointer(const void* ptr) {
  return state_->history->context_of(bridge::toNumber(ptr));
}

bool PluggableAllocator::isHistoryEnabled() { return state_->history->is_history_enabled(); }

void PluggableAllocator::recordHistory(bool enabled, CreateContextFn context_recorder,
                                       std::size_t max_entries, RecordContext when,
                                       bool clearHistory,
                                       const std::vector<std::string>& skip_actions) {
  bridge::record(*state_->history, enabled, context_recorder, max_entries, when, clearHistory,
                 skip_actions);
}

void PluggableAllocator::recordAnnotation(
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  bridge::annotate(*state_->history, metadata);
}

void PluggableAllocator::pushCompileContext(std::string& metadata) {
  bridge::pushCompileContext(metadata);
}

void PluggableAllocator::popCompileContext() { bridge::pop_compile_context(); }

bool PluggableAllocator::supportsUserMetadata() const { return true; }

void PluggableAllocator::setUserMetadata(const std::string& metadata) {
  bridge::setUserMetadata(metadata);
}

std::string PluggableAllocator::getUserMetadata() { return std::string(bridge::user_metadata()); }

void PluggableAllocator::attachOutOfMemoryObserver(OutOfMemoryObserver observer) {
  bridge::observe(*state_->history, std::move(observer));
}

void PluggableAllocator::attachAllocatorTraceTracker(AllocatorTraceTracker tracker) {
  bridge::track(*state_->history, std::move(tracker));
}

PLUGALLOC_END_NAMESPACE
