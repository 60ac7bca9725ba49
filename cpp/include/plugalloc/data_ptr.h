/// @file
/// Owned device memory, with the semantics of PyTorch's `DataPtr`.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "plugalloc/export.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// Gives back what a context stands for. It must not throw, and may run on any thread.
using DeleterFnPtr = void (*)(void*);

/// Where memory lies.
enum class DeviceType : std::int8_t {
  CPU = 0,   ///< Host memory.
  CUDA = 1,  ///< Memory of a CUDA device, simulated or real.
};

/// One device.
struct Device {
  DeviceType type = DeviceType::CPU;  ///< Its type.
  DeviceIndex index = -1;             ///< Its index; -1 where the type has only one.

  friend bool operator==(const Device& a, const Device& b) noexcept {
    return a.type == b.type && a.index == b.index;
  }
  friend bool operator!=(const Device& a, const Device& b) noexcept { return !(a == b); }
};

/// The deleter of a pointer that owns nothing. It has one address for all who use one copy of the
/// library, so that it can be compared with.
PLUGALLOC_API void deleteNothing(void*) noexcept;

/// A pointer to device memory together with the context that owns it.
///
/// Move-only. The context is given to the deleter when the `DataPtr` dies, unless it is null. The
/// data pointer is not followed and may differ from the context. Destruction may happen on any
/// thread and never throws; it does not wait for queued work: memory goes back to the stream on
/// which it was allocated, in stream order. One object is not to be used by two threads at once.
class DataPtr {
 public:
  /// Null, on no device.
  DataPtr() noexcept : data_(nullptr), context_(nullptr, &deleteNothing) {}
  /// A pointer that owns nothing.
  DataPtr(void* data, Device device) noexcept
      : data_(data), context_(nullptr, &deleteNothing), device_(device) {}
  /// Owns `context`, which `deleter` (not run for a null context) gives back.
  DataPtr(void* data, void* context, DeleterFnPtr deleter, Device device) noexcept
      : data_(data),
        context_(context, deleter != nullptr ? deleter : &deleteNothing),
        device_(device) {}

  DataPtr(DataPtr&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        context_(std::move(other.context_)),
        device_(other.device_) {}
  DataPtr& operator=(DataPtr&& other) noexcept {
    data_ = std::exchange(other.data_, nullptr);
    context_ = std::move(other.context_);
    device_ = other.device_;
    return *this;
  }
  DataPtr(const DataPtr&) = delete;
  DataPtr& operator=(const DataPtr&) = delete;
  ~DataPtr() = default;

  /// Gives the context back now, and becomes null. Device and deleter stay.
  void clear() noexcept {
    data_ = nullptr;
    context_.reset();
  }
  /// The memory; still owned by this object.
  [[nodiscard]] void* get() const noexcept { return data_; }
  /// The same, for code that says where it writes.
  [[nodiscard]] void* mutable_get() noexcept { return data_; }
  /// The memory.
  void* operator->() const noexcept { return data_; }
  /// The context; still owned by this object.
  [[nodiscard]] void* get_context() const noexcept { return context_.get(); }
  /// Hands the context over to the caller, who gives it to `get_deleter()` when done.
  [[nodiscard]] void* release_context() noexcept { return context_.release(); }
  /// Hands the context over together with its deleter.
  [[nodiscard]] std::unique_ptr<void, DeleterFnPtr>&& move_context() noexcept {
    return std::move(context_);
  }
  /// True where there is memory or a context.
  explicit operator bool() const noexcept { return data_ != nullptr || context_ != nullptr; }

  /// The context as a `T*` if the deleter is `expected`, else null.
  template <typename T>
  [[nodiscard]] T* cast_context(DeleterFnPtr expected) const noexcept {
    return get_deleter() == expected ? static_cast<T*>(get_context()) : nullptr;
  }
  /// The deleter.
  [[nodiscard]] DeleterFnPtr get_deleter() const noexcept { return context_.get_deleter(); }
  /// Sets the deleter to `replacement` if it is `expected`; true if it was. The context is the
  /// same.
  [[nodiscard]] bool compare_exchange_deleter(DeleterFnPtr expected,
                                              DeleterFnPtr replacement) noexcept {
    if (get_deleter() != expected) {
      return false;
    }
    void* const context = context_.release();
    context_ = std::unique_ptr<void, DeleterFnPtr>(
        context, replacement != nullptr ? replacement : &deleteNothing);
    return true;
  }
  /// Points to other memory with that memory as the context, if `get() == get_context()`; the old
  /// context is not given back but returned to the caller's care. True if it was done.
  [[nodiscard]] bool unsafe_reset_data_and_ctx(void* data_and_context) noexcept {
    if (data_ != context_.get()) {
      return false;
    }
    (void)context_.release();
    context_.reset(data_and_context);
    data_ = data_and_context;
    return true;
  }
  /// Where the memory lies.
  [[nodiscard]] Device device() const noexcept { return device_; }
  /// Changes where the memory is said to lie; nothing is moved.
  void unsafe_set_device(Device device) noexcept { device_ = device; }

 private:
  void* data_;
  std::unique_ptr<void, DeleterFnPtr> context_;
  Device device_;
};

inline bool operator==(const DataPtr& pointer, std::nullptr_t) noexcept { return !pointer; }
inline bool operator==(std::nullptr_t, const DataPtr& pointer) noexcept { return !pointer; }
inline bool operator!=(const DataPtr& pointer, std::nullptr_t) noexcept { return bool(pointer); }
inline bool operator!=(std::nullptr_t, const DataPtr& pointer) noexcept { return bool(pointer); }

PLUGALLOC_END_NAMESPACE
