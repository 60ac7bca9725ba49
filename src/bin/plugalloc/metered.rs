//! A device that counts its calls and the time in them, and that can be given less memory than it
//! has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use plugalloc::device::{
    Capabilities, CaptureId, Device, DeviceResult, EventId, HandleId, HandleType, HostFunction,
    IpcHandle, MemoryInfo, ShareableHandle,
};
use plugalloc::error::{DeviceError, DeviceErrorKind, DriverCall};
use plugalloc::units::{GRANULE, align_up};
use plugalloc::{Address, Bytes, DeviceId, StreamId};

use crate::accounts::Accounts;
use crate::machine::Usage;

/// Forwards every call to another device.
pub(crate) struct Metered {
    device: Arc<dyn Device>,
    capacity: Bytes,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    accounts: Accounts,
    calls: u64,
    nanoseconds: u128,
}

impl Metered {
    /// Over `device`, which gives out no more than `capacity`.
    pub(crate) fn new(device: Arc<dyn Device>, capacity: Bytes) -> Self {
        Metered { device, capacity, counts: Mutex::default() }
    }

    /// What was counted.
    pub(crate) fn usage(&self) -> Usage {
        let counts = self.counts();
        Usage {
            used: counts.accounts.used(),
            used_peak: counts.accounts.used_peak(),
            calls: counts.calls,
            microseconds: counts.nanoseconds as f64 / 1e3,
        }
    }

    /// Counts from here on.
    pub(crate) fn reset(&self) {
        let mut counts = self.counts();
        counts.accounts.reset_peak();
        (counts.calls, counts.nanoseconds) = (0, 0);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, counts it, and where it succeeded keeps the accounts.
    fn call<T>(
        &self,
        call: impl FnOnce(&dyn Device) -> DeviceResult<T>,
        keep: impl FnOnce(&mut Accounts, &T),
    ) -> DeviceResult<T> {
        let start = Instant::now();
        let result = call(self.device.as_ref());
        let elapsed = start.elapsed();
        let mut counts = self.counts();
        counts.calls += 1;
        counts.nanoseconds += elapsed.as_nanos();
        if let Ok(value) = &result {
            keep(&mut counts.accounts, value);
        }
        result
    }

    /// A call that moves no memory.
    fn count<T>(&self, call: impl FnOnce(&dyn Device) -> DeviceResult<T>) -> DeviceResult<T> {
        self.call(call, |_, _| {})
    }

    /// Refuses what would exceed the capacity.
    fn admit(&self, call: DriverCall, bytes: Bytes) -> DeviceResult<()> {
        let mut counts = self.counts();
        let used = counts.accounts.used();
        if used.checked_add(bytes).is_some_and(|sum| sum <= self.capacity) {
            return Ok(());
        }
        counts.calls += 1;
        Err(DeviceError {
            call,
            device: self.device.id().0,
            kind: DeviceErrorKind::OutOfMemory,
            detail: format!("{bytes} bytes asked for, {used} of {} in use", self.capacity),
        })
    }
}

impl Device for Metered {
    fn id(&self) -> DeviceId {
        self.device.id()
    }
    fn name(&self) -> String {
        self.device.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }
    fn native_context(&self) -> DeviceResult<Option<u64>> {
        self.device.native_context()
    }
    fn in_context(&self, body: &mut dyn FnMut()) -> DeviceResult<()> {
        self.device.in_context(body)
    }
    fn memory_info(&self) -> DeviceResult<MemoryInfo> {
        let info = self.count(|d| d.memory_info())?;
        let total = info.total.min(self.capacity);
        let left = total.saturating_sub(self.counts().accounts.used());
        Ok(MemoryInfo { free: info.free.min(left), total })
    }

    fn reserve(&self, bytes: Bytes) -> DeviceResult<Address> {
        self.count(|d| d.reserve(bytes))
    }
    fn free_address(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.count(|d| d.free_address(address, bytes))
    }
    fn create(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        self.admit(DriverCall::Create, bytes)?;
        self.call(|d| d.create(bytes), |accounts, &handle| accounts.create(handle, bytes))
    }
    fn create_for_rdma(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        self.admit(DriverCall::Create, bytes)?;
        self.call(|d| d.create_for_rdma(bytes), |accounts, &handle| accounts.create(handle, bytes))
    }
    fn release(&self, handle: HandleId) -> DeviceResult<()> {
        self.call(|d| d.release(handle), |accounts, ()| accounts.release(handle))
    }
    fn map(&self, address: Address, bytes: Bytes, handle: HandleId) -> DeviceResult<()> {
        let map = |d: &dyn Device| d.map(address, bytes, handle);
        self.call(map, |accounts, ()| accounts.map(address, handle))
    }
    fn set_access(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.count(|d| d.set_access(address, bytes))
    }
    fn unmap(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.call(|d| d.unmap(address, bytes), |accounts, ()| accounts.unmap(address, bytes))
    }
    fn malloc(&self, bytes: Bytes) -> DeviceResult<Address> {
        // A driver takes whole granules, whatever it hands out of them.
        let taken = align_up(bytes, GRANULE);
        self.admit(DriverCall::Malloc, taken)?;
        self.call(|d| d.malloc(bytes), |accounts, &address| accounts.malloc(address, taken))
    }
    fn free(&self, address: Address) -> DeviceResult<()> {
        self.call(|d| d.free(address), |accounts, ()| accounts.free(address))
    }

    fn export_handle(
        &self,
        handle: HandleId,
        handle_type: HandleType,
    ) -> DeviceResult<ShareableHandle> {
        self.count(|d| d.export_handle(handle, handle_type))
    }
    fn import_handle(&self, shared: &ShareableHandle) -> DeviceResult<HandleId> {
        self.count(|d| d.import_handle(shared))
    }
    fn ipc_get_handle(&self, address: Address) -> DeviceResult<IpcHandle> {
        self.count(|d| d.ipc_get_handle(address))
    }
    fn ipc_open_handle(&self, handle: IpcHandle) -> DeviceResult<Address> {
        self.count(|d| d.ipc_open_handle(handle))
    }
    fn ipc_close_handle(&self, address: Address) -> DeviceResult<()> {
        self.count(|d| d.ipc_close_handle(address))
    }

    fn stream_create(&self) -> DeviceResult<StreamId> {
        self.count(|d| d.stream_create())
    }
    fn has_stream(&self, stream: StreamId) -> DeviceResult<bool> {
        self.device.has_stream(stream)
    }
    fn stream_destroy(&self, stream: StreamId) -> DeviceResult<()> {
        self.count(|d| d.stream_destroy(stream))
    }
    fn stream_synchronize(&self, stream: StreamId) -> DeviceResult<()> {
        self.count(|d| d.stream_synchronize(stream))
    }
    fn stream_wait_event(&self, stream: StreamId, event: EventId) -> DeviceResult<()> {
        self.count(|d| d.stream_wait_event(stream, event))
    }
    fn synchronize(&self) -> DeviceResult<()> {
        self.count(|d| d.synchronize())
    }

    fn event_create(&self) -> DeviceResult<EventId> {
        self.count(|d| d.event_create())
    }
    fn event_destroy(&self, event: EventId) -> DeviceResult<()> {
        self.count(|d| d.event_destroy(event))
    }
    fn event_record(&self, event: EventId, stream: StreamId) -> DeviceResult<()> {
        self.count(|d| d.event_record(event, stream))
    }
    fn event_query(&self, event: EventId) -> DeviceResult<bool> {
        self.count(|d| d.event_query(event))
    }
    fn event_synchronize(&self, event: EventId) -> DeviceResult<()> {
        self.count(|d| d.event_synchronize(event))
    }

    fn capture_begin(&self, stream: StreamId) -> DeviceResult<CaptureId> {
        self.count(|d| d.capture_begin(stream))
    }
    fn capture_end(&self, stream: StreamId) -> DeviceResult<CaptureId> {
        self.count(|d| d.capture_end(stream))
    }
    fn capture_status(&self, stream: StreamId) -> DeviceResult<Option<CaptureId>> {
        self.count(|d| d.capture_status(stream))
    }
    fn graph_launch(&self, graph: CaptureId, stream: StreamId) -> DeviceResult<()> {
        self.count(|d| d.graph_launch(graph, stream))
    }
    fn graph_destroy(&self, graph: CaptureId) -> DeviceResult<()> {
        self.count(|d| d.graph_destroy(graph))
    }

    unsafe fn copy_async(
        &self,
        to: Address,
        from: Address,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()> {
        // SAFETY: as the caller promises.
        self.count(|d| unsafe { d.copy_async(to, from, bytes, stream) })
    }
    fn fill_async(
        &self,
        at: Address,
        value: u8,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()> {
        self.count(|d| d.fill_async(at, value, bytes, stream))
    }
    fn host_function(&self, stream: StreamId, function: HostFunction) -> DeviceResult<()> {
        self.count(|d| d.host_function(stream, function))
    }

    fn can_access_peer(&self, peer: DeviceId) -> DeviceResult<bool> {
        self.count(|d| d.can_access_peer(peer))
    }
    fn enable_peer_access(&self, peer: DeviceId) -> DeviceResult<()> {
        self.count(|d| d.enable_peer_access(peer))
    }
}

#[cfg(test)]
mod tests {
    use plugalloc::device::sim::{SimMachine, SimOptions};
    use plugalloc::{Allocator, Config};

    use super::*;

    #[test]
    fn the_accounts_agree_with_those_of_a_device_that_keeps_its_own() {
        for config in ["", "expandable_segments:False", "caching:False"] {
            let sim = SimMachine::new(SimOptions::default()).unwrap().device(0);
            let metered = Arc::new(Metered::new(Arc::clone(&sim) as Arc<dyn Device>, Bytes::MAX));
            let device = Arc::clone(&metered) as Arc<dyn Device>;
            let allocator = Allocator::new(vec![device], Config::parse(config).unwrap()).unwrap();
            let allocate = |bytes, stream| allocator.allocate(DeviceId(0), bytes, StreamId(stream));
            let blocks: Vec<Address> = (1..40).map(|n| allocate(n << 20, n % 3).unwrap()).collect();
            blocks.iter().for_each(|block| allocator.free(*block).unwrap());
            let again = allocate(500 << 20, 7).unwrap();
            let (usage, ledger) = (metered.usage(), sim.ledger());
            assert_eq!((usage.used, usage.used_peak), (ledger.used, ledger.used_peak), "{config}");
            assert_eq!(usage.calls, ledger.total_calls, "{config}");
            allocator.free(again).unwrap();
            allocator.empty_cache().unwrap();
            assert_eq!((metered.usage().used, sim.ledger().used), (0, 0), "{config}");
        }
    }

    #[test]
    fn nothing_beyond_the_capacity_is_given_out() {
        let sim = SimMachine::new(SimOptions::default()).unwrap().device(0);
        let device = Metered::new(sim as Arc<dyn Device>, 5 << 20);
        let handle = device.create(4 << 20).unwrap();
        let error = device.create(2 << 20).unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::OutOfMemory);
        let info = device.memory_info().unwrap();
        assert_eq!((info.free, info.total), (1 << 20, 5 << 20));
        device.release(handle).unwrap();
        assert!(device.create(2 << 20).is_ok());
    }
}
