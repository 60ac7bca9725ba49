// The constructors and destructors of the exceptions. The destructors stand here so that each type
// has its vtable and type information in this library only.
#include "plugalloc/error.h"

#include <utility>

PLUGALLOC_BEGIN_NAMESPACE

Error::Error(const std::string& message) : std::runtime_error(message) {}
Error::~Error() = default;

OutOfMemoryError::OutOfMemoryError(const std::string& message, OutOfMemoryNumbers numbers)
    : Error(message), OutOfMemoryNumbers(std::move(numbers)) {}
OutOfMemoryError::~OutOfMemoryError() = default;

namespace {

OutOfMemoryNumbers onlyRequested(std::size_t requested) {
  OutOfMemoryNumbers numbers;
  numbers.requested = requested;
  return numbers;
}

std::string unsupportedText(const std::string& operation, const std::string& by,
                            const std::string& why) {
  return operation + " is not supported by " + by + ": " + why;
}

}  // namespace

SizeTooLargeError::SizeTooLargeError(const std::string& message, std::size_t requested,
                                     std::size_t max)
    : OutOfMemoryError(message, onlyRequested(requested)), max(max) {}
SizeTooLargeError::~SizeTooLargeError() = default;

InvalidPointerError::InvalidPointerError(const std::string& message, std::uint64_t address,
                                         PointerFault kind, std::uint64_t block_start,
                                         std::size_t block_bytes, PointerUse purpose)
    : Error(message),
      address(address),
      kind(kind),
      block_start(block_start),
      block_bytes(block_bytes),
      purpose(purpose) {}
InvalidPointerError::~InvalidPointerError() = default;

ConfigError::ConfigError(const std::string& message, std::string key, std::size_t position,
                         std::string problem, std::string expected)
    : Error(message),
      key(std::move(key)),
      position(position),
      problem(std::move(problem)),
      expected(std::move(expected)) {}
ConfigError::~ConfigError() = default;

DeviceError::DeviceError(const std::string& message, std::string call, int device,
                         DeviceErrorKind kind, std::string detail)
    : Error(message),
      call(std::move(call)),
      device(device),
      kind(kind),
      detail(std::move(detail)) {}
DeviceError::~DeviceError() = default;

UnsupportedError::UnsupportedError(std::string operation, std::string by, std::string why)
    : Error(unsupportedText(operation, by, why)),
      operation(std::move(operation)),
      by(std::move(by)),
      why(std::move(why)) {}
UnsupportedError::~UnsupportedError() = default;

InvalidArgumentError::InvalidArgumentError(const std::string& message, std::string argument,
                                           std::string value, std::string expected)
    : Error(message),
      argument(std::move(argument)),
      value(std::move(value)),
      expected(std::move(expected)) {}
InvalidArgumentError::~InvalidArgumentError() = default;

InvalidDeviceError::InvalidDeviceError(const std::string& message, int device, std::size_t count)
    : InvalidArgumentError(message, "device", std::to_string(device),
                           "a device below " + std::to_string(count)),
      device(device),
      count(count) {}
InvalidDeviceError::~InvalidDeviceError() = default;

CheckpointError::CheckpointError(const std::string& message, CheckpointFault fault, int device,
                                 MempoolId_t pool, std::uint64_t address, std::size_t bytes)
    : Error(message),
      fault(fault),
      device(device),
      pool(std::move(pool)),
      address(address),
      bytes(bytes) {}
CheckpointError::~CheckpointError() = default;

AlreadyInitializedError::AlreadyInitializedError(std::string allocator)
    : Error("can't swap an already initialized allocator: " + allocator),
      allocator(std::move(allocator)) {}
AlreadyInitializedError::~AlreadyInitializedError() = default;

CallbackError::CallbackError(std::string callback, std::string text)
    : Error("the program's " + callback + " threw: " + text),
      callback(std::move(callback)),
      text(std::move(text)) {}
CallbackError::~CallbackError() = default;

InternalError::InternalError(const std::string& message, std::string check, std::string detail)
    : Error(message), check(std::move(check)), detail(std::move(detail)) {}
InternalError::~InternalError() = default;

PLUGALLOC_END_NAMESPACE
