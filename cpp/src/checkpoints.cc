// Checkpoints of the caching allocator's private pools.
#include <memory>
#include <utility>

#include "caching_state.h"
#include "deleter_registry.h"
#include "errors.h"

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;
using Registry = bridge::DeleterRegistry<CachingAllocator::State>;

namespace {

struct CachingCheckpoint final : AllocatorState {
  rust::Box<bridge::SavedCheckpoint> saved = bridge::no_checkpoint();
};

}  // namespace

std::shared_ptr<AllocatorState> CachingAllocator::getCheckpointState(DeviceIndex device,
                                                                     MempoolId_t id) {
  auto state = std::make_shared<CachingCheckpoint>();
  check(state_->core->checkpoint_pool(device, {id.first, id.second}, *state->saved));
  return state;
}

CheckpointDelta CachingAllocator::setCheckpointPoolState(DeviceIndex device,
                                                         std::shared_ptr<AllocatorState> state) {
  const auto* const checkpoint = dynamic_cast<const CachingCheckpoint*>(state.get());
  if (checkpoint == nullptr) {
    bridge::throwInvalidArgument("state", state == nullptr ? "null" : "a state of another class",
                                 "what getCheckpointState of this allocator gave");
  }
  rust::Vec<std::uint64_t> freed;
  rust::Vec<std::uint64_t> allocated;
  check(state_->core->restore_pool(device, *checkpoint->saved, freed, allocated));
  CheckpointDelta delta;
  delta.ptrs_freed.reserve(freed.size());
  for (const std::uint64_t address : freed) {
    delta.ptrs_freed.push_back(bridge::toPointer(address));
  }
  delta.dataptrs_allocd.reserve(allocated.size());
  for (const std::uint64_t address : allocated) {
    void* const block = bridge::toPointer(address);
    delta.dataptrs_allocd.emplace_back(block, block, &Registry::release,
                                       Device{DeviceType::CUDA, device});
  }
  return delta;
}

PLUGALLOC_END_NAMESPACE
