// Device memory that is counted.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include <plugalloc/cuda_allocator.h>

#include "pattern.h"

namespace server {

/// What one worker has allocated. A cache line of its own: written by its worker, read by all.
struct alignas(64) Meter {
  std::atomic<std::size_t> live{0};  ///< Bytes asked for.
  std::size_t allocations = 0;       ///< Ever.
};

/// What all workers have allocated. Counted here and not by the allocators, so that it means the
/// same for each of them.
class Gauge {
 public:
  explicit Gauge(std::size_t workers) : meters_(workers) {}
  [[nodiscard]] Meter& meter(std::size_t worker) { return meters_[worker]; }
  /// Looks what is live now, at one worker after another. Called where a worker needs most, so that
  /// the peak is seen, if not to the byte.
  void sample();
  /// The most that was seen, in bytes.
  [[nodiscard]] std::size_t peak() const { return peak_.load(std::memory_order_relaxed); }

 private:
  std::vector<Meter> meters_;
  alignas(64) std::atomic<std::size_t> peak_{0};
};

/// Memory of the current stream; frees itself.
class Tensor {
 public:
  Tensor() = default;
  Tensor(plugalloc::CUDAAllocator& allocator, Meter& meter, std::size_t words);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor() { clear(); }

  [[nodiscard]] Word* words() const { return static_cast<Word*>(data_.get()); }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] const plugalloc::DataPtr& data() const { return data_; }
  void clear();

 private:
  plugalloc::DataPtr data_;
  Meter* meter_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace server
