// A program's own allocator: what it gets by deriving from the interface.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstdlib>
#include <cstring>

using namespace plugalloc;

namespace {

void freeDeleter(void* pointer) { std::free(pointer); }

/// Implements what is pure, over malloc.
class MallocAllocator final : public CUDAAllocator {
 public:
  const char* name() const noexcept override { return "malloc"; }
  DataPtr allocate(std::size_t n) override {
    void* const block = raw_alloc(n);
    return DataPtr(block, block, &freeDeleter, Device{DeviceType::CUDA, 0});
  }
  DeleterFnPtr raw_deleter() const override { return &freeDeleter; }
  void copy_data(void* dest, const void* src, std::size_t n) const override {
    std::memcpy(dest, src, n);
  }
  void* raw_alloc(std::size_t n) override { return n == 0 ? nullptr : std::malloc(n); }
  void* raw_alloc_with_stream(std::size_t n, cudaStream_t) override { return raw_alloc(n); }
  void raw_delete(void* pointer) override { std::free(pointer); }
  bool initialized() override { return true; }
  void init(int) override {}
  void emptyCache(MempoolId_t) override {}
  void recordStream(const DataPtr&, cudaStream_t) override {}
  DeviceStats getDeviceStats(DeviceIndex) override { return {}; }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex) override {}
  double getMemoryFraction(DeviceIndex) override { return 1.0; }
  void setMemoryFraction(double, DeviceIndex) override {}
  void enable(bool) override {}
  bool isEnabled() const override { return true; }
  void cacheInfo(DeviceIndex, std::size_t*) override {}
  void* getBaseAllocation(void* pointer, std::size_t*) override { return pointer; }
};

template <typename Call>
void checkUnsupported(const char* method, Call&& call) {
  try {
    call();
    FAIL(method);
  } catch (const UnsupportedError& error) {
    CHECK(error.operation == method);
    CHECK(error.by == "malloc");
    CHECK(std::string(error.what()).find(method) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("ConvenienceComesFromTheBase") {
  MallocAllocator allocator;
  const int value = 42;
  const DataPtr copy = allocator.clone(&value, sizeof value);
  CHECK(std::memcmp(copy.get(), &value, sizeof value) == 0);
  CHECK(allocator.is_simple_data_ptr(copy));
  allocator.raw_deallocate(allocator.raw_allocate(16));
}

TEST_CASE("WhatIsMissingSaysSo") {
  MallocAllocator own;
  CUDAAllocator& a = own;
  const MempoolId_t pool{0, 1};
  checkUnsupported("snapshot", [&] { (void)a.snapshot(); });
  checkUnsupported("recordHistory",
                   [&] { a.recordHistory(true, nullptr, 1, RecordContext::NEVER, false, {}); });
  checkUnsupported("beginAllocateToPool", [&] { a.beginAllocateToPool(0, pool, {}); });
  checkUnsupported("endAllocateToPool", [&] { a.endAllocateToPool(0, pool); });
  checkUnsupported("releasePool", [&] { a.releasePool(0, pool); });
  checkUnsupported("getPoolUseCount", [&] { (void)a.getPoolUseCount(0, pool); });
  checkUnsupported("createOrIncrefPool", [&] { a.createOrIncrefPool(0, pool); });
  checkUnsupported("setUseOnOOM", [&] { a.setUseOnOOM(0, pool, true); });
  checkUnsupported("setNoSplit", [&] { a.setNoSplit(0, pool); });
  checkUnsupported("checkPoolLiveAllocations",
                   [&] { (void)a.checkPoolLiveAllocations(0, pool, {}); });
  checkUnsupported("shareIpcHandle", [&] { (void)a.shareIpcHandle(nullptr); });
  checkUnsupported("getIpcDevPtr", [&] { (void)a.getIpcDevPtr(""); });
  checkUnsupported("getCheckpointState", [&] { (void)a.getCheckpointState(0, pool); });
  checkUnsupported("setCheckpointPoolState", [&] { a.setCheckpointPoolState(0, nullptr); });
  checkUnsupported("attachOutOfMemoryObserver", [&] { a.attachOutOfMemoryObserver({}); });
  checkUnsupported("attachOomRejectionObserver", [&] { a.attachOomRejectionObserver({}); });
  checkUnsupported("attachAllocatorTraceTracker", [&] { a.attachAllocatorTraceTracker({}); });
  checkUnsupported("getExpandableSegmentSizes", [&] { (void)a.getExpandableSegmentSizes(0); });
  checkUnsupported("enablePeerAccess", [&] { a.enablePeerAccess(0, 1); });
  checkUnsupported("memcpyAsync",
                   [&] { a.memcpyAsync(nullptr, 0, nullptr, 0, 0, nullptr, false); });
  checkUnsupported("allocateWithAddress", [&] { (void)a.allocateWithAddress(1, nullptr); });
  checkUnsupported("getMemoryInfo", [&] { (void)a.getMemoryInfo(0); });
}

TEST_CASE("HistoryIsOffUnlessTheAllocatorHasOne") {
  MallocAllocator allocator;
  std::string context = "compile";
  CHECK_FALSE(allocator.isHistoryEnabled());
  allocator.recordAnnotation({{"name", "step"}});
  allocator.pushCompileContext(context);
  allocator.popCompileContext();
  allocator.setUserMetadata("text");
  CHECK_FALSE(allocator.supportsUserMetadata());
  CHECK(allocator.getUserMetadata().empty());
  CHECK(allocator.getContextForPointer(nullptr) == nullptr);
}
