// Histories and snapshots of either kind of allocator, and whoever is told of events.
#include "history.h"

#include <string>
#include <utility>
#include <vector>

#include "errors.h"
#include "handles.h"
#include "plugalloc/src/ffi/bridge.rs.h"
#include "plugalloc/src/ffi/records.rs.h"
#include "thread_values.h"

namespace plugalloc {
namespace bridge {

namespace {

TraceEntry toEntry(const TraceRecord& record) {
  TraceEntry entry;
  // In one order on both sides.
  entry.action_ = static_cast<TraceEntry::Action>(record.action);
  entry.device_ = static_cast<DeviceIndex>(record.device);
  entry.addr_ = record.address;
  entry.size_ = record.bytes;
  entry.stream_ = toStream(record.stream);
  entry.mempool_ = {record.pool.first, record.pool.second};
  entry.time_us_ = record.time_us;
  entry.context_ = record.context;
  entry.compile_context_ = std::string(record.compile_context);
  entry.user_metadata_ = std::string(record.user_metadata);
  return entry;
}

BlockInfo toBlock(const BlockRecord& record) {
  BlockInfo block;
  block.size = record.bytes;
  block.requested_size = record.requested;
  block.allocated = record.allocated;
  block.active = record.active;
  block.context_when_allocated = record.context;
  return block;
}

SegmentInfo toSegment(const SegmentRecord& record) {
  SegmentInfo segment;
  segment.device = static_cast<DeviceIndex>(record.device);
  segment.address = record.address;
  segment.total_size = record.total;
  segment.requested_size = record.requested;
  segment.allocated_size = record.allocated;
  segment.active_size = record.active;
  segment.stream = toStream(record.stream);
  segment.is_large = record.is_large;
  segment.is_expandable = record.is_expandable;
  segment.owner_private_pool_id = {record.pool.first, record.pool.second};
  segment.registration_counter = static_cast<std::int64_t>(record.registration_counter);
  segment.blocks.reserve(record.blocks.size());
  for (const BlockRecord& block : record.blocks) {
    segment.blocks.push_back(toBlock(block));
  }
  return segment;
}

AnnotationEntry toAnnotation(const AnnotationRecord& record) {
  AnnotationEntry entry;
  entry.device_ = static_cast<DeviceIndex>(record.device);
  entry.time_us_ = record.time_us;
  for (const TextPair& pair : record.metadata) {
    entry.metadata_.emplace(std::string(pair.key), std::string(pair.value));
  }
  return entry;
}

AllocatorConfigInfo configOf(const SnapshotRecord& record) {
  AllocatorConfigInfo config;
  config.garbage_collection_threshold = record.garbage_collection_threshold;
  config.max_split_size = record.max_split_size;
  config.expandable_segments = record.expandable_segments;
  config.graph_capture_record_stream_reuse = record.record_stream_reuse;
  config.last_allocator_settings = std::string(record.settings);
  config.roundup_power2_divisions.assign(record.roundup_power2_divisions.begin(),
                                         record.roundup_power2_divisions.end());
  return config;
}

}  // namespace

std::shared_ptr<GatheredContext> gather_context(const CppContextSource& source) noexcept {
  std::shared_ptr<GatheredContext> context;
  reporting("context recorder", [&] { context = source.gather(); });
  return context;
}

void tell_tracker(const CppTracker& tracker, const TraceRecord& event) noexcept {
  reporting("trace tracker", [&] { tracker.tracker(toEntry(event)); });
}

void tell_out_of_memory(const CppOutOfMemoryObserver& to, const OutOfMemoryRecord& event) noexcept {
  reporting("out-of-memory observer", [&] {
    const auto device = event.device;
    if (to.observer) {
      to.observer(device, event.segment, event.limit, event.free);
    } else if (to.rejection && event.at_limit) {
      to.rejection(device, event.requested, event.allocated, event.total);
    }
  });
}

SnapshotInfo takeSnapshot(const HistoryCore& history, MempoolId_t pool, bool traces) {
  SnapshotRecord record{};
  check(history.snapshot({pool.first, pool.second}, traces, record));
  SnapshotInfo info;
  info.segments.reserve(record.segments.size());
  for (const SegmentRecord& segment : record.segments) {
    info.segments.push_back(toSegment(segment));
  }
  info.device_traces.resize(record.devices);
  for (const TraceRecord& event : record.traces) {
    info.device_traces.at(static_cast<std::size_t>(event.device)).push_back(toEntry(event));
  }
  for (const AnnotationRecord& mark : record.annotations) {
    info.external_annotations.push_back(toAnnotation(mark));
  }
  info.config_metadata = configOf(record);
  return info;
}

std::string dump(const HistoryCore& history, SnapshotFormat format) {
  rust::Vec<std::uint8_t> bytes;
  check(history.dump_snapshot(format == SnapshotFormat::Json, bytes));
  return {bytes.begin(), bytes.end()};
}

void record(const HistoryCore& history, bool enabled, CreateContextFn context_recorder,
            std::size_t max_entries, RecordContext when, bool clear,
            const std::vector<std::string>& skip_actions) {
  if (!enabled) {
    check(history.stop_history());
    return;
  }
  std::unique_ptr<CppContextSource> source;
  if (context_recorder != nullptr) {
    source = std::make_unique<CppContextSource>();
    source->gather = context_recorder;
  }
  rust::Vec<rust::String> skip;
  for (const std::string& action : skip_actions) {
    skip.push_back(rust::String::lossy(action));
  }
  check(history.record_history(max_entries, static_cast<std::uint8_t>(when), std::move(source),
                               clear, std::move(skip)));
}

void annotate(const HistoryCore& history, const Annotations& metadata) {
  rust::Vec<TextPair> pairs;
  for (const auto& [key, value] : metadata) {
    pairs.push_back({rust::String::lossy(key), rust::String::lossy(value)});
  }
  check(history.annotate(currentDeviceInline(), std::move(pairs)));
}

void pushCompileContext(const std::string& name) {
  push_compile_context(std::string(rust::String::lossy(name)));
}

void setUserMetadata(const std::string& text) {
  set_user_metadata(std::string(rust::String::lossy(text)));
}

void observe(const HistoryCore& history, OutOfMemoryObserver observer) {
  requireFunction("observer", observer);
  auto shared = std::make_unique<CppOutOfMemoryObserver>();
  shared->observer = std::move(observer);
  check(history.observe_failures(std::move(shared)));
}

void observeRejections(const HistoryCore& history, OomRejectionObserver observer) {
  requireFunction("observer", observer);
  auto shared = std::make_unique<CppOutOfMemoryObserver>();
  shared->rejection = std::move(observer);
  check(history.observe_failures(std::move(shared)));
}

void track(const HistoryCore& history, AllocatorTraceTracker tracker) {
  requireFunction("tracker", tracker);
  auto shared = std::make_unique<CppTracker>();
  shared->tracker = std::move(tracker);
  check(history.track(std::move(shared)));
}

}  // namespace bridge
}  // namespace plugalloc
