#include "tensor.h"

#include <utility>

namespace server {

void Gauge::add(std::size_t bytes) {
  const std::size_t live = live_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  std::size_t peak = peak_.load(std::memory_order_relaxed);
  while (live > peak && !peak_.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
  allocations_.fetch_add(1, std::memory_order_relaxed);
}

Tensor::Tensor(plugalloc::CUDAAllocator& allocator, Gauge& gauge, std::size_t words)
    : data_(allocator.allocate(words * sizeof(Word))), gauge_(&gauge), size_(words) {
  gauge.add(words * sizeof(Word));
}

Tensor::Tensor(Tensor&& other) noexcept
    : data_(std::move(other.data_)),
      gauge_(std::exchange(other.gauge_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  clear();
  data_ = std::move(other.data_);
  gauge_ = std::exchange(other.gauge_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

void Tensor::clear() {
  if (gauge_ != nullptr) {
    gauge_->subtract(size_ * sizeof(Word));
  }
  data_.clear();
  gauge_ = nullptr;
  size_ = 0;
}

}  // namespace server
