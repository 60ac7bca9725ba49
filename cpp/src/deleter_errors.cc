// Errors inside deleters: told to a handler, or kept for the next call that may throw.
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "errors.h"

PLUGALLOC_BEGIN_NAMESPACE

namespace {

/// Kept for the life of the process: deleters may run while static objects are destroyed.
struct DeleterErrors {
  std::mutex mutex;
  std::shared_ptr<const DeleterErrorHandler> handler;
  std::exception_ptr first;
};

DeleterErrors& deleterErrors() {
  static DeleterErrors* const errors = new DeleterErrors;
  return *errors;
}

/// True while `first` is set. Read on every allocation and written only after an error, so that it
/// stays in every core's cache.
std::atomic<bool> pending{false};

void tell(const DeleterErrorHandler& handler) noexcept {
  try {
    try {
      throw;
    } catch (const Error& error) {
      handler(error);
    } catch (const std::exception& error) {
      handler(Error(error.what()));
    } catch (...) {
      handler(Error("an exception that is no std::exception"));
    }
  } catch (...) {
    // The handler's own exception has nowhere to go.
  }
}

[[noreturn]] void throwFirst() {
  std::exception_ptr first;
  {
    DeleterErrors& errors = deleterErrors();
    const std::lock_guard<std::mutex> lock(errors.mutex);
    first = std::exchange(errors.first, nullptr);
    pending.store(false, std::memory_order_relaxed);
  }
  if (first == nullptr) {
    throw Error("an error of a deleter was reported on another thread");
  }
  std::rethrow_exception(first);
}

}  // namespace

void setDeleterErrorHandler(DeleterErrorHandler handler) {
  std::shared_ptr<const DeleterErrorHandler> next;
  if (handler) {
    next = std::make_shared<const DeleterErrorHandler>(std::move(handler));
  }
  DeleterErrors& errors = deleterErrors();
  const std::lock_guard<std::mutex> lock(errors.mutex);
  errors.handler.swap(next);
}

PLUGALLOC_END_NAMESPACE

namespace plugalloc {
namespace bridge {

void reportFromDeleter() noexcept {
  std::shared_ptr<const DeleterErrorHandler> handler;
  {
    DeleterErrors& errors = deleterErrors();
    const std::lock_guard<std::mutex> lock(errors.mutex);
    handler = errors.handler;
    if (handler == nullptr && errors.first == nullptr) {
      errors.first = std::current_exception();
      pending.store(true, std::memory_order_relaxed);
    }
  }
  if (handler != nullptr) {
    tell(*handler);
  }
}

void throwPendingDeleterError() {
  if (__builtin_expect(pending.load(std::memory_order_relaxed), 0)) {
    throwFirst();
  }
}

}  // namespace bridge
}  // namespace plugalloc
