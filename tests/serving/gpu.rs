//! A GPU in time of its own: memory of a simulated device, streams and events as mere times. What
//! calls and kernels take is such that throughput and latency come out as on an H200
//! (`docs/policy-notes.md`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::device::{
    Capabilities, CaptureId, Device, DeviceResult, EventId, HandleId, HandleType, HostFunction,
    IpcHandle, MemoryInfo, ShareableHandle,
};
use plugalloc::error::{DeviceError, DeviceErrorKind, DriverCall};
use plugalloc::units::{Address, Bytes, DeviceId, GIB, StreamId};

/// What launching a kernel takes on the host and at least on the device, and how many bytes the
/// device moves in a microsecond.
const LAUNCH_NS: u64 = 4_000;
const KERNEL_NS: u64 = 9_000;
const BYTES_A_US: u64 = 2_000_000;
/// How many times its price a call for memory takes while many threads launch kernels.
const PRICES: f64 = 2.5;

/// The state of the device, in nanoseconds.
#[derive(Default)]
struct Times {
    /// The time of the thread that calls.
    now: u64,
    /// When another thread may call the driver for memory.
    lock: u64,
    /// The driver was called since the operation began.
    called: bool,
    /// When all that is queued on a stream will have run.
    streams: HashMap<StreamId, u64>,
    /// Since when each runs without a pause up to then.
    resumed: HashMap<StreamId, u64>,
    events: HashMap<EventId, u64>,
    next: u64,
}

impl Times {
    /// What is queued on a stream from here on starts at `time` or later; gives when.
    fn pause_until(&mut self, stream: StreamId, time: u64) -> u64 {
        let until = self.streams.entry(stream).or_default();
        if time > *until {
            *until = time;
            self.resumed.insert(stream, time);
        }
        *until
    }
}

/// The device.
pub(crate) struct Gpu {
    memory: Arc<SimDevice>,
    times: Mutex<Times>,
}

impl Gpu {
    pub(crate) fn new() -> Arc<Gpu> {
        let options = SimOptions { capacity: 80 * GIB, ..SimOptions::default() };
        let memory = SimMachine::new(options).unwrap().device(0);
        Arc::new(Gpu { memory, times: Mutex::default() })
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the driver's calls have taken.
    pub(crate) fn driver_us(&self) -> u64 {
        self.memory.ledger().microseconds as u64
    }

    pub(crate) fn calls(&self, call: DriverCall) -> u64 {
        self.memory.ledger().calls(call)
    }

    /// An operation of a thread whose time this is begins.
    pub(crate) fn begin(&self, now: u64) {
        let mut times = self.times();
        (times.now, times.called) = (now, false);
    }

    /// The operation ends; gives the thread's time. Where memory was asked for, calls of other
    /// threads wait for it, as they do for a lock.
    pub(crate) fn end(&self, locked: bool) -> u64 {
        let mut times = self.times();
        if locked && times.called {
            times.lock = times.now;
        }
        times.now
    }

    /// Queues work that moves so many bytes. Streams at work share the device; one that waits for
    /// another is not at work.
    pub(crate) fn launch(&self, stream: StreamId, bytes: Bytes) {
        let mut times = self.times();
        times.now += LAUNCH_NS;
        let now = times.now;
        let start = times.pause_until(stream, now);
        let at_work = |(other, until): (&StreamId, &u64)| {
            *other != stream && *until > start && times.resumed.get(other) <= Some(&start)
        };
        let busy = 1 + times.streams.iter().filter(|&each| at_work(each)).count() as u64;
        let until = start + KERNEL_NS + bytes * 1000 / BYTES_A_US * busy;
        times.streams.insert(stream, until);
    }

    /// Waits for a stream.
    pub(crate) fn wait(&self, stream: StreamId) {
        let mut times = self.times();
        let until = times.streams.get(&stream).copied().unwrap_or(0);
        times.now = times.now.max(until);
    }

    /// Lets one stream wait for another.
    pub(crate) fn follow(&self, later: StreamId, earlier: StreamId) {
        let mut times = self.times();
        let until = times.streams.get(&earlier).copied().unwrap_or(0);
        times.pause_until(later, until);
    }

    /// A call for memory, which takes its price.
    fn memory<T>(&self, call: impl FnOnce(&SimDevice) -> DeviceResult<T>) -> DeviceResult<T> {
        let before = self.memory.ledger().microseconds;
        let result = call(&self.memory);
        let ns = (self.memory.ledger().microseconds - before) * 1000.0 * PRICES;
        drop(self.take(ns as u64));
        result
    }

    fn take(&self, ns: u64) -> MutexGuard<'_, Times> {
        let mut times = self.times();
        if !times.called {
            times.now = times.now.max(times.lock);
            times.called = true;
        }
        times.now += ns;
        times
    }
}

fn missing<T>(call: DriverCall) -> DeviceResult<T> {
    let kind = DeviceErrorKind::Unsupported;
    Err(DeviceError { call, device: 0, kind, detail: "the server needs none".to_owned() })
}

impl Device for Gpu {
    fn id(&self) -> DeviceId {
        DeviceId(0)
    }
    fn name(&self) -> String {
        "GPU in time of its own".to_owned()
    }
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
    fn native_context(&self) -> DeviceResult<Option<u64>> {
        Ok(None)
    }
    fn memory_info(&self) -> DeviceResult<MemoryInfo> {
        self.memory(|d| d.memory_info())
    }

    fn reserve(&self, bytes: Bytes) -> DeviceResult<Address> {
        self.memory(|d| d.reserve(bytes))
    }
    fn free_address(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.memory(|d| d.free_address(address, bytes))
    }
    fn create(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        self.memory(|d| d.create(bytes))
    }
    fn create_for_rdma(&self, _: Bytes) -> DeviceResult<HandleId> {
        missing(DriverCall::Create)
    }
    fn release(&self, handle: HandleId) -> DeviceResult<()> {
        self.memory(|d| d.release(handle))
    }
    fn map(&self, address: Address, bytes: Bytes, handle: HandleId) -> DeviceResult<()> {
        self.memory(|d| d.map(address, bytes, handle))
    }
    fn set_access(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.memory(|d| d.set_access(address, bytes))
    }
    fn unmap(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.memory(|d| d.unmap(address, bytes))
    }
    fn malloc(&self, _: Bytes) -> DeviceResult<Address> {
        missing(DriverCall::Malloc)
    }
    fn free(&self, _: Address) -> DeviceResult<()> {
        missing(DriverCall::Free)
    }

    fn export_handle(&self, _: HandleId, _: HandleType) -> DeviceResult<ShareableHandle> {
        missing(DriverCall::ExportHandle)
    }
    fn import_handle(&self, _: &ShareableHandle) -> DeviceResult<HandleId> {
        missing(DriverCall::ImportHandle)
    }
    fn ipc_get_handle(&self, _: Address) -> DeviceResult<IpcHandle> {
        missing(DriverCall::IpcGetHandle)
    }
    fn ipc_open_handle(&self, _: IpcHandle) -> DeviceResult<Address> {
        missing(DriverCall::IpcOpenHandle)
    }
    fn ipc_close_handle(&self, _: Address) -> DeviceResult<()> {
        missing(DriverCall::IpcCloseHandle)
    }

    fn stream_create(&self) -> DeviceResult<StreamId> {
        missing(DriverCall::StreamCreate)
    }
    fn stream_destroy(&self, _: StreamId) -> DeviceResult<()> {
        missing(DriverCall::StreamDestroy)
    }
    fn stream_synchronize(&self, stream: StreamId) -> DeviceResult<()> {
        self.wait(stream);
        Ok(())
    }
    fn stream_wait_event(&self, stream: StreamId, event: EventId) -> DeviceResult<()> {
        let mut times = self.take(140);
        let until = times.events.get(&event).copied().unwrap_or(0);
        times.pause_until(stream, until);
        Ok(())
    }
    fn synchronize(&self) -> DeviceResult<()> {
        let mut times = self.take(0);
        times.now = times.streams.values().copied().fold(times.now, u64::max);
        Ok(())
    }
    fn event_create(&self) -> DeviceResult<EventId> {
        let mut times = self.take(300);
        times.next += 1;
        Ok(EventId(times.next))
    }
    fn event_destroy(&self, event: EventId) -> DeviceResult<()> {
        self.times().events.remove(&event);
        Ok(())
    }
    fn event_record(&self, event: EventId, stream: StreamId) -> DeviceResult<()> {
        let mut times = self.take(150);
        let until = times.streams.get(&stream).copied().unwrap_or(0);
        times.events.insert(event, until);
        Ok(())
    }
    fn event_query(&self, event: EventId) -> DeviceResult<bool> {
        let mut times = self.take(0);
        let until = times.events.get(&event).copied().unwrap_or(0);
        let passed = until <= times.now;
        times.now += if passed { 420 } else { 1_300 };
        Ok(passed)
    }
    fn event_synchronize(&self, event: EventId) -> DeviceResult<()> {
        let mut times = self.take(0);
        let until = times.events.get(&event).copied().unwrap_or(0);
        times.now = times.now.max(until);
        Ok(())
    }

    fn capture_begin(&self, _: StreamId) -> DeviceResult<CaptureId> {
        missing(DriverCall::CaptureBegin)
    }
    fn capture_end(&self, _: StreamId) -> DeviceResult<CaptureId> {
        missing(DriverCall::CaptureEnd)
    }
    fn capture_status(&self, _: StreamId) -> DeviceResult<Option<CaptureId>> {
        Ok(None)
    }
    fn graph_launch(&self, _: CaptureId, _: StreamId) -> DeviceResult<()> {
        missing(DriverCall::GraphLaunch)
    }
    fn graph_destroy(&self, _: CaptureId) -> DeviceResult<()> {
        missing(DriverCall::GraphDestroy)
    }
    unsafe fn copy_async(&self, _: Address, _: Address, _: Bytes, _: StreamId) -> DeviceResult<()> {
        missing(DriverCall::Copy)
    }
    fn fill_async(&self, _: Address, _: u8, _: Bytes, _: StreamId) -> DeviceResult<()> {
        missing(DriverCall::Fill)
    }
    fn host_function(&self, _: StreamId, _: HostFunction) -> DeviceResult<()> {
        missing(DriverCall::HostFunction)
    }
    fn can_access_peer(&self, _: DeviceId) -> DeviceResult<bool> {
        Ok(false)
    }
    fn enable_peer_access(&self, _: DeviceId) -> DeviceResult<()> {
        missing(DriverCall::EnablePeer)
    }
}
