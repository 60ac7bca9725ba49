//! What the allocator demands of a device, and the two devices that meet it: [`sim`], a GPU in host
//! memory, and `cuda`, through the CUDA driver.
//!
//! A device gives memory and orders work. It decides nothing: no caching, rounding, retry or
//! statistics stands here.

mod clock;
pub mod cuda;
mod ipc;
mod pidfd;
pub mod sim;

pub use clock::Clock;
pub use ipc::{HandleType, HandleTypes, IpcHandle, ShareableHandle};
pub(crate) use pidfd::fetch as fetch_descriptor;

use crate::error::DeviceError;
use crate::units::{Address, Bytes, DeviceId, StreamId};

/// The result of a driver call.
pub type DeviceResult<T> = std::result::Result<T, DeviceError>;

/// Physical memory that can be mapped at addresses. A plain number: what it stands for is known to
/// the device that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(pub u64);

/// A point in a stream's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u64);

/// One capture of one stream, from begin to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaptureId(pub u64);

/// A device's memory, in bytes, as its driver counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anyone.
    pub free: Bytes,
    /// In all.
    pub total: Bytes,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The granularity of physical handles in bytes, a power of two, where the device has virtual
    /// memory management; `None` where only [`Device::malloc`] and [`Device::free`] work.
    pub virtual_memory: Option<Bytes>,
    /// What its physical handles can be exported as.
    pub handle_types: HandleTypes,
    /// Whether memory of [`Device::malloc`] has legacy handles ([`Device::ipc_get_handle`]).
    pub legacy_ipc: bool,
    /// Whether [`Device::create_for_rdma`] works.
    pub rdma: bool,
}

impl Capabilities {
    /// The abilities of a device whose handles are multiples of `virtual_memory` bytes, or which
    /// has no virtual memory management. No other process and no network card reaches its memory.
    pub fn new(virtual_memory: Option<Bytes>) -> Self {
        let handle_types = HandleTypes::NONE;
        Capabilities { virtual_memory, handle_types, legacy_ipc: false, rdma: false }
    }
}

/// Work that a stream runs on the host.
pub type HostFunction = Box<dyn FnOnce() + Send>;

/// One device.
///
/// Every method may be called from any thread. A method fails only for a reason that its caller
/// could not foresee (memory, a lost device, a missing ability) or because its caller broke the
/// contract written at the method; the latter is [`Misuse`](crate::error::DeviceErrorKind::Misuse)
/// where the device can tell. A failed call has changed nothing.
///
/// None of the calls on addresses and handles waits for queued work, and none protects it: whoever
/// unmaps or frees memory makes sure that no queued work still uses it. Only [`free`](Device::free)
/// waits, for the whole device, as `cudaFree` does.
pub trait Device: Send + Sync {
    /// The device's index.
    fn id(&self) -> DeviceId;
    /// The device's name, for messages.
    fn name(&self) -> String;
    /// What the device can do. Constant for the life of the device.
    fn capabilities(&self) -> Capabilities;
    /// The driver's context in which the device works, as the value of its `CUcontext`; `None` for
    /// a device that has none.
    fn native_context(&self) -> DeviceResult<Option<u64>>;
    /// Runs `body` with that context current in this thread, if there is one, for code that looks
    /// for it there. Fails without running it where the device is lost.
    fn in_context(&self, body: &mut dyn FnMut()) -> DeviceResult<()> {
        body();
        Ok(())
    }
    /// The device's memory now.
    fn memory_info(&self) -> DeviceResult<MemoryInfo>;

    /// Reserves `bytes` (a multiple of the granularity) of address space, aligned to the
    /// granularity. Nothing is mapped there.
    fn reserve(&self, bytes: Bytes) -> DeviceResult<Address>;
    /// Gives back a whole reservation, in which nothing is mapped.
    fn free_address(&self, address: Address, bytes: Bytes) -> DeviceResult<()>;
    /// Makes physical memory of `bytes` (a multiple of the granularity), which can be exported as
    /// every type of [`Capabilities::handle_types`].
    fn create(&self, bytes: Bytes) -> DeviceResult<HandleId>;
    /// As [`create`](Device::create), for memory that network cards reach where it is mapped, once
    /// it is registered with them (GPUDirect RDMA). Mapping and unmapping it takes longer.
    /// `Unsupported` without [`Capabilities::rdma`].
    fn create_for_rdma(&self, bytes: Bytes) -> DeviceResult<HandleId>;
    /// Gives physical memory back. It lives on while it is mapped somewhere, and counts as used
    /// until then.
    fn release(&self, handle: HandleId) -> DeviceResult<()>;
    /// Maps the whole handle of `bytes` at `address`, inside a reservation, where nothing is
    /// mapped. A handle may be mapped at several addresses at once. The memory is accessible after
    /// [`set_access`](Device::set_access).
    fn map(&self, address: Address, bytes: Bytes, handle: HandleId) -> DeviceResult<()>;
    /// Makes mapped memory readable and writable for the device and for each peer that was enabled.
    /// The span consists of whole mappings.
    fn set_access(&self, address: Address, bytes: Bytes) -> DeviceResult<()>;
    /// Unmaps the span, which consists of whole mappings.
    fn unmap(&self, address: Address, bytes: Bytes) -> DeviceResult<()>;

    /// Makes memory at an address of the device's choice, aligned to 512 bytes at least.
    fn malloc(&self, bytes: Bytes) -> DeviceResult<Address>;
    /// Frees memory of [`malloc`](Device::malloc), after waiting for all work of the device.
    fn free(&self, address: Address) -> DeviceResult<()>;

    /// Makes a form of physical memory that can be sent to another process. The memory lives on
    /// after its handle is released here, as [`ShareableHandle`] says. `Unsupported` for a type
    /// that [`Capabilities::handle_types`] lacks.
    fn export_handle(
        &self,
        handle: HandleId,
        handle_type: HandleType,
    ) -> DeviceResult<ShareableHandle>;
    /// Makes a handle of memory that this or another process exported: a further handle, mapped
    /// and released as one of [`create`](Device::create). It must be mapped with the length with
    /// which it was created, which the receiver has to be told. Fails for what was not exported by
    /// a device of this kind.
    fn import_handle(&self, shared: &ShareableHandle) -> DeviceResult<HandleId>;

    /// The legacy handle of memory of [`malloc`](Device::malloc), which starts at `address`. It is
    /// void once the memory is freed. `Unsupported` without [`Capabilities::legacy_ipc`].
    fn ipc_get_handle(&self, address: Address) -> DeviceResult<IpcHandle>;
    /// Maps memory of which another process has sent the legacy handle, and returns where it
    /// starts. Opening it again gives the same address, to be closed as often. `Misuse` for a
    /// handle of this process.
    fn ipc_open_handle(&self, handle: IpcHandle) -> DeviceResult<Address>;
    /// Takes one [`ipc_open_handle`](Device::ipc_open_handle) back; the last one unmaps the memory,
    /// which no queued work may use any more. The exporter frees its memory after that.
    fn ipc_close_handle(&self, address: Address) -> DeviceResult<()>;

    /// Makes a stream that does not synchronise with the default stream.
    fn stream_create(&self) -> DeviceResult<StreamId>;
    /// False where the stream is known to be another device's. The default streams are every
    /// device's.
    fn has_stream(&self, stream: StreamId) -> DeviceResult<bool> {
        let _ = stream;
        Ok(true)
    }
    /// Destroys a stream; what is queued on it still runs.
    fn stream_destroy(&self, stream: StreamId) -> DeviceResult<()>;
    /// Waits until everything queued on the stream has run.
    fn stream_synchronize(&self, stream: StreamId) -> DeviceResult<()>;
    /// Makes later work of `stream` wait for `event`. Returns at once.
    fn stream_wait_event(&self, stream: StreamId, event: EventId) -> DeviceResult<()>;
    /// Waits until everything queued on every stream of the device has run.
    fn synchronize(&self) -> DeviceResult<()>;

    /// Makes an event, which counts as completed until it is recorded.
    fn event_create(&self) -> DeviceResult<EventId>;
    /// Destroys an event, recorded or not.
    fn event_destroy(&self, event: EventId) -> DeviceResult<()>;
    /// Moves the event to the end of what is queued on `stream` now. Never called on a capturing
    /// stream.
    fn event_record(&self, event: EventId, stream: StreamId) -> DeviceResult<()>;
    /// True where everything before the event's last record has run.
    fn event_query(&self, event: EventId) -> DeviceResult<bool>;
    /// Waits for the event's last record.
    fn event_synchronize(&self, event: EventId) -> DeviceResult<()>;

    /// Begins to capture what is queued on the stream instead of running it.
    fn capture_begin(&self, stream: StreamId) -> DeviceResult<CaptureId>;
    /// Ends a capture. What was captured can be run again by
    /// [`graph_launch`](Device::graph_launch).
    fn capture_end(&self, stream: StreamId) -> DeviceResult<CaptureId>;
    /// The capture that the stream is in, if any.
    fn capture_status(&self, stream: StreamId) -> DeviceResult<Option<CaptureId>>;
    /// Queues a finished capture's work on a stream, as often as wanted.
    fn graph_launch(&self, graph: CaptureId, stream: StreamId) -> DeviceResult<()>;
    /// Forgets a finished capture.
    fn graph_destroy(&self, graph: CaptureId) -> DeviceResult<()>;

    /// Queues a copy of `bytes` on the stream, between any two of: this device's memory, a peer's
    /// memory, host memory.
    ///
    /// # Safety
    /// Memory of the host has to be valid until the copy has run, for as long as a graph may be
    /// launched that captured it; and so long nobody else writes to what is read, nor uses what is
    /// written.
    unsafe fn copy_async(
        &self,
        to: Address,
        from: Address,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()>;
    /// Queues filling `bytes` of a device's memory with `value`.
    fn fill_async(
        &self,
        at: Address,
        value: u8,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()>;
    /// Queues a function of the host. It must not call the device. `Unsupported` on a capturing
    /// stream, because it can run only once.
    fn host_function(&self, stream: StreamId, function: HostFunction) -> DeviceResult<()>;

    /// True where this device can reach the memory of `peer`. A device is no peer of itself.
    fn can_access_peer(&self, peer: DeviceId) -> DeviceResult<bool>;
    /// Lets this device reach the memory of `peer`, mapped before or later. Enabling twice is fine.
    fn enable_peer_access(&self, peer: DeviceId) -> DeviceResult<()>;
}
