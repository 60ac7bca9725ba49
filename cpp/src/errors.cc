// Errors between the bridge and exceptions: one case for each kind, in both directions.
#include "errors.h"

#include <cstdio>

#include "handles.h"
#include "plugalloc/src/ffi/bridge.rs.h"

namespace plugalloc {
namespace bridge {

namespace {

OutOfMemoryNumbers numbersOf(const ErrorRecord& record) {
  OutOfMemoryNumbers numbers;
  numbers.requested = record.requested;
  numbers.device = record.device;
  numbers.total = record.total;
  numbers.free = record.free;
  numbers.allocated = record.allocated;
  numbers.reserved = record.reserved;
  numbers.limit = record.limit;
  numbers.largest_free_block = record.largest_free_block;
  numbers.pending = record.pending;
  numbers.fragmentation = record.fragmentation;
  numbers.hint = toStd(record.detail);
  for (const StreamUsageRecord& usage : record.streams) {
    numbers.streams.push_back({toStream(usage.stream), usage.allocated, usage.cached});
  }
  return numbers;
}

[[noreturn]] void throwRecord(const ErrorRecord& record) {
  const std::string message = toStd(record.message);
  const std::string subject = toStd(record.subject);
  const std::string detail = toStd(record.detail);
  const std::string other = toStd(record.other);
  switch (record.kind) {
    case ErrorKind::OutOfMemory:
      throw OutOfMemoryError(message, numbersOf(record));
    case ErrorKind::SizeTooLarge:
      throw SizeTooLargeError(message, record.requested, record.limit);
    case ErrorKind::InvalidDevice:
      throw InvalidDeviceError(message, record.device, record.position);
    case ErrorKind::InvalidPointer:
      throw InvalidPointerError(message, record.address, static_cast<PointerFault>(record.fault),
                                record.block_start, record.block_bytes,
                                static_cast<PointerUse>(record.position));
    case ErrorKind::Config:
      throw ConfigError(message, subject, record.position, detail, other);
    case ErrorKind::Device:
      throw DeviceError(message, subject, record.device, static_cast<DeviceErrorKind>(record.fault),
                        detail);
    case ErrorKind::Unsupported:
      throw UnsupportedError(subject, other, detail);
    case ErrorKind::InvalidArgument:
      throw InvalidArgumentError(message, subject, detail, other);
    case ErrorKind::Checkpoint:
      throw CheckpointError(message, static_cast<CheckpointFault>(record.fault), record.device,
                            {record.pool.first, record.pool.second}, record.block_start,
                            record.block_bytes);
    case ErrorKind::AlreadyInitialized:
      throw AlreadyInitializedError(subject);
    case ErrorKind::Callback:
      throw CallbackError(subject, detail);
    default:
      throw InternalError(message, subject, detail);
  }
}

ErrorRecord emptyRecord(ErrorKind kind, const char* message) {
  ErrorRecord record{};
  record.kind = kind;
  record.message = toRust(message);
  return record;
}

ErrorRecord recordOf(const OutOfMemoryError& error) {
  ErrorRecord record = emptyRecord(ErrorKind::OutOfMemory, error.what());
  record.requested = error.requested;
  record.device = error.device;
  record.total = error.total;
  record.free = error.free;
  record.allocated = error.allocated;
  record.reserved = error.reserved;
  record.limit = error.limit;
  record.largest_free_block = error.largest_free_block;
  record.pending = error.pending;
  record.fragmentation = error.fragmentation;
  record.detail = toRust(error.hint);
  for (const StreamUsage& usage : error.streams) {
    record.streams.push_back({toNumber(usage.stream), usage.allocated, usage.cached});
  }
  return record;
}

ErrorRecord recordOf(const InvalidPointerError& error) {
  ErrorRecord record = emptyRecord(ErrorKind::InvalidPointer, error.what());
  record.address = error.address;
  record.position = static_cast<std::uint64_t>(error.purpose);
  record.fault = static_cast<std::uint32_t>(error.kind);
  record.block_start = error.block_start;
  record.block_bytes = error.block_bytes;
  return record;
}

ErrorRecord recordOf(const DeviceError& error) {
  ErrorRecord record = emptyRecord(ErrorKind::Device, error.what());
  record.subject = toRust(error.call);
  record.device = error.device;
  record.fault = static_cast<std::uint32_t>(error.kind);
  record.detail = toRust(error.detail);
  return record;
}

ErrorRecord recordOf(const CheckpointError& error) {
  ErrorRecord record = emptyRecord(ErrorKind::Checkpoint, error.what());
  record.fault = static_cast<std::uint32_t>(error.fault);
  record.device = error.device;
  record.pool = {error.pool.first, error.pool.second};
  record.block_start = error.address;
  record.block_bytes = error.bytes;
  return record;
}

/// A record of a kind that has texts, and perhaps a position, but no other numbers.
ErrorRecord recordOfTexts(ErrorKind kind, const char* message, const std::string& subject,
                          const std::string& detail, const std::string& other,
                          std::uint64_t position = 0) {
  ErrorRecord record = emptyRecord(kind, message);
  record.subject = toRust(subject);
  record.detail = toRust(detail);
  record.other = toRust(other);
  record.position = position;
  return record;
}

}  // namespace

void throwLastError() { throwRecord(take_last_error()); }

void throwInvalidArgument(const char* argument, const std::string& value,
                          const std::string& expected) {
  throw InvalidArgumentError(
      std::string("invalid ") + argument + " " + value + "; expected " + expected, argument, value,
      expected);
}

InvalidPointerError foreignPointer(const void* pointer) {
  char text[96];
  std::snprintf(text, sizeof text, "Trying to free a pointer not allocated here: %#llx",
                static_cast<unsigned long long>(toNumber(pointer)));
  return InvalidPointerError(text, toNumber(pointer), PointerFault::Foreign);
}

ErrorRecord recordOfCurrentException() {
  try {
    throw;
  } catch (const SizeTooLargeError& error) {
    ErrorRecord record = emptyRecord(ErrorKind::SizeTooLarge, error.what());
    record.requested = error.requested;
    record.limit = error.max;
    return record;
  } catch (const OutOfMemoryError& error) {
    return recordOf(error);
  } catch (const InvalidPointerError& error) {
    return recordOf(error);
  } catch (const ConfigError& error) {
    return recordOfTexts(ErrorKind::Config, error.what(), error.key, error.problem, error.expected,
                         error.position);
  } catch (const DeviceError& error) {
    return recordOf(error);
  } catch (const UnsupportedError& error) {
    return recordOfTexts(ErrorKind::Unsupported, error.what(), error.operation, error.why,
                         error.by);
  } catch (const InvalidDeviceError& error) {
    ErrorRecord record = emptyRecord(ErrorKind::InvalidDevice, error.what());
    record.device = error.device;
    record.position = error.count;
    return record;
  } catch (const InvalidArgumentError& error) {
    return recordOfTexts(ErrorKind::InvalidArgument, error.what(), error.argument, error.value,
                         error.expected);
  } catch (const CheckpointError& error) {
    return recordOf(error);
  } catch (const AlreadyInitializedError& error) {
    return recordOfTexts(ErrorKind::AlreadyInitialized, error.what(), error.allocator, "", "");
  } catch (const CallbackError& error) {
    return recordOfTexts(ErrorKind::Callback, error.what(), error.callback, error.text, "");
  } catch (const InternalError& error) {
    return recordOfTexts(ErrorKind::Internal, error.what(), error.check, error.detail, "");
  } catch (const std::exception& error) {
    return recordOfTexts(ErrorKind::Foreign, error.what(), "function", "", "");
  } catch (...) {
    return recordOfTexts(ErrorKind::Foreign, kNoText, "function", "", "");
  }
}

}  // namespace bridge
}  // namespace plugalloc
