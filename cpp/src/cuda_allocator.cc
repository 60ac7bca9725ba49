// The defaults of the interface: what an allocator does not have says so.
#include "plugalloc/cuda_allocator.h"

PLUGALLOC_BEGIN_NAMESPACE

GatheredContext::~GatheredContext() = default;
AllocatorState::~AllocatorState() = default;
CUDAAllocator::~CUDAAllocator() = default;

void* CUDAAllocator::allocateWithAddress(std::size_t, void*) { unsupported("allocateWithAddress"); }

std::vector<StreamSegmentSize> CUDAAllocator::getExpandableSegmentSizes(DeviceIndex) {
  unsupported("getExpandableSegmentSizes");
}
SnapshotInfo CUDAAllocator::snapshot(MempoolId_t, bool) { unsupported("snapshot"); }
std::shared_ptr<GatheredContext> CUDAAllocator::getContextForPointer(const void*) {
  return nullptr;
}

void CUDAAllocator::beginAllocateToPool(DeviceIndex, MempoolId_t,
                                        std::function<bool(cudaStream_t)>) {
  unsupported("beginAllocateToPool");
}
void CUDAAllocator::endAllocateToPool(DeviceIndex, MempoolId_t) {
  unsupported("endAllocateToPool");
}
void CUDAAllocator::releasePool(DeviceIndex, MempoolId_t) { unsupported("releasePool"); }
int CUDAAllocator::getPoolUseCount(DeviceIndex, MempoolId_t) { unsupported("getPoolUseCount"); }
void CUDAAllocator::createOrIncrefPool(DeviceIndex, MempoolId_t, std::shared_ptr<CUDAAllocator>) {
  unsupported("createOrIncrefPool");
}
void CUDAAllocator::setUseOnOOM(DeviceIndex, MempoolId_t, bool) { unsupported("setUseOnOOM"); }
void CUDAAllocator::setNoSplit(DeviceIndex, MempoolId_t) { unsupported("setNoSplit"); }
bool CUDAAllocator::checkPoolLiveAllocations(DeviceIndex, MempoolId_t,
                                             const std::unordered_set<void*>&) {
  unsupported("checkPoolLiveAllocations");
}
void CUDAAllocator::markCaptureBegin(DeviceIndex) {}
void CUDAAllocator::markCaptureEnd(DeviceIndex) {}
std::shared_ptr<AllocatorState> CUDAAllocator::getCheckpointState(DeviceIndex, MempoolId_t) {
  unsupported("getCheckpointState");
}
CheckpointDelta CUDAAllocator::setCheckpointPoolState(DeviceIndex,
                                                      std::shared_ptr<AllocatorState>) {
  unsupported("setCheckpointPoolState");
}

ShareableHandle CUDAAllocator::shareIpcHandle(void*) { unsupported("shareIpcHandle"); }
std::shared_ptr<void> CUDAAllocator::getIpcDevPtr(std::string) { unsupported("getIpcDevPtr"); }
void CUDAAllocator::enablePeerAccess(DeviceIndex, DeviceIndex) { unsupported("enablePeerAccess"); }
CudaStatus CUDAAllocator::memcpyAsync(void*, int, const void*, int, std::size_t, cudaStream_t,
                                      bool) {
  unsupported("memcpyAsync");
}

bool CUDAAllocator::isHistoryEnabled() { return false; }
void CUDAAllocator::recordHistory(bool, CreateContextFn, std::size_t, RecordContext, bool,
                                  const std::vector<std::string>&) {
  unsupported("recordHistory");
}
void CUDAAllocator::recordAnnotation(const std::vector<std::pair<std::string, std::string>>&) {}
void CUDAAllocator::pushCompileContext(std::string&) {}
void CUDAAllocator::popCompileContext() {}
bool CUDAAllocator::supportsUserMetadata() const { return false; }
void CUDAAllocator::setUserMetadata(const std::string&) {}
std::string CUDAAllocator::getUserMetadata() { return {}; }
void CUDAAllocator::attachOutOfMemoryObserver(OutOfMemoryObserver) {
  unsupported("attachOutOfMemoryObserver");
}
void CUDAAllocator::attachOomRejectionObserver(OomRejectionObserver) {
  unsupported("attachOomRejectionObserver");
}
void CUDAAllocator::attachAllocatorTraceTracker(AllocatorTraceTracker) {
  unsupported("attachAllocatorTraceTracker");
}

PLUGALLOC_END_NAMESPACE
