// Which allocator a bare pointer belongs to, for deleters, which get nothing but the pointer.
// Internal.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "errors.h"

namespace plugalloc {
namespace bridge {

/// How much of a claim an allocator has to a pointer.
enum class Claim {
  None,      ///< It does not know the pointer.
  Own,       ///< The pointer is in memory that it has.
  Borrowed,  ///< The same, and it has that memory from another allocator, which knows it too.
};

/// Every allocator of one class that may own a pointer. `State` has `claimOf(void*)`,
/// `release(void*)`, which may throw, and `isIdle()`.
///
/// A process has one allocator of a class as a rule, and then a deleter costs one relaxed load more
/// than `raw_delete`. That load needs no protection against the allocator going away: it goes only
/// when it has no allocations, and whoever deletes a valid pointer has one. With several, each is
/// asked under a shared lock; user functions are never called under it. Allocators may stand on
/// each other, and then several know a pointer. It is that of the one on top, who borrowed; among
/// equals the youngest, since an allocator is mostly made after those that it stands on.
template <typename State>
class DeleterRegistry {
 public:
  static void add(std::shared_ptr<State> state) {
    const std::lock_guard<std::shared_mutex> lock(mutex());
    states().push_back(std::move(state));
    chooseSole();
  }

  /// Lets a state go if it owns nothing; otherwise it stays, so that its pointers can be deleted.
  static void retire(const std::shared_ptr<State>& state) noexcept {
    if (!state->isIdle()) {
      return;
    }
    const std::lock_guard<std::shared_mutex> lock(mutex());
    auto& all = states();
    all.erase(std::remove(all.begin(), all.end(), state), all.end());
    chooseSole();
  }

  /// The deleter.
  static void release(void* pointer) noexcept {
    if (pointer == nullptr) {
      return;
    }
    reporting("free_fn", [pointer] {
      State* state = sole_.load(std::memory_order_acquire);
      if (state == nullptr) {
        state = &find(pointer);
      }
      state->release(pointer);
    });
  }

 private:
  /// The owner of the pointer; where there is none, any state, which then refuses it.
  static State& find(void* pointer) {
    const std::shared_lock<std::shared_mutex> lock(mutex());
    const auto& all = states();
    State* owner = nullptr;
    Claim claim = Claim::None;
    for (auto state = all.rbegin(); state != all.rend(); ++state) {
      const Claim its = (*state)->claimOf(pointer);
      if (its > claim) {
        claim = its;
        owner = state->get();
      }
    }
    if (owner != nullptr) {
      return *owner;
    }
    if (all.empty()) {
      throw foreignPointer(pointer);
    }
    return *all.back();
  }

  static void chooseSole() {
    const auto& all = states();
    sole_.store(all.size() == 1 ? all.front().get() : nullptr, std::memory_order_release);
  }

  // Never destroyed: deleters may run while static objects are.
  static std::vector<std::shared_ptr<State>>& states() {
    static auto* const all = new std::vector<std::shared_ptr<State>>;
    return *all;
  }
  static std::shared_mutex& mutex() {
    static auto* const one = new std::shared_mutex;
    return *one;
  }

  static inline std::atomic<State*> sole_{nullptr};
};

}  // namespace bridge
}  // namespace plugalloc
