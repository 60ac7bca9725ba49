/// @file
/// Everything, and the ways to get an allocator.
///
///     auto allocator = plugalloc::createCachingAllocator();
///     void* block = allocator->raw_alloc_with_stream(bytes, stream);
///     allocator->raw_delete(block);
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "plugalloc/caching_allocator.h"
#include "plugalloc/cuda_allocator.h"
#include "plugalloc/data_ptr.h"
#include "plugalloc/device_stream.h"
#include "plugalloc/error.h"
#include "plugalloc/memory_pin.h"
#include "plugalloc/pluggable_allocator.h"
#include "plugalloc/snapshot.h"
#include "plugalloc/stream.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// What to make a caching allocator from.
struct Options {
  /// "cuda": the GPUs of this machine. "sim": simulated ones, in host memory. "auto": the former
  /// where there is a driver and a GPU, else the latter.
  std::string device = "auto";
  /// Options in the syntax of `PLUGALLOC_CONF`, such as "garbage_collection_threshold:0.8", in
  /// place of those of the environment; empty: what the environment says, in `PLUGALLOC_CONF` or
  /// the variables of PyTorch (docs/CONFIG.md).
  std::string conf;
  /// Bytes of each simulated device; 0: 80 GiB. Only what is used takes memory of the host.
  std::size_t sim_capacity = 0;
  /// How many simulated devices; 0: one.
  int sim_devices = 0;
};

/// Makes a caching allocator, which shares nothing with others of the process.
/// @throws DeviceError for "cuda" without driver or GPU, ConfigError for options that cannot be
/// read, UnsupportedError for one that the device does not have, InvalidArgumentError for another
/// `device`, a number of devices below 0 or above 255 or a capacity above 1 EiB.
[[nodiscard]] PLUGALLOC_API std::shared_ptr<CUDAAllocator> createCachingAllocator(
    const Options& options = {});

/// Makes a `PluggableAllocator`; cast the result to set its hooks.
/// @throws InvalidArgumentError if one of the functions is empty.
[[nodiscard]] PLUGALLOC_API std::shared_ptr<CUDAAllocator> createCustomAllocator(
    std::function<void*(std::size_t, int, cudaStream_t)> alloc_fn,
    std::function<void(void*, std::size_t, int, cudaStream_t)> free_fn);

/// The allocator of this process. The first call makes a caching allocator with default options,
/// unless another was set before. Never null. Thread-safe; once the allocator is initialised a call
/// takes no lock. It is not destroyed at exit.
/// @throws what `createCachingAllocator` throws.
[[nodiscard]] PLUGALLOC_API std::shared_ptr<CUDAAllocator> getCurrentAllocator();

/// Makes `allocator` the one of this process. What the former one allocated still goes back to it.
/// Thread-safe.
/// @throws AlreadyInitializedError if the present one is initialised, InvalidArgumentError for
/// null; nothing is changed then.
PLUGALLOC_API void changeCurrentAllocator(const std::shared_ptr<CUDAAllocator>& allocator);

/// The library's version, such as "0.1.0". A string of static life.
[[nodiscard]] PLUGALLOC_API const char* version() noexcept;

PLUGALLOC_END_NAMESPACE
