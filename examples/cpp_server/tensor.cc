#include "tensor.h"

#include <utility>

namespace server {

void Gauge::sample() {
  std::size_t live = 0;
  for (const Meter& meter : meters_) {
    live += meter.live.load(std::memory_order_relaxed);
  }
  std::size_t peak = peak_.load(std::memory_order_relaxed);
  while (live > peak && !peak_.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
}

Tensor::Tensor(plugalloc::CUDAAllocator& allocator, Meter& meter, std::size_t words)
    : data_(allocator.allocate(words * sizeof(Word))), meter_(&meter), size_(words) {
  // Only its worker writes a meter: no read-modify-write is needed.
  const std::size_t live = meter.live.load(std::memory_order_relaxed);
  meter.live.store(live + words * sizeof(Word), std::memory_order_relaxed);
  ++meter.allocations;
}

Tensor::Tensor(Tensor&& other) noexcept
    : data_(std::move(other.data_)),
      meter_(std::exchange(other.meter_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  clear();
  data_ = std::move(other.data_);
  meter_ = std::exchange(other.meter_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

void Tensor::clear() {
  if (meter_ != nullptr) {
    const std::size_t live = meter_->live.load(std::memory_order_relaxed);
    meter_->live.store(live - size_ * sizeof(Word), std::memory_order_relaxed);
  }
  data_.clear();
  meter_ = nullptr;
  size_ = 0;
}

}  // namespace server
