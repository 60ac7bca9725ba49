//! Errors on their way over the bridge, and the one that waits in each thread.

use std::any::Any;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;

use super::records::ffi::{ErrorKind, ErrorRecord, StreamUsageRecord};
use crate::error::{
    CheckpointError, CheckpointFault, ConfigError, DeviceError, DeviceErrorKind, DriverCall, Error,
    InvalidPointer, OutOfMemory, PointerFault, PointerUse, Result, StreamUsage,
};
use crate::units::{DeviceId, PoolId, StreamId};

thread_local! {
    /// Never dropped, so that it is there for as long as the thread is: destructors of the
    /// program's own values of a thread run in an order that nobody controls, and may call an
    /// allocator. It is taken right after it was left.
    static LAST_ERROR: RefCell<ManuallyDrop<Option<Error>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

/// The status of a call that went well.
pub(crate) const OK: u32 = 0;
/// The status of a call whose error waits in the thread.
pub(crate) const FAILED: u32 = 1;

/// Runs an exported function: its error, or its panic, waits in the thread.
///
/// The error is kept inside of what is guarded, so that only a number passes through: an error is
/// large, and a result that holds one would be copied on every call.
#[inline]
pub(crate) fn guarded(body: impl FnOnce() -> Result<()>) -> u32 {
    let status = || match body() {
        Ok(()) => OK,
        Err(error) => keep(error),
    };
    catch_unwind(AssertUnwindSafe(status)).unwrap_or_else(|panic| keep_panic(&*panic))
}

/// The same for what keeps its error itself; `failed` where it panics.
#[inline(always)]
pub(crate) fn guarded_hot<T>(failed: T, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(panic) => {
            drop_panic(panic);
            failed
        }
    }
}

/// Keeps a panic as an error. By value, so that the caller has nothing to keep it in meanwhile.
#[cold]
#[inline(never)]
fn drop_panic(panic: Box<dyn Any + Send>) {
    keep_panic(&*panic);
}

/// The same for a call of a function of the program.
pub(crate) fn guarded_callback<T: Default>(
    callback: &str,
    out: &mut T,
    body: impl FnOnce() -> Result<T>,
) -> u32 {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = format!("a panic: {}", panic_text(&*panic));
        Err(Error::Callback { callback: callback.to_owned(), text })
    });
    match result {
        Ok(value) => {
            *out = value;
            OK
        }
        Err(error) => keep(error),
    }
}

/// The same for a function that answers a question; `otherwise` where it panics.
#[inline]
pub(crate) fn guarded_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

#[cold]
fn keep_panic(panic: &(dyn Any + Send)) -> u32 {
    keep(panic_error(panic))
}

/// Leaves an error for `take_last_error` of this thread.
#[cold]
pub(crate) fn keep(error: Error) -> u32 {
    LAST_ERROR.with(|last| **last.borrow_mut() = Some(error));
    FAILED
}

/// The error of the last call of this thread that failed.
pub(crate) fn take_last_error() -> ErrorRecord {
    let error = LAST_ERROR.with(|last| last.borrow_mut().take());
    ErrorRecord::from(error.unwrap_or_else(|| Error::Internal {
        check: "last error".to_owned(),
        detail: "a call failed without leaving an error".to_owned(),
    }))
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    Error::Internal { check: "panic".to_owned(), detail: panic_text(panic) }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without text".to_owned())
}

impl ErrorRecord {
    fn empty(kind: ErrorKind, message: String) -> ErrorRecord {
        ErrorRecord {
            kind,
            message,
            subject: String::new(),
            detail: String::new(),
            other: String::new(),
            device: 0,
            requested: 0,
            total: 0,
            free: 0,
            allocated: 0,
            reserved: 0,
            pending: 0,
            limit: 0,
            largest_free_block: 0,
            fragmentation: 0.0,
            streams: Vec::new(),
            address: 0,
            fault: 0,
            block_start: 0,
            block_bytes: 0,
            position: 0,
            pool: PoolId::DEFAULT.into(),
        }
    }
}

impl From<Error> for ErrorRecord {
    fn from(error: Error) -> ErrorRecord {
        let mut record = ErrorRecord::empty(kind_of(&error), error.to_string());
        match error {
            Error::OutOfMemory(numbers) => fill_out_of_memory(&mut record, *numbers),
            Error::SizeTooLarge { bytes, max } => {
                (record.requested, record.limit) = (bytes, max);
            }
            Error::InvalidDevice { device, count } => {
                (record.device, record.position) = (device.0, count as u64);
            }
            Error::InvalidPointer(pointer) => fill_pointer(&mut record, pointer),
            Error::Config(config) => {
                (record.subject, record.position) = (config.key, config.position as u64);
                (record.detail, record.other) = (config.problem, config.expected);
            }
            Error::Device(device) => {
                (record.subject, record.device) = (device.call.to_string(), device.device);
                record.fault =
                    DEVICE_KINDS.iter().position(|k| *k == device.kind).unwrap_or(6) as u32;
                record.detail = device.detail;
            }
            Error::Unsupported { operation, by, why } => {
                (record.subject, record.other, record.detail) = (operation, by, why);
            }
            Error::InvalidArgument { argument, value, expected } => {
                record.subject = argument.to_owned();
                (record.detail, record.other) = (value, expected);
            }
            Error::Checkpoint(error) => fill_checkpoint(&mut record, error),
            Error::InUse(_) => {
                (record.subject, record.detail) = ("function".to_owned(), record.message.clone());
            }
            Error::AlreadyInitialized(allocator) => record.subject = allocator,
            Error::Callback { callback, text } => {
                (record.subject, record.detail) = (callback, text);
            }
            Error::Internal { check, detail } => {
                (record.subject, record.detail) = (check, detail);
            }
        }
        record
    }
}

fn kind_of(error: &Error) -> ErrorKind {
    match error {
        Error::OutOfMemory(_) => ErrorKind::OutOfMemory,
        Error::SizeTooLarge { .. } => ErrorKind::SizeTooLarge,
        Error::InvalidDevice { .. } => ErrorKind::InvalidDevice,
        Error::InvalidPointer(_) => ErrorKind::InvalidPointer,
        Error::Config(_) => ErrorKind::Config,
        Error::Device(_) => ErrorKind::Device,
        Error::Unsupported { .. } => ErrorKind::Unsupported,
        Error::InvalidArgument { .. } => ErrorKind::InvalidArgument,
        Error::Checkpoint(_) => ErrorKind::Checkpoint,
        Error::AlreadyInitialized(_) => ErrorKind::AlreadyInitialized,
        // No call of C++ gives the first one: only a function of a Rust program does.
        Error::InUse(_) | Error::Callback { .. } => ErrorKind::Callback,
        Error::Internal { .. } => ErrorKind::Internal,
    }
}

fn fill_out_of_memory(record: &mut ErrorRecord, numbers: OutOfMemory) {
    record.requested = numbers.requested;
    record.device = numbers.device;
    record.total = numbers.total;
    record.free = numbers.free;
    record.allocated = numbers.allocated;
    record.reserved = numbers.reserved;
    record.pending = numbers.pending;
    record.limit = numbers.limit;
    record.largest_free_block = numbers.largest_free_block;
    record.fragmentation = numbers.fragmentation;
    record.detail = numbers.hint;
    let usage = |usage: StreamUsage| StreamUsageRecord {
        stream: usage.stream.0,
        allocated: usage.allocated,
        cached: usage.cached,
    };
    record.streams = numbers.streams.into_iter().map(usage).collect();
}

/// Where something stands in a list of all there is; 0 where it does not.
fn place_in<T: PartialEq>(all: &[T], one: T) -> usize {
    all.iter().position(|other| *other == one).unwrap_or(0)
}

fn fill_pointer(record: &mut ErrorRecord, pointer: InvalidPointer) {
    record.address = pointer.address;
    record.position = place_in(&PointerUse::ALL, pointer.purpose) as u64;
    match pointer.fault {
        PointerFault::Foreign => record.fault = 0,
        PointerFault::Interior { start, bytes } => {
            record.fault = 1;
            (record.block_start, record.block_bytes) = (start, bytes);
        }
        PointerFault::DoubleFree => record.fault = 2,
    }
}

fn fill_checkpoint(record: &mut ErrorRecord, error: CheckpointError) {
    record.fault = place_in(&CHECKPOINT_FAULTS, error.fault) as u32;
    (record.device, record.pool) = (error.device.0, error.pool.into());
    (record.block_start, record.block_bytes) = (error.address, error.bytes);
}

/// In the order in which C++ declares them.
const CHECKPOINT_FAULTS: [CheckpointFault; 7] = [
    CheckpointFault::OtherAllocator,
    CheckpointFault::OtherDevice,
    CheckpointFault::PoolEnded,
    CheckpointFault::MemoryGone,
    CheckpointFault::InUseByStreams,
    CheckpointFault::Pinned,
    CheckpointFault::Exported,
];

/// In the order in which C++ declares them.
const DEVICE_KINDS: [DeviceErrorKind; 7] = [
    DeviceErrorKind::OutOfMemory,
    DeviceErrorKind::Unsupported,
    DeviceErrorKind::Misuse,
    DeviceErrorKind::NotPermitted,
    DeviceErrorKind::Lost,
    DeviceErrorKind::NoDevice,
    DeviceErrorKind::Other,
];

/// The same text with a static life, as the type of an argument's name wants it. Each name is kept
/// once; there are as many as the program has argument names.
fn interned(name: String) -> &'static str {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock();
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    names.push(Box::leak(name.into_boxed_str()));
    names[names.len() - 1]
}

impl From<ErrorRecord> for Error {
    fn from(record: ErrorRecord) -> Error {
        match record.kind {
            ErrorKind::OutOfMemory => Error::OutOfMemory(Box::new(out_of_memory(record))),
            ErrorKind::SizeTooLarge => {
                Error::SizeTooLarge { bytes: record.requested, max: record.limit }
            }
            ErrorKind::InvalidDevice => Error::InvalidDevice {
                device: DeviceId(record.device),
                count: record.position as usize,
            },
            ErrorKind::InvalidPointer => Error::InvalidPointer(pointer(&record)),
            ErrorKind::Config => Error::Config(ConfigError {
                key: record.subject,
                position: record.position as usize,
                problem: record.detail,
                expected: record.other,
            }),
            ErrorKind::Device => Error::Device(device_error(record)),
            ErrorKind::Unsupported => Error::Unsupported {
                operation: record.subject,
                by: record.other,
                why: record.detail,
            },
            ErrorKind::InvalidArgument => Error::InvalidArgument {
                argument: interned(record.subject),
                value: record.detail,
                expected: record.other,
            },
            ErrorKind::Checkpoint => Error::Checkpoint(checkpoint(&record)),
            ErrorKind::AlreadyInitialized => Error::AlreadyInitialized(record.subject),
            ErrorKind::Internal => Error::Internal { check: record.subject, detail: record.detail },
            ErrorKind::Callback => {
                Error::Callback { callback: record.subject, text: record.detail }
            }
            _ => Error::Callback { callback: record.subject, text: record.message },
        }
    }
}

fn out_of_memory(record: ErrorRecord) -> OutOfMemory {
    let usage = |usage: StreamUsageRecord| StreamUsage {
        stream: StreamId(usage.stream),
        allocated: usage.allocated,
        cached: usage.cached,
    };
    OutOfMemory {
        requested: record.requested,
        device: record.device,
        total: record.total,
        free: record.free,
        allocated: record.allocated,
        reserved: record.reserved,
        pending: record.pending,
        limit: record.limit,
        largest_free_block: record.largest_free_block,
        fragmentation: record.fragmentation,
        streams: record.streams.into_iter().map(usage).collect(),
        hint: record.detail,
    }
}

fn pointer(record: &ErrorRecord) -> InvalidPointer {
    let fault = match record.fault {
        1 => PointerFault::Interior { start: record.block_start, bytes: record.block_bytes },
        2 => PointerFault::DoubleFree,
        _ => PointerFault::Foreign,
    };
    let purpose = PointerUse::ALL.get(record.position as usize).copied();
    let purpose = purpose.unwrap_or(PointerUse::Free);
    InvalidPointer { address: record.address, fault, purpose }
}

fn checkpoint(record: &ErrorRecord) -> CheckpointError {
    let fault = CHECKPOINT_FAULTS.get(record.fault as usize).copied();
    CheckpointError {
        device: DeviceId(record.device),
        pool: record.pool.into(),
        fault: fault.unwrap_or(CheckpointFault::OtherAllocator),
        address: record.block_start,
        bytes: record.block_bytes,
    }
}

fn device_error(record: ErrorRecord) -> DeviceError {
    let mut calls = DriverCall::ALL.into_iter();
    let kind = DEVICE_KINDS.get(record.fault as usize).copied();
    DeviceError {
        call: calls.find(|call| call.to_string() == record.subject).unwrap_or(DriverCall::Open),
        device: record.device,
        kind: kind.unwrap_or(DeviceErrorKind::Other),
        detail: record.detail,
    }
}
