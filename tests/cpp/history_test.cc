// Histories, snapshots, and whoever is told of events.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace plugalloc;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::shared_ptr<CUDAAllocator> makeSim(const char* conf = "") {
  Options options;
  options.device = "sim";
  options.conf = conf;
  options.sim_capacity = 64 * kMiB;
  return createCachingAllocator(options);
}

struct Numbered : GatheredContext {
  explicit Numbered(int value) : number(value) {}
  int number;
};

int gathered = 0;

std::shared_ptr<GatheredContext> gather() { return std::make_shared<Numbered>(++gathered); }

std::shared_ptr<GatheredContext> gatherBadly() { throw std::runtime_error("no stack here"); }

int numberOf(const std::shared_ptr<GatheredContext>& context) {
  const auto numbered = std::dynamic_pointer_cast<Numbered>(context);
  return numbered == nullptr ? 0 : numbered->number;
}

/// The events about memory of `bytes`.
std::vector<TraceEntry> eventsOf(const SnapshotInfo& info, std::size_t bytes) {
  std::vector<TraceEntry> found;
  for (const TraceEntry& entry : info.device_traces.at(0)) {
    if (entry.size_ == bytes) {
      found.push_back(entry);
    }
  }
  return found;
}

}  // namespace

TEST_CASE("HistoryTellsWhatHappened") {
  const auto allocator = makeSim();
  CHECK_FALSE(allocator->isHistoryEnabled());
  gathered = 0;
  allocator->recordHistory(true, &gather, 100, RecordContext::ALL, true, {"free_completed"});
  CHECK(allocator->isHistoryEnabled());
  CHECK(allocator->supportsUserMetadata());
  allocator->setUserMetadata("request 7");
  CHECK(allocator->getUserMetadata() == "request 7");
  std::string region = "forward";
  allocator->pushCompileContext(region);
  void* const block = allocator->raw_alloc(1000);
  allocator->popCompileContext();
  CHECK(numberOf(allocator->getContextForPointer(block)) == 1);
  allocator->recordAnnotation({{"name", "step"}, {"stage", "START"}});
  allocator->raw_delete(block);
  allocator->setUserMetadata("");

  const SnapshotInfo info = allocator->snapshot();
  const auto events = eventsOf(info, 1000);
  REQUIRE(events.size() == 2);
  CHECK(events[0].action_ == TraceEntry::ALLOC);
  CHECK(events[0].addr_ == reinterpret_cast<std::uintptr_t>(block));
  CHECK(events[0].compile_context_ == "forward");
  CHECK(events[0].user_metadata_ == "request 7");
  CHECK(numberOf(events[0].context_) == 1);
  CHECK(events[0].time_us_ > 1600000000000000U);
  CHECK(events[1].action_ == TraceEntry::FREE_REQUESTED);
  CHECK(events[1].compile_context_.empty());
  CHECK(numberOf(events[1].context_) == 2);
  REQUIRE(info.external_annotations.size() == 1);
  CHECK(info.external_annotations[0].metadata_.at("stage") == "START");

  allocator->recordHistory(false, nullptr, 0, RecordContext::NEVER, false, {});
  CHECK_FALSE(allocator->isHistoryEnabled());
  CHECK(allocator->snapshot().device_traces.at(0).empty());
  CHECK(allocator->getContextForPointer(block) == nullptr);
}

TEST_CASE("SnapshotShowsEverySegment") {
  const auto allocator = makeSim("garbage_collection_threshold:0.5");
  void* const small = allocator->raw_alloc(1000);
  void* const large = allocator->raw_alloc(3 * kMiB);
  allocator->raw_delete(allocator->raw_alloc(8 * kMiB));
  const SnapshotInfo info = allocator->snapshot();
  std::size_t total = 0;
  std::size_t requested = 0;
  std::size_t allocated = 0;
  for (const SegmentInfo& segment : info.segments) {
    CHECK(segment.device == 0);
    CHECK(segment.is_expandable);
    CHECK(segment.registration_counter >= 0);
    CHECK(segment.owner_private_pool_id == MempoolId_t{0, 0});
    std::size_t blocks = 0;
    for (const BlockInfo& block : segment.blocks) {
      CHECK(block.active == block.allocated);
      blocks += block.size;
      requested += block.requested_size;
    }
    CHECK(blocks == segment.total_size);
    total += segment.total_size;
    allocated += segment.allocated_size;
  }
  const DeviceStats stats = allocator->getDeviceStats(0);
  CHECK(total == static_cast<std::size_t>(stats.reserved_bytes[0].current));
  CHECK(allocated == static_cast<std::size_t>(stats.allocated_bytes[0].current));
  CHECK(requested == 1000 + 3 * kMiB);
  CHECK(info.config_metadata.garbage_collection_threshold == 0.5);
  CHECK(info.config_metadata.expandable_segments);
  CHECK(info.config_metadata.last_allocator_settings.find("garbage_collection_threshold:0.5") !=
        std::string::npos);
  CHECK(allocator->snapshot({7, 7}).segments.empty());
  allocator->raw_delete(small);
  allocator->raw_delete(large);
}

TEST_CASE("SnapshotsBecomeFiles") {
  const auto allocator = std::dynamic_pointer_cast<CachingAllocator>(makeSim());
  REQUIRE(allocator != nullptr);
  allocator->raw_delete(allocator->raw_alloc(1000));
  const std::string pickle = allocator->dumpSnapshot();
  CHECK(pickle.substr(0, 2) == "\x80\x02");
  CHECK(pickle.back() == '.');
  const std::string json = allocator->dumpSnapshot(SnapshotFormat::Json);
  CHECK(json.substr(0, 14) == "{\"segments\": [");
  CHECK(json.find("\"is_expandable\": true") != std::string::npos);
}

TEST_CASE("HistoryRefusesWhatItCannotDo") {
  const auto allocator = makeSim();
  CHECK_THROWS_AS(allocator->recordHistory(true, nullptr, 9, RecordContext::STATE, false, {}),
                  InvalidArgumentError);
  CHECK_THROWS_WITH_AS(
      allocator->recordHistory(true, nullptr, 9, RecordContext::NEVER, false, {"malloc"}),
      doctest::Contains("malloc"), InvalidArgumentError);
  CHECK_FALSE(allocator->isHistoryEnabled());
  CHECK_THROWS_AS(allocator->attachOutOfMemoryObserver(nullptr), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->attachOomRejectionObserver(nullptr), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->attachAllocatorTraceTracker(nullptr), InvalidArgumentError);
}

TEST_CASE("FailedRequestsAreTold") {
  const auto allocator = makeSim();
  std::vector<std::int64_t> failed;
  std::vector<std::size_t> rejected;
  allocator->attachOutOfMemoryObserver(
      [&](std::int64_t device, std::size_t segment, std::size_t limit, std::size_t free) {
        failed.insert(failed.end(), {device, static_cast<std::int64_t>(segment / kMiB),
                                     static_cast<std::int64_t>(limit / kMiB),
                                     static_cast<std::int64_t>(free / kMiB)});
        // The allocator can be asked.
        CHECK(allocator->getDeviceStats(0).num_ooms >= 1);
      });
  allocator->attachOomRejectionObserver(
      [&](std::int64_t, std::size_t requested, std::size_t allocated, std::size_t total) {
        rejected = {requested, allocated / kMiB, total / kMiB};
      });
  CHECK_THROWS_AS((void)allocator->raw_alloc(65 * kMiB - 1), OutOfMemoryError);
  CHECK(failed == std::vector<std::int64_t>{0, 66, 64, 64});
  CHECK(rejected.empty());
  void* const block = allocator->raw_alloc(20 * kMiB);
  allocator->setMemoryFraction(0.5, 0);
  CHECK_THROWS_AS((void)allocator->raw_alloc(20 * kMiB), OutOfMemoryError);
  CHECK(failed.size() == 8);
  CHECK(failed[6] == 32);
  CHECK(rejected == std::vector<std::size_t>{20 * kMiB, 20, 64});
  allocator->raw_delete(block);
}

TEST_CASE("TrackersAreToldOfEveryEvent") {
  const auto allocator = makeSim("expandable_segments:False");
  std::vector<TraceEntry::Action> seen;
  allocator->attachAllocatorTraceTracker([&](const TraceEntry& entry) {
    seen.push_back(entry.action_);
    if (entry.action_ == TraceEntry::FREE_REQUESTED) {
      throw std::runtime_error("a tracker that throws");
    }
  });
  std::string error;
  static std::string* told = &error;
  setDeleterErrorHandler([](const Error& e) { *told = e.what(); });
  allocator->raw_delete(allocator->raw_alloc(1000));
  allocator->emptyCache();
  setDeleterErrorHandler(nullptr);
  const std::vector<TraceEntry::Action> expected = {
      TraceEntry::SEGMENT_ALLOC, TraceEntry::ALLOC, TraceEntry::FREE_REQUESTED,
      TraceEntry::FREE_COMPLETED, TraceEntry::SEGMENT_FREE};
  CHECK(seen == expected);
  CHECK(error == "the program's trace tracker threw: a tracker that throws");
}

TEST_CASE("TrackersThatCallTheirAllocatorAreRefused") {
  // The engine goes after the object, and tells of that: there is nothing to call any more.
  bool live = true;
  std::size_t calls = 0;
  std::size_t refused = 0;
  Options options;
  options.device = "sim";
  const auto made = createCachingAllocator(options);
  const auto allocator = std::dynamic_pointer_cast<CachingAllocator>(made);
  REQUIRE(allocator != nullptr);
  const std::uint64_t observer = allocator->observeMappings([](auto...) {});
  allocator->attachAllocatorTraceTracker([&](const TraceEntry&) {
    if (!live) {
      return;
    }
    const auto refuses = [&](auto call) {
      ++calls;
      try {
        call();
      } catch (const UnsupportedError&) {
        ++refused;
      }
    };
    std::size_t largest = 0;
    refuses([&] { (void)allocator->raw_alloc(64); });
    refuses([&] { (void)allocator->snapshot(); });
    refuses([&] { allocator->cacheInfo(0, &largest); });
    refuses([&] { allocator->emptyCache(); });
    refuses([&] { allocator->beginAllocateToPool(0, {1, 0}, [](auto) { return true; }); });
    refuses([&] { (void)allocator->unobserveMappings(observer); });
  });
  allocator->raw_delete(allocator->raw_alloc(1000));
  CHECK(calls > 0);
  CHECK(refused == calls);
  CHECK(allocator->unobserveMappings(observer));
  live = false;
}

TEST_CASE("ContextsThatCannotBeGatheredAreNone") {
  const auto allocator = makeSim();
  static int errors = 0;
  setDeleterErrorHandler([](const Error&) { ++errors; });
  allocator->recordHistory(true, &gatherBadly, 9, RecordContext::ALLOC, false, {});
  void* const block = allocator->raw_alloc(1000);
  CHECK(allocator->getContextForPointer(block) == nullptr);
  CHECK(errors == 1);
  allocator->raw_delete(block);
  setDeleterErrorHandler(nullptr);
}
