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
/// A process has one allocator of a class as a rule, and then a deleter costs two loads more than
/// `raw_delete`. They need no protection against the allocator going away: it goes only when it has
/// no allocations, and whoever deletes a valid pointer has one. With several, each is asked under a
/// shared lock; user functions are never called under it. Allocators may stand on each other, and
/// then several know a pointer. It is that of the one on top, who borrowed; among equals the
/// youngest, since an allocator is mostly made after those that it stands on.
template <typename State>
class DeleterRegistry {
 public:
  static void add(std::shared_ptr<State> state) {
    const std::lock_guard<std::shared_mutex> lock(mutex());
    entries().push_back({std::move(state), false});
    chooseSole();
  }

  /// The object that had a state is gone. The state goes if it owns nothing; otherwise with the
  /// last of its pointers, all of which can be deleted until then.
  static void retire(const std::shared_ptr<State>& state) noexcept {
    {
      const std::lock_guard<std::shared_mutex> lock(mutex());
      for (Entry& entry : entries()) {
        if (entry.state == state && !entry.retired) {
          entry.retired = true;
          retired_.fetch_add(1, std::memory_order_relaxed);
        }
      }
      chooseSole();
    }
    letGo(state.get());
  }

  /// The deleter.
  static void release(void* pointer) noexcept {
    if (pointer == nullptr) {
      return;
    }
    State* state = sole_.load(std::memory_order_acquire);
    reporting("free_fn", [pointer, &state] {
      if (state == nullptr) {
        state = &find(pointer);
      }
      state->release(pointer);
    });
    // A state that is retired is the sole one no more before it is looked whether it owns anything:
    // either that look sees this free, or this one sees that.
    if (sole_.load(std::memory_order_relaxed) != state &&
        retired_.load(std::memory_order_relaxed) > 0) {
      letGo(state);
    }
  }

 private:
  struct Entry {
    std::shared_ptr<State> state;
    /// Whether its object is gone.
    bool retired;
  };

  /// Lets a state go that is retired, owns nothing, and that nobody is inside of. It may have gone.
  static void letGo(const State* state) noexcept {
    const auto is = [state](const Entry& entry) { return entry.state.get() == state; };
    // Goes after the lock, under which it is not asked either: it has locks of its own.
    std::shared_ptr<State> going;
    {
      const std::shared_lock<std::shared_mutex> lock(mutex());
      const auto& all = entries();
      const auto found = std::find_if(all.begin(), all.end(), is);
      if (found == all.end() || !found->retired) {
        return;
      }
      going = found->state;
    }
    if (!going->isIdle()) {
      return;
    }
    const std::lock_guard<std::shared_mutex> lock(mutex());
    auto& all = entries();
    const auto found = std::find_if(all.begin(), all.end(), is);
    if (found != all.end()) {
      all.erase(found);
      retired_.fetch_sub(1, std::memory_order_relaxed);
      chooseSole();
    }
  }

  /// The owner of the pointer; where there is none, any state, which then refuses it.
  static State& find(void* pointer) {
    const std::shared_lock<std::shared_mutex> lock(mutex());
    const auto& all = entries();
    State* owner = nullptr;
    Claim claim = Claim::None;
    for (auto entry = all.rbegin(); entry != all.rend(); ++entry) {
      const Claim its = entry->state->claimOf(pointer);
      if (its > claim) {
        claim = its;
        owner = entry->state.get();
      }
    }
    if (owner != nullptr) {
      return *owner;
    }
    if (all.empty()) {
      throw foreignPointer(pointer);
    }
    return *all.back().state;
  }

  static void chooseSole() {
    const auto& all = entries();
    const bool sole = all.size() == 1 && !all.front().retired;
    sole_.store(sole ? all.front().state.get() : nullptr, std::memory_order_release);
  }

  // Never destroyed: deleters may run while static objects are.
  static std::vector<Entry>& entries() {
    static auto* const all = new std::vector<Entry>;
    return *all;
  }
  static std::shared_mutex& mutex() {
    static auto* const one = new std::shared_mutex;
    return *one;
  }

  /// The only state, whose object is there.
  static inline std::atomic<State*> sole_{nullptr};
  /// How many states are retired.
  static inline std::atomic<int> retired_{0};
};

}  // namespace bridge
}  // namespace plugalloc
