/// @file
/// Visibility of what the library promises, and the ABI version.
#pragma once

#if __cplusplus < 201703L
#error "plugalloc needs C++17: compile with -std=c++17 or a later standard"
#endif

/// Marks a class or function that programs outside the library may use. Everything else is hidden.
#if defined(_WIN32)
#define PLUGALLOC_API
#else
#define PLUGALLOC_API __attribute__((visibility("default")))
#endif

/// Opens and closes the inline namespace that carries the ABI version. Two versions of the library
/// in one process have different symbols, so that neither can be mistaken for the other.
#define PLUGALLOC_BEGIN_NAMESPACE \
  namespace plugalloc {           \
  inline namespace v1 {
#define PLUGALLOC_END_NAMESPACE \
  }                             \
  }
