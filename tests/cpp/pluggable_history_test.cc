// History and snapshots of an allocator over user functions, and whoever is told of events.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace plugalloc;

namespace {

std::shared_ptr<PluggableAllocator> makeMalloc() {
  return std::dynamic_pointer_cast<PluggableAllocator>(createCustomAllocator(
      [](std::size_t size, int, cudaStream_t) { return std::malloc(size); },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); }));
}

struct Named : GatheredContext {};

std::shared_ptr<GatheredContext> gather() { return std::make_shared<Named>(); }

std::vector<TraceEntry::Action> actionsOf(const SnapshotInfo& info) {
  std::vector<TraceEntry::Action> actions;
  for (const TraceEntry& entry : info.device_traces.at(0)) {
    actions.push_back(entry.action_);
  }
  return actions;
}

}  // namespace

TEST_CASE("PluggableHistoryTellsWhatHappened") {
  const auto allocator = makeMalloc();
  CHECK_FALSE(allocator->isHistoryEnabled());
  allocator->recordHistory(true, &gather, 100, RecordContext::ALL, true, {"free_requested"});
  CHECK(allocator->isHistoryEnabled());
  CHECK(allocator->supportsUserMetadata());
  allocator->setUserMetadata("request 7");
  CHECK(allocator->getUserMetadata() == "request 7");
  std::string region = "forward";
  allocator->pushCompileContext(region);
  void* const block = allocator->raw_alloc(1000);
  allocator->popCompileContext();
  allocator->setUserMetadata("");
  CHECK(allocator->getContextForPointer(block) != nullptr);
  allocator->recordAnnotation({{"name", "step"}});

  const SnapshotInfo live = allocator->snapshot();
  REQUIRE(live.segments.size() == 1);
  CHECK(live.segments[0].address == reinterpret_cast<std::uintptr_t>(block));
  CHECK(live.segments[0].total_size == 1000);
  CHECK(live.segments[0].blocks.at(0).allocated);
  CHECK(live.segments[0].blocks.at(0).context_when_allocated != nullptr);
  CHECK(live.device_traces.at(0).at(1).compile_context_ == "forward");
  CHECK(live.device_traces.at(0).at(1).user_metadata_ == "request 7");
  REQUIRE(live.external_annotations.size() == 1);
  CHECK(live.external_annotations[0].metadata_.at("name") == "step");
  allocator->raw_delete(block);

  const std::vector<TraceEntry::Action> expected{TraceEntry::SEGMENT_ALLOC, TraceEntry::ALLOC,
                                                 TraceEntry::SNAPSHOT, TraceEntry::FREE_COMPLETED,
                                                 TraceEntry::SEGMENT_FREE};
  CHECK(actionsOf(allocator->snapshot()) == expected);
  CHECK(allocator->snapshot({0, 0}, false).device_traces.at(0).empty());
  CHECK(allocator->dumpSnapshot(SnapshotFormat::Json).find("segment_alloc") != std::string::npos);
  allocator->recordHistory(false, nullptr, 0, RecordContext::NEVER, true, {});
  CHECK_FALSE(allocator->isHistoryEnabled());
  CHECK(allocator->getDeviceStats(0).allocation[0].current == 0);
}

TEST_CASE("PluggableHistoryRefusesWhatItCannot") {
  const auto allocator = makeMalloc();
  CHECK_THROWS_AS((void)allocator->snapshot({0, 4}), UnsupportedError);
  CHECK_THROWS_AS(allocator->recordHistory(true, nullptr, 9, RecordContext::ALL, true, {}),
                  InvalidArgumentError);
  CHECK_THROWS_AS(
      allocator->recordHistory(true, nullptr, 9, RecordContext::NEVER, true, {"malloc"}),
      InvalidArgumentError);
  CHECK_THROWS_AS(allocator->attachAllocatorTraceTracker({}), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->attachOutOfMemoryObserver({}), InvalidArgumentError);
  CHECK_THROWS_AS(allocator->attachOomRejectionObserver([](auto...) {}), UnsupportedError);
}

TEST_CASE("PluggableTrackersGetNothingThatNobodyWouldHave") {
  std::size_t calls = 0;
  const auto allocator = std::dynamic_pointer_cast<PluggableAllocator>(createCustomAllocator(
      [&](std::size_t size, int, cudaStream_t) {
        ++calls;
        return std::malloc(size);
      },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); }));
  std::size_t refused = 0;
  allocator->attachAllocatorTraceTracker([&](const TraceEntry&) {
    const auto refuses = [&](auto call) {
      try {
        call();
      } catch (const UnsupportedError&) {
        ++refused;
      }
    };
    refuses([&] { (void)allocator->raw_alloc(64); });
    refuses([&] { (void)allocator->snapshot(); });
    refuses([&] { (void)allocator->getDeviceStats(0); });
    refuses([&] { allocator->setMemoryFraction(0.5, 0); });
  });
  allocator->raw_delete(allocator->raw_alloc(64));
  CHECK(calls == 1);
  CHECK(refused == 5 * 4);
}

TEST_CASE("PluggableObserversAreTold") {
  bool empty = false;
  const auto allocator = std::dynamic_pointer_cast<PluggableAllocator>(createCustomAllocator(
      [&](std::size_t size, int, cudaStream_t) { return empty ? nullptr : std::malloc(size); },
      [](void* pointer, std::size_t, int, cudaStream_t) { std::free(pointer); }));
  std::vector<TraceEntry::Action> seen;
  std::size_t refused = 0;
  allocator->attachAllocatorTraceTracker(
      [&](const TraceEntry& entry) { seen.push_back(entry.action_); });
  allocator->attachOutOfMemoryObserver(
      [&](std::int64_t, std::size_t size, std::size_t, std::size_t) { refused = size; });
  allocator->raw_delete(allocator->raw_alloc(64));
  CHECK(seen.size() == 5);
  empty = true;
  CHECK_THROWS_AS((void)allocator->raw_alloc(640), OutOfMemoryError);
  CHECK(refused == 640);
  CHECK(seen.back() == TraceEntry::OOM);
}
