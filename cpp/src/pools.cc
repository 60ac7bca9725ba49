// Private pools of the caching allocator.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "caching_state.h"
#include "drive_pools.h"
#include "errors.h"
#include "thread_values.h"

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;

namespace {

bridge::PoolKey keyOf(MempoolId_t id) { return {id.first, id.second}; }

}  // namespace

void CachingAllocator::emptyCache(MempoolId_t mempool_id) {
  bridge::throwPendingDeleterError();
  check(state_->core->empty_pool(keyOf(mempool_id)));
}

void CachingAllocator::beginAllocateToPool(DeviceIndex device, MempoolId_t mempool_id,
                                           std::function<bool(cudaStream_t)> filter) {
  bridge::requireFunction("filter", filter, "a function of a stream");
  auto shared = std::make_unique<bridge::StreamFilter>();
  shared->matches = std::move(filter);
  check(state_->core->begin_pool(device, keyOf(mempool_id), std::move(shared)));
}

void CachingAllocator::endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id) {
  check(state_->core->end_pool(device, keyOf(mempool_id)));
}

void CachingAllocator::releasePool(DeviceIndex device, MempoolId_t mempool_id) {
  check(state_->core->release_pool(device, keyOf(mempool_id)));
}

int CachingAllocator::getPoolUseCount(DeviceIndex device, MempoolId_t mempool_id) {
  std::int32_t count = 0;
  check(state_->core->pool_use_count(device, keyOf(mempool_id), count));
  return count;
}

void CachingAllocator::createOrIncrefPool(DeviceIndex device, MempoolId_t mempool_id,
                                          std::shared_ptr<CUDAAllocator> allocator) {
  if (allocator.get() == this) {
    bridge::throwInvalidArgument("allocator", "the pool's own allocator", "another one, or null");
  }
  check(state_->core->create_pool(device, keyOf(mempool_id), std::move(allocator)));
}

void CachingAllocator::setUseOnOOM(DeviceIndex device, MempoolId_t mempool_id, bool use_on_oom) {
  check(state_->core->set_use_on_oom(device, keyOf(mempool_id), use_on_oom));
}

void CachingAllocator::setNoSplit(DeviceIndex device, MempoolId_t mempool_id) {
  check(state_->core->set_no_split(device, keyOf(mempool_id)));
}

bool CachingAllocator::checkPoolLiveAllocations(
    DeviceIndex device, MempoolId_t mempool_id,
    const std::unordered_set<void*>& expected_live_allocations) {
  std::vector<std::uint64_t> expected;
  expected.reserve(expected_live_allocations.size());
  for (const void* const pointer : expected_live_allocations) {
    expected.push_back(bridge::toNumber(pointer));
  }
  bool same = false;
  check(state_->core->pool_holds_exactly(device, keyOf(mempool_id),
                                         {expected.data(), expected.size()}, same));
  return same;
}

void CachingAllocator::markCaptureBegin(DeviceIndex device) {
  check(state_->core->mark_capture(device, true));
}

void CachingAllocator::markCaptureEnd(DeviceIndex device) {
  check(state_->core->mark_capture(device, false));
}

PLUGALLOC_END_NAMESPACE
