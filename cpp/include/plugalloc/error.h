/// @file
/// The exceptions of the library. All derive from `plugalloc::Error`, carry their numbers as
/// members and a complete sentence in `what()`. Catch them by reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "plugalloc/export.h"
#include "plugalloc/types.h"

PLUGALLOC_BEGIN_NAMESPACE

/// Whatever this library reports.
class PLUGALLOC_API Error : public std::runtime_error {
 public:
  /// An error of this text.
  explicit Error(const std::string& message);
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
  ~Error() override;
};

/// What one stream holds, in bytes, for an out-of-memory error.
struct StreamUsage {
  cudaStream_t stream = nullptr;  ///< The stream.
  std::size_t allocated = 0;      ///< In live allocations.
  std::size_t cached = 0;         ///< Cached for the stream.
};

/// The numbers behind an out-of-memory error: bytes of one device. A number that the source of the
/// memory does not know (the total of user functions, say) is 0.
struct OutOfMemoryNumbers {
  std::size_t requested = 0;           ///< Asked for by the caller.
  int device = 0;                      ///< The device that was asked.
  std::size_t total = 0;               ///< The device's whole memory.
  std::size_t free = 0;                ///< Free as the device's driver counts.
  std::size_t allocated = 0;           ///< In live allocations.
  std::size_t reserved = 0;            ///< Taken from the device by this allocator.
  std::size_t limit = 0;               ///< The most that it may take; `total` if not limited.
  std::size_t largest_free_block = 0;  ///< The largest cached block.
  std::size_t pending = 0;             ///< Freed, but still waiting for other streams.
  double fragmentation = 0;            ///< 1 - largest cached block / cached bytes; no unit.
  std::vector<StreamUsage> streams;    ///< By stream.
  std::string hint;                    ///< What would help.
};

/// The request does not fit, after everything that could be given back was given back. The
/// allocator is unchanged and usable.
class PLUGALLOC_API OutOfMemoryError : public Error, public OutOfMemoryNumbers {
 public:
  /// An error of this text and these numbers.
  OutOfMemoryError(const std::string& message, OutOfMemoryNumbers numbers);
  OutOfMemoryError(const OutOfMemoryError&) = default;
  OutOfMemoryError& operator=(const OutOfMemoryError&) = default;
  ~OutOfMemoryError() override;
};

/// The request is larger than any device could ever serve (1 EiB or more). No device was looked at:
/// of the numbers of `OutOfMemoryError` there is `requested` alone.
class PLUGALLOC_API SizeTooLargeError : public OutOfMemoryError {
 public:
  /// An error about a request of `requested` bytes where `max` is the largest that is looked at.
  SizeTooLargeError(const std::string& message, std::size_t requested, std::size_t max);
  ~SizeTooLargeError() override;
  std::size_t max;  ///< The largest request that is looked at, in bytes.
};

/// What is wrong with a pointer.
enum class PointerFault {
  Foreign,     ///< Never handed out here, or its memory has been given back since.
  Interior,    ///< Inside a live allocation that starts elsewhere.
  DoubleFree,  ///< The allocation at this address was freed before.
};

/// What was to be done with a pointer.
enum class PointerUse {
  Free,          ///< To free it.
  RecordStream,  ///< To record a stream that uses it.
  Find,          ///< To tell or take over the allocation that starts there.
  Base,          ///< To tell the memory around it.
  Pin,           ///< To keep its memory in place.
  Share,         ///< To share its memory with other processes.
  Close,         ///< To close memory of another process.
};

/// A pointer with which the call can do nothing: it is not the start of a live allocation, or not
/// what else the call needs. Nothing was freed.
class PLUGALLOC_API InvalidPointerError : public Error {
 public:
  /// An error about `address`; `block_start`, `block_bytes` are 0 unless `kind` is `Interior`.
  InvalidPointerError(const std::string& message, std::uint64_t address, PointerFault kind,
                      std::uint64_t block_start = 0, std::size_t block_bytes = 0,
                      PointerUse purpose = PointerUse::Free);
  ~InvalidPointerError() override;
  std::uint64_t address;      ///< The pointer.
  PointerFault kind;          ///< What is wrong with it.
  std::uint64_t block_start;  ///< Where the allocation around it starts.
  std::size_t block_bytes;    ///< How long that allocation is.
  PointerUse purpose;         ///< What was to be done with it.
};

/// A configuration text that cannot be read.
class PLUGALLOC_API ConfigError : public Error {
 public:
  /// An error at byte `position` (from 0) of the text, about `key` (may be empty).
  ConfigError(const std::string& message, std::string key, std::size_t position,
              std::string problem, std::string expected);
  ~ConfigError() override;
  std::string key;       ///< The key at fault; empty if the text breaks before one is known.
  std::size_t position;  ///< Where reading stopped: a byte of the text, from 0.
  std::string problem;   ///< What is wrong there.
  std::string expected;  ///< What would be right.
};

/// The kinds of failure of a device.
enum class DeviceErrorKind {
  OutOfMemory,   ///< No memory for this call.
  Unsupported,   ///< The device or its driver cannot do this.
  Misuse,        ///< The contract of the call was broken.
  NotPermitted,  ///< Not allowed now, during a capture for instance.
  Lost,          ///< The device is lost, or an earlier kernel failed.
  NoDevice,      ///< There is no driver, or no device.
  Other,         ///< Anything else.
};

/// A call of the device's driver failed for a reason other than memory.
class PLUGALLOC_API DeviceError : public Error {
 public:
  /// An error of the driver call `call` on `device`.
  DeviceError(const std::string& message, std::string call, int device, DeviceErrorKind kind,
              std::string detail);
  ~DeviceError() override;
  std::string call;      ///< The call, such as "Map".
  int device;            ///< The device.
  DeviceErrorKind kind;  ///< What kind of failure it is.
  std::string detail;    ///< The driver's words for it.
};

/// An operation that this allocator, device or source of memory cannot do.
class PLUGALLOC_API UnsupportedError : public Error {
 public:
  /// An error saying that `by` (an allocator's `name()`) has no `operation` (a method), and why.
  UnsupportedError(std::string operation, std::string by, std::string why);
  ~UnsupportedError() override;
  std::string operation;  ///< What was asked for.
  std::string by;         ///< Who cannot do it.
  std::string why;        ///< Why not, and what to do instead.
};

/// An argument outside its range.
class PLUGALLOC_API InvalidArgumentError : public Error {
 public:
  /// An error about `argument`, which was `value` and should be `expected`.
  InvalidArgumentError(const std::string& message, std::string argument, std::string value,
                       std::string expected);
  ~InvalidArgumentError() override;
  std::string argument;  ///< The name of the argument.
  std::string value;     ///< What was passed.
  std::string expected;  ///< What would be right.
};

/// There is no such device.
class PLUGALLOC_API InvalidDeviceError : public InvalidArgumentError {
 public:
  /// An error about `device` where there are `count` devices, numbered from 0.
  InvalidDeviceError(const std::string& message, int device, std::size_t count);
  ~InvalidDeviceError() override;
  int device;         ///< The device asked for.
  std::size_t count;  ///< How many devices there are.
};

/// What is wrong with a checkpoint, or stands in its way.
enum class CheckpointFault {
  OtherAllocator,  ///< It was taken of a pool of another allocator.
  OtherDevice,     ///< It was taken on another device.
  PoolEnded,       ///< Its pool was released. One that was made later under its id is another one.
  MemoryGone,      ///< An allocation of the checkpoint has lost its memory.
  InUseByStreams,  ///< In the way of one is a block that other streams were recorded for.
  Pinned,          ///< An allocation that would end is pinned.
  Exported,        ///< An allocation that would end is shared with other processes.
};

/// A pool that cannot be brought back to a checkpoint. Nothing has changed.
class PLUGALLOC_API CheckpointError : public Error {
 public:
  /// An error about a checkpoint of `pool` on `device`; the last two are 0 unless `fault` is about
  /// an allocation.
  CheckpointError(const std::string& message, CheckpointFault fault, int device, MempoolId_t pool,
                  std::uint64_t address = 0, std::size_t bytes = 0);
  ~CheckpointError() override;
  CheckpointFault fault;  ///< What is wrong.
  int device;             ///< The device that the checkpoint was taken on.
  MempoolId_t pool;       ///< Its pool.
  std::uint64_t address;  ///< The allocation in question.
  std::size_t bytes;      ///< How long it is, as served.
};

/// The current allocator cannot be exchanged any more.
class PLUGALLOC_API AlreadyInitializedError : public Error {
 public:
  /// An error about the allocator called `allocator`.
  explicit AlreadyInitializedError(std::string allocator);
  ~AlreadyInitializedError() override;
  std::string allocator;  ///< The `name()` of the current allocator.
};

/// A function of the program that plugalloc called (a filter, a tracker, an allocator behind a
/// pool) threw something that is none of the kinds of error of this header.
class PLUGALLOC_API CallbackError : public Error {
 public:
  /// An error saying that the program's function `callback` threw `text`.
  CallbackError(std::string callback, std::string text);
  ~CallbackError() override;
  std::string callback;  ///< What the function is: "pool filter", "trace tracker".
  std::string text;      ///< What it said: `what()` of its exception.
};

/// One of the library's own invariants does not hold, or its Rust part panicked: a bug in
/// plugalloc.
class PLUGALLOC_API InternalError : public Error {
 public:
  /// An error about the invariant `check`, with what was found.
  InternalError(const std::string& message, std::string check, std::string detail);
  ~InternalError() override;
  std::string check;   ///< The name of the invariant, or where the panic was caught.
  std::string detail;  ///< What was found.
};

/// What is told of errors inside deleters.
using DeleterErrorHandler = std::function<void(const Error&)>;

/// Deleters never throw. An error inside one (a pointer freed twice, or an exception of a user's
/// `free_fn`, as a `CallbackError`) goes to this handler, on the thread of the deleter, outside
/// every lock; an exception from the handler itself is swallowed. So does what trackers, observers
/// and gatherers of contexts throw; then the handler is called where they were, and may do no more
/// than they: under a lock of the allocator for a tracker, whose exception it must not answer by
/// calling that allocator.
///
/// Without a handler (the default, or an empty function) the first such exception is kept as it
/// is, and thrown by the next `allocate`, `raw_alloc`, `raw_alloc_with_stream` or `emptyCache` of
/// any allocator of the process, instead of its work. Thread-safe.
PLUGALLOC_API void setDeleterErrorHandler(DeleterErrorHandler handler);

PLUGALLOC_END_NAMESPACE
