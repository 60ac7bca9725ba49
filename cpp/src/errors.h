// Errors between the bridge and exceptions. Internal.
#pragma once

#include <cstdint>
#include <string>

#include "plugalloc/error.h"
#include "rust/cxx.h"

namespace plugalloc {
namespace bridge {

struct ErrorRecord;

/// Throws the error that waits in this thread as the exception of its kind.
[[noreturn]] __attribute__((cold)) void throwLastError();

/// Throws it if `status` says that there is one.
inline void check(std::uint32_t status) {
  if (__builtin_expect(status != 0, 0)) {
    throwLastError();
  }
}

/// Throws `InvalidArgumentError`, with a text made of its parts.
[[noreturn]] void throwInvalidArgument(const char* argument, const std::string& value,
                                       const std::string& expected);

/// Throws `InvalidArgumentError` where a function is empty.
template <typename Function>
void requireFunction(const char* argument, const Function& function,
                     const char* expected = "a function to call") {
  if (!function) {
    throwInvalidArgument(argument, "an empty function", expected);
  }
}

/// The exception that is being handled, as data. Call it in a catch clause.
ErrorRecord recordOfCurrentException();

/// What is told of an exception that is no std::exception.
inline constexpr const char* kNoText = "an exception that is no std::exception";

/// Takes the exception that is being handled in a deleter to the handler, or keeps it: what is none
/// of ours was thrown by the program's function `callback`. Call it in a catch clause.
void reportFromDeleter(const char* callback) noexcept;

/// Runs a body that nobody is behind who could catch: its exception goes the same way.
template <typename Body>
void reporting(const char* callback, Body&& body) noexcept {
  try {
    body();
  } catch (...) {
    reportFromDeleter(callback);
  }
}

/// The error for a pointer that no allocator knows.
InvalidPointerError foreignPointer(const void* pointer);

inline rust::String toRust(const std::string& text) { return rust::String::lossy(text); }
inline std::string toStd(const rust::String& text) { return std::string(text.data(), text.size()); }

}  // namespace bridge
}  // namespace plugalloc
