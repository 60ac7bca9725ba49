//! The errors of the library. Each variant holds the numbers that a reader needs to act on it.

mod checkpoint;
mod in_use;
mod pointer;

pub use checkpoint::{CheckpointError, CheckpointFault};
pub use in_use::InUse;
pub use pointer::{InvalidPointer, PointerFault, PointerUse};

use crate::units::{Bytes, DeviceId, StreamId, format_bytes};

/// The result of a fallible operation of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request does not fit, after everything that could be given back was given back.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
    /// The request is larger than any device could ever serve.
    #[error("cannot allocate {bytes} bytes: more than the largest request, {max} bytes (1 EiB)")]
    SizeTooLarge {
        /// The bytes asked for.
        bytes: Bytes,
        /// The largest request that is looked at.
        max: Bytes,
    },
    /// There is no such device.
    #[error("invalid device {}: this allocator has {count} device(s), numbered from 0", .device.0)]
    InvalidDevice {
        /// The device asked for.
        device: DeviceId,
        /// How many devices there are.
        count: usize,
    },
    /// A pointer that is not the start of a live allocation, or not what else the call needs.
    #[error("{0}")]
    InvalidPointer(InvalidPointer),
    /// A configuration that cannot be read.
    #[error("{0}")]
    Config(ConfigError),
    /// A call of the device's driver failed for a reason other than memory.
    #[error("{0}")]
    Device(DeviceError),
    /// An operation that this device, source of memory or framework cannot do.
    #[error("{operation} is not supported by {by}: {why}")]
    Unsupported {
        /// What was asked for.
        operation: String,
        /// Who cannot do it.
        by: String,
        /// Why not, and what to do instead.
        why: String,
    },
    /// An argument outside its range.
    #[error("invalid {argument} {value}; expected {expected}")]
    InvalidArgument {
        /// The name of the argument.
        argument: &'static str,
        /// What was passed.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A pool that cannot be brought back to a checkpoint.
    #[error("{0}")]
    Checkpoint(CheckpointError),
    /// Something is in use where the program expected nothing to be.
    #[error("{0}")]
    InUse(InUse),
    /// The current allocator cannot be exchanged any more.
    #[error("can't swap an already initialized allocator: {0}")]
    AlreadyInitialized(String),
    /// A function of the program, which the allocator called, threw an exception of its own or
    /// panicked.
    #[error("the program's {callback} threw: {text}")]
    Callback {
        /// What the function is: "pool filter", "alloc_fn".
        callback: String,
        /// What it said.
        text: String,
    },
    /// One of the allocator's own invariants does not hold, or it panicked: a bug in plugalloc.
    #[error("internal error in plugalloc ({check}): {detail}")]
    Internal {
        /// The name of the invariant, or where the panic was caught.
        check: String,
        /// What was found.
        detail: String,
    },
}

impl Error {
    /// True where the request failed for want of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::OutOfMemory(_))
    }

    /// True where a pointer was not the start of a live allocation.
    pub fn is_invalid_pointer(&self) -> bool {
        matches!(self, Error::InvalidPointer(_))
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Error::Device(error)
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::Config(error)
    }
}

impl From<CheckpointError> for Error {
    fn from(error: CheckpointError) -> Self {
        Error::Checkpoint(error)
    }
}

/// The numbers behind an out-of-memory error. All of them are bytes of one device.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// The bytes that the caller asked for.
    pub requested: Bytes,
    /// The device that was asked.
    pub device: i32,
    /// The device's whole memory; 0 where the source of the memory does not know it.
    pub total: Bytes,
    /// What the device itself reports as free.
    pub free: Bytes,
    /// In use by live allocations of this allocator.
    pub allocated: Bytes,
    /// Taken from the device by this allocator: allocated, waiting for streams, and cached.
    pub reserved: Bytes,
    /// Freed, but still waiting for other streams.
    pub pending: Bytes,
    /// The most that this allocator may take (memory fraction); equal to `total` where there is no
    /// limit.
    pub limit: Bytes,
    /// The largest cached block that could be handed out at once.
    pub largest_free_block: Bytes,
    /// `1 - largest_free_block / cached bytes`: 0 where all cached memory is in one block.
    pub fragmentation: f64,
    /// Allocated and cached bytes by stream.
    pub streams: Vec<StreamUsage>,
    /// What would help under the configuration in force.
    pub hint: String,
}

/// What one stream holds, for an out-of-memory error.
#[derive(Clone, Debug)]
pub struct StreamUsage {
    /// The stream.
    pub stream: StreamId,
    /// In live allocations.
    pub allocated: Bytes,
    /// Cached for the stream.
    pub cached: Bytes,
}

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.total == 0 {
            return self.write_without_total(f);
        }
        write!(
            f,
            "CUDA out of memory. Tried to allocate {}. GPU {} has a total capacity of {} of which \
             {} is free. ",
            format_bytes(self.requested),
            self.device,
            format_bytes(self.total),
            format_bytes(self.free),
        )?;
        if self.limit < self.total {
            write!(f, "{} allowed by the memory fraction. ", format_bytes(self.limit))?;
        }
        write!(
            f,
            "This allocator reserves {}, of which {} is allocated and {} waits for other streams. \
             The largest cached block is {} (fragmentation {:.3}).",
            format_bytes(self.reserved),
            format_bytes(self.allocated),
            format_bytes(self.pending),
            format_bytes(self.largest_free_block),
            self.fragmentation,
        )?;
        for usage in &self.streams {
            let (held, cached) = (format_bytes(usage.allocated), format_bytes(usage.cached));
            write!(f, " {}: {held} allocated, {cached} cached.", usage.stream)?;
        }
        if !self.hint.is_empty() {
            write!(f, " {}", self.hint)?;
        }
        Ok(())
    }
}

impl OutOfMemory {
    /// What there is to say where only the user's functions know the device.
    fn write_without_total(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "CUDA out of memory. Tried to allocate {} on GPU {}, where {} is allocated already. {}",
            format_bytes(self.requested),
            self.device,
            format_bytes(self.allocated),
            self.hint
        )
    }
}

/// A configuration text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The key at fault; empty where the text breaks before a key is known.
    pub key: String,
    /// The byte in the text at which reading stopped, from zero.
    pub position: usize,
    /// What is wrong there.
    pub problem: String,
    /// What would be right.
    pub expected: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "invalid allocator configuration at position {}", self.position)?;
        if !self.key.is_empty() {
            write!(f, ", key '{}'", self.key)?;
        }
        write!(f, ": {}; expected {}", self.problem, self.expected)
    }
}

impl std::error::Error for ConfigError {}

/// The calls that an allocator makes of a device, for error reports, fault injection and the
/// ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each name is the device method of that name")]
pub enum DriverCall {
    Reserve,
    FreeAddress,
    Create,
    Release,
    Map,
    SetAccess,
    Unmap,
    Malloc,
    Free,
    ExportHandle,
    ImportHandle,
    IpcGetHandle,
    IpcOpenHandle,
    IpcCloseHandle,
    MemoryInfo,
    StreamCreate,
    HasStream,
    StreamDestroy,
    StreamSynchronize,
    StreamWaitEvent,
    DeviceSynchronize,
    EventCreate,
    EventDestroy,
    EventRecord,
    EventQuery,
    EventSynchronize,
    CaptureBegin,
    CaptureEnd,
    CaptureStatus,
    GraphLaunch,
    GraphDestroy,
    Copy,
    Fill,
    HostFunction,
    EnablePeer,
    Open,
}

impl DriverCall {
    /// Every call, in declaration order.
    pub const ALL: [DriverCall; 36] = [
        DriverCall::Reserve,
        DriverCall::FreeAddress,
        DriverCall::Create,
        DriverCall::Release,
        DriverCall::Map,
        DriverCall::SetAccess,
        DriverCall::Unmap,
        DriverCall::Malloc,
        DriverCall::Free,
        DriverCall::ExportHandle,
        DriverCall::ImportHandle,
        DriverCall::IpcGetHandle,
        DriverCall::IpcOpenHandle,
        DriverCall::IpcCloseHandle,
        DriverCall::MemoryInfo,
        DriverCall::StreamCreate,
        DriverCall::HasStream,
        DriverCall::StreamDestroy,
        DriverCall::StreamSynchronize,
        DriverCall::StreamWaitEvent,
        DriverCall::DeviceSynchronize,
        DriverCall::EventCreate,
        DriverCall::EventDestroy,
        DriverCall::EventRecord,
        DriverCall::EventQuery,
        DriverCall::EventSynchronize,
        DriverCall::CaptureBegin,
        DriverCall::CaptureEnd,
        DriverCall::CaptureStatus,
        DriverCall::GraphLaunch,
        DriverCall::GraphDestroy,
        DriverCall::Copy,
        DriverCall::Fill,
        DriverCall::HostFunction,
        DriverCall::EnablePeer,
        DriverCall::Open,
    ];
}

impl std::fmt::Display for DriverCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The kinds of failure that an allocator tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceErrorKind {
    /// No memory for this call.
    OutOfMemory,
    /// The device, or its driver, cannot do this.
    Unsupported,
    /// The caller broke the contract of the call; the text says how.
    Misuse,
    /// The call is not allowed now (a capture is under way, for instance).
    NotPermitted,
    /// The device is lost, or an earlier kernel of the program failed.
    Lost,
    /// There is no driver, or no device.
    NoDevice,
    /// Anything else that a driver reports.
    Other,
}

/// A failed call of a device's driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} failed on device {device}: {detail}", .call)]
pub struct DeviceError {
    /// The call.
    pub call: DriverCall,
    /// The device.
    pub device: i32,
    /// What kind of failure it is.
    pub kind: DeviceErrorKind,
    /// The driver's name and words for it, or what the misuse was.
    pub detail: String,
}
