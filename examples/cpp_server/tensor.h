// Device memory that is counted.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include <plugalloc/cuda_allocator.h>

#include "pattern.h"

namespace server {

/// What all workers have allocated. Counted here and not by the allocators, so that it means the
/// same for each of them.
class Gauge {
 public:
  void add(std::size_t bytes);
  void subtract(std::size_t bytes) { live_.fetch_sub(bytes, std::memory_order_relaxed); }
  /// The most that was ever live, in bytes asked for.
  [[nodiscard]] std::size_t peak() const { return peak_.load(std::memory_order_relaxed); }
  /// How often memory was asked for.
  [[nodiscard]] std::uint64_t allocations() const {
    return allocations_.load(std::memory_order_relaxed);
  }

 private:
  alignas(64) std::atomic<std::size_t> live_{0};
  std::atomic<std::size_t> peak_{0};
  std::atomic<std::uint64_t> allocations_{0};
};

/// Memory of the current stream; frees itself.
class Tensor {
 public:
  Tensor() = default;
  Tensor(plugalloc::CUDAAllocator& allocator, Gauge& gauge, std::size_t words);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor() { clear(); }

  [[nodiscard]] Word* words() const { return static_cast<Word*>(data_.get()); }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] const plugalloc::DataPtr& data() const { return data_; }
  void clear();

 private:
  plugalloc::DataPtr data_;
  Gauge* gauge_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace server
