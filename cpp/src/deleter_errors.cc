// Errors inside deleters: told to a handler, or kept for the next call that may throw.
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "errors.h"
#include "thread_values.h"

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

void tell(const DeleterErrorHandler& handler, const char* callback) noexcept {
  try {
    try {
      throw;
    } catch (const Error& error) {
      handler(error);
    } catch (const std::exception& error) {
      handler(CallbackError(callback, error.what()));
    } catch (...) {
      handler(CallbackError(callback, bridge::kNoText));
    }
  } catch (...) {
    // The handler's own exception has nowhere to go.
  }
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

std::atomic<bool> deleter_error_waits{false};

void reportFromDeleter(const char* callback) noexcept {
  std::shared_ptr<const DeleterErrorHandler> handler;
  {
    DeleterErrors& errors = deleterErrors();
    const std::lock_guard<std::mutex> lock(errors.mutex);
    handler = errors.handler;
    if (handler == nullptr && errors.first == nullptr) {
      errors.first = std::current_exception();
      deleter_error_waits.store(true, std::memory_order_relaxed);
    }
  }
  if (handler != nullptr) {
    tell(*handler, callback);
  }
}

void throwDeleterError() {
  std::exception_ptr first;
  {
    DeleterErrors& errors = deleterErrors();
    const std::lock_guard<std::mutex> lock(errors.mutex);
    first = std::exchange(errors.first, nullptr);
    deleter_error_waits.store(false, std::memory_order_relaxed);
  }
  if (first == nullptr) {
    throw Error("an error of a deleter was reported on another thread");
  }
  std::rethrow_exception(first);
}

}  // namespace bridge
}  // namespace plugalloc
