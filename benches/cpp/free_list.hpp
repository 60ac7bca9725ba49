// The trivial allocator that both pluggable allocators are measured over, so that what is left is
// their own cost: a list of free blocks for each power of two under one lock, over addresses that
// nobody maps. And a plain call of the host's heap, for the limit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace bench {

class FreeList {
 public:
  void* take(std::size_t bytes) {
    const std::size_t order = orderOf(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<void*>& free = free_[order];
    if (free.empty()) {
      next_ += std::uintptr_t{1} << order;
      return reinterpret_cast<void*>(next_ - (std::uintptr_t{1} << order));
    }
    void* const block = free.back();
    free.pop_back();
    return block;
  }

  void give(void* block, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_[orderOf(bytes)].push_back(block);
  }

 private:
  static std::size_t orderOf(std::size_t bytes) {
    std::size_t order = 9;
    if (bytes > 512) {
      order = 64 - static_cast<std::size_t>(__builtin_clzll(bytes - 1));
    }
    return order;
  }

  std::mutex mutex_;
  std::array<std::vector<void*>, 48> free_;
  std::uintptr_t next_ = 0x500000000000;
};

inline FreeList& freeList() {
  static FreeList list;
  return list;
}

template <typename StreamHandle>
void* freeListAlloc(std::size_t bytes, int, StreamHandle) {
  return freeList().take(bytes);
}

template <typename StreamHandle>
void freeListFree(void* block, std::size_t bytes, int, StreamHandle) {
  freeList().give(block, bytes);
}

}  // namespace bench
