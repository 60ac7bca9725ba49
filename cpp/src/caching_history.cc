// The caching allocator's history and snapshots, and whoever is told of events.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "caching_state.h"
#include "handles.h"
#include "history.h"
#include "plugalloc/src/ffi/bridge.rs.h"

PLUGALLOC_BEGIN_NAMESPACE

SnapshotInfo CachingAllocator::snapshot(MempoolId_t mempool_id, bool include_traces) {
  return bridge::takeSnapshot(*state_->history, mempool_id, include_traces);
}

std::string CachingAllocator::dumpSnapshot(SnapshotFormat format) {
  return bridge::dump(*state_->history, format);
}

std::shared_ptr<GatheredContext> CachingAllocator::getContextForPointer(const void* ptr) {
  return state_->history->context_of(bridge::toNumber(ptr));
}

bool CachingAllocator::isHistoryEnabled() { return state_->history->is_history_enabled(); }

void CachingAllocator::recordHistory(bool enabled, CreateContextFn context_recorder,
                                     std::size_t max_entries, RecordContext when, bool clearHistory,
                                     const std::vector<std::string>& skip_actions) {
  bridge::record(*state_->history, enabled, context_recorder, max_entries, when, clearHistory,
                 skip_actions);
}

void CachingAllocator::recordAnnotation(
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  bridge::annotate(*state_->history, metadata);
}

void CachingAllocator::pushCompileContext(std::string& metadata) {
  bridge::pushCompileContext(metadata);
}

void CachingAllocator::popCompileContext() { bridge::pop_compile_context(); }

bool CachingAllocator::supportsUserMetadata() const { return true; }

void CachingAllocator::setUserMetadata(const std::string& metadata) {
  bridge::setUserMetadata(metadata);
}

std::string CachingAllocator::getUserMetadata() { return std::string(bridge::user_metadata()); }

void CachingAllocator::attachOutOfMemoryObserver(OutOfMemoryObserver observer) {
  bridge::observe(*state_->history, std::move(observer));
}

void CachingAllocator::attachOomRejectionObserver(OomRejectionObserver observer) {
  bridge::observeRejections(*state_->history, std::move(observer));
}

void CachingAllocator::attachAllocatorTraceTracker(AllocatorTraceTracker tracker) {
  bridge::track(*state_->history, std::move(tracker));
}

PLUGALLOC_END_NAMESPACE
