#include "allocators.h"

#include <array>
#include <limits>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <plugalloc/plugalloc.h>

namespace server {

namespace {

/// What an allocator counts itself.
Source counted(std::shared_ptr<plugalloc::CUDAAllocator> allocator) {
  const auto peak = [allocator] {
    return static_cast<std::size_t>(allocator->getDeviceStats(0).reserved_bytes[0].peak);
  };
  return {allocator, peak};
}

/// Which stream uses a block besides its own. Sharded, since all workers ask for every block.
class Users {
 public:
  void set(void* pointer, cudaStream_t stream) {
    Shard& shard = shardOf(pointer);
    const std::lock_guard<std::mutex> lock(shard.mutex);
    shard.streams[pointer] = stream;
  }
  /// Forgets the block; its other user, or `own`.
  cudaStream_t take(void* pointer, cudaStream_t own) {
    Shard& shard = shardOf(pointer);
    const std::lock_guard<std::mutex> lock(shard.mutex);
    const auto found = shard.streams.find(pointer);
    if (found == shard.streams.end()) {
      return own;
    }
    const cudaStream_t stream = found->second;
    shard.streams.erase(found);
    return stream;
  }

 private:
  struct alignas(64) Shard {
    std::mutex mutex;
    std::unordered_map<void*, cudaStream_t> streams;
  };
  Shard& shardOf(void* pointer) {
    return shards_[(reinterpret_cast<std::uintptr_t>(pointer) >> 9) % shards_.size()];
  }
  std::array<Shard, 64> shards_;
};

/// The driver's answer: memory, or null where there is none.
void* given(const CudaDriver& driver, int result, DevicePointer memory, const char* call) {
  if (result == kCudaOutOfMemory) {
    return nullptr;
  }
  driver.check(result, call);
  return reinterpret_cast<void*>(memory);
}

}  // namespace

Source makePlugalloc(const std::string& device, const std::string& conf) {
  plugalloc::Options options;
  options.device = device;
  options.conf = conf;
  return counted(plugalloc::createCachingAllocator(options));
}

Source makeUncachedSim() {
  Source source = makePlugalloc("sim", "");
  source.allocator->enable(false);
  return source;
}

Source makeCudaMalloc(std::shared_ptr<CudaDriver> driver) {
  return counted(plugalloc::createCustomAllocator(
      [driver](std::size_t size, int, cudaStream_t) {
        DevicePointer memory = 0;
        const int result = driver->mem_alloc(&memory, size);
        return given(*driver, result, memory, "cuMemAlloc");
      },
      [driver](void* pointer, std::size_t, int, cudaStream_t) {
        driver->check(driver->mem_free(reinterpret_cast<DevicePointer>(pointer)), "cuMemFree");
      }));
}

Source makeCudaMallocAsync(std::shared_ptr<CudaDriver> driver, bool keep) {
  void* pool = nullptr;
  driver->check(driver->get_default_pool(&pool, driver->device()), "cuDeviceGetDefaultMemPool");
  std::uint64_t threshold = keep ? std::numeric_limits<std::uint64_t>::max() : 0;
  driver->check(driver->pool_set(pool, kPoolReleaseThreshold, &threshold), "cuMemPoolSetAttribute");
  const auto users = std::make_shared<Users>();
  auto allocator = std::make_shared<plugalloc::PluggableAllocator>(
      [driver](std::size_t size, int, cudaStream_t stream) {
        DevicePointer memory = 0;
        const int result = driver->mem_alloc_async(&memory, size, stream);
        return given(*driver, result, memory, "cuMemAllocAsync");
      },
      [driver, users](void* pointer, std::size_t, int, cudaStream_t own) {
        // The server orders the second stream after the first, so that the second is the last to
        // use the block: freed there, it needs no event.
        const cudaStream_t last = users->take(pointer, own);
        driver->check(driver->mem_free_async(reinterpret_cast<DevicePointer>(pointer), last),
                      "cuMemFreeAsync");
      });
  allocator->set_record_stream_fn(
      [users](void* pointer, cudaStream_t stream) { users->set(pointer, stream); });
  return {std::move(allocator), [driver, pool] {
            std::uint64_t high = 0;
            driver->check(driver->pool_get(pool, kPoolReservedHigh, &high),
                          "cuMemPoolGetAttribute");
            return static_cast<std::size_t>(high);
          }};
}

}  // namespace server
