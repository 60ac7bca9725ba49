//! A GPU as a [`Device`]: each method leaves the rest to the part that knows.

use super::driver::Code;
use super::{CudaDevice, events, graphs, ipc, memory, peers, streams, vmm};
use crate::device::{
    Capabilities, CaptureId, Device, DeviceResult, EventId, HandleId, HandleType, HostFunction,
    IpcHandle, MemoryInfo, ShareableHandle,
};
use crate::error::DriverCall;
use crate::units::{Address, Bytes, DeviceId, StreamId};

impl Device for CudaDevice {
    fn id(&self) -> DeviceId {
        DeviceId(self.ordinal)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        ipc::capabilities(self)
    }

    fn native_context(&self) -> DeviceResult<Option<u64>> {
        let context = self.context(DriverCall::Open)?;
        Ok(Some(context.raw() as usize as u64))
    }

    fn in_context(&self, body: &mut dyn FnMut()) -> DeviceResult<()> {
        self.call(DriverCall::Open, |_| {
            body();
            Code(0)
        })
    }

    fn memory_info(&self) -> DeviceResult<MemoryInfo> {
        memory::info(self)
    }

    fn reserve(&self, bytes: Bytes) -> DeviceResult<Address> {
        vmm::reserve(self, bytes)
    }

    fn free_address(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        vmm::free_address(self, address, bytes)
    }

    fn create(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        vmm::create(self, bytes, false)
    }

    fn create_for_rdma(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        vmm::create(self, bytes, true)
    }

    fn release(&self, handle: HandleId) -> DeviceResult<()> {
        vmm::release(self, handle)
    }

    fn map(&self, address: Address, bytes: Bytes, handle: HandleId) -> DeviceResult<()> {
        vmm::map(self, address, bytes, handle)
    }

    fn set_access(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        vmm::set_access(self, address, bytes)
    }

    fn unmap(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        vmm::unmap(self, address, bytes)
    }

    fn malloc(&self, bytes: Bytes) -> DeviceResult<Address> {
        memory::malloc(self, bytes)
    }

    fn free(&self, address: Address) -> DeviceResult<()> {
        memory::free(self, address)
    }

    fn export_handle(
        &self,
        handle: HandleId,
        handle_type: HandleType,
    ) -> DeviceResult<ShareableHandle> {
        ipc::export_handle(self, handle, handle_type)
    }

    fn import_handle(&self, shared: &ShareableHandle) -> DeviceResult<HandleId> {
        ipc::import_handle(self, shared)
    }

    fn ipc_get_handle(&self, address: Address) -> DeviceResult<IpcHandle> {
        ipc::get_handle(self, address)
    }

    fn ipc_open_handle(&self, handle: IpcHandle) -> DeviceResult<Address> {
        ipc::open_handle(self, handle)
    }

    fn ipc_close_handle(&self, address: Address) -> DeviceResult<()> {
        ipc::close_handle(self, address)
    }

    fn stream_create(&self) -> DeviceResult<StreamId> {
        streams::create(self)
    }

    fn has_stream(&self, stream: StreamId) -> DeviceResult<bool> {
        streams::belongs(self, stream)
    }

    fn stream_destroy(&self, stream: StreamId) -> DeviceResult<()> {
        streams::destroy(self, stream)
    }

    fn stream_synchronize(&self, stream: StreamId) -> DeviceResult<()> {
        streams::synchronize(self, stream)
    }

    fn stream_wait_event(&self, stream: StreamId, event: EventId) -> DeviceResult<()> {
        streams::wait_event(self, stream, event)
    }

    fn synchronize(&self) -> DeviceResult<()> {
        streams::synchronize_all(self)
    }

    fn event_create(&self) -> DeviceResult<EventId> {
        events::create(self)
    }

    fn event_destroy(&self, event: EventId) -> DeviceResult<()> {
        events::destroy(self, event)
    }

    fn event_record(&self, event: EventId, stream: StreamId) -> DeviceResult<()> {
        events::record(self, event, stream)
    }

    fn event_query(&self, event: EventId) -> DeviceResult<bool> {
        events::query(self, event)
    }

    fn event_synchronize(&self, event: EventId) -> DeviceResult<()> {
        events::synchronize(self, event)
    }

    fn capture_begin(&self, stream: StreamId) -> DeviceResult<CaptureId> {
        graphs::begin(self, stream)
    }

    fn capture_end(&self, stream: StreamId) -> DeviceResult<CaptureId> {
        graphs::end(self, stream)
    }

    fn capture_status(&self, stream: StreamId) -> DeviceResult<Option<CaptureId>> {
        graphs::status(self, stream)
    }

    fn graph_launch(&self, graph: CaptureId, stream: StreamId) -> DeviceResult<()> {
        graphs::launch(self, graph, stream)
    }

    fn graph_destroy(&self, graph: CaptureId) -> DeviceResult<()> {
        graphs::destroy(self, graph)
    }

    unsafe fn copy_async(
        &self,
        to: Address,
        from: Address,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()> {
        memory::copy(self, to, from, bytes, stream)
    }

    fn fill_async(
        &self,
        at: Address,
        value: u8,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()> {
        memory::fill(self, at, value, bytes, stream)
    }

    fn host_function(&self, stream: StreamId, function: HostFunction) -> DeviceResult<()> {
        memory::host_function(self, stream, function)
    }

    fn can_access_peer(&self, peer: DeviceId) -> DeviceResult<bool> {
        peers::can_access(self, peer)
    }

    fn enable_peer_access(&self, peer: DeviceId) -> DeviceResult<()> {
        peers::enable(self, peer)
    }
}
