//! The simulated device as a [`Device`]: each method names its call, and leaves the rest to the
//! part that knows.

use super::SimDevice;
use super::ledger::{QUERY_DONE, QUERY_PENDING, RDMA, sized_price};
use super::machine::State;
use super::queue::{Node, Task};
use super::refusal::{Outcome, misuse, unsupported};
use crate::device::{
    Capabilities, CaptureId, Device, DeviceResult, EventId, HandleId, HandleType, HandleTypes,
    HostFunction, IpcHandle, MemoryInfo, ShareableHandle,
};
use crate::error::DriverCall;
use crate::units::{Address, Bytes, DeviceId, GRANULE, StreamId};

impl State {
    /// Adds the price of a call on something of `bytes`.
    fn charge(&mut self, device: usize, call: DriverCall, bytes: Bytes) {
        self.books[device].counters.charge(sized_price(call, bytes));
    }

    /// Queues or records work on memory that the device may access now.
    fn submit_node(&mut self, device: usize, slot: usize, node: Node) -> Outcome<()> {
        self.memory.check_node(device, &node)?;
        self.work.submit_or_record(slot, node)
    }
}

impl SimDevice {
    /// Fails during any capture where captures forbid what is unsafe in every thread.
    fn forbid_in_global_capture(&self, state: &mut State, what: &str) -> Outcome<()> {
        if self.shared.options.global_capture {
            state.work.forbid_in_captures(what, |_| true)?;
        }
        Ok(())
    }

    /// The index of another device of this machine.
    fn peer_index(&self, state: &State, peer: DeviceId) -> Outcome<usize> {
        peer.index()
            .filter(|&index| index < state.memory.banks.len())
            .ok_or_else(|| misuse(format!("there is no {peer}")))
    }
}

impl Device for SimDevice {
    fn id(&self) -> DeviceId {
        DeviceId(self.index as i32)
    }

    fn name(&self) -> String {
        format!("simulated device {}", self.index)
    }

    fn capabilities(&self) -> Capabilities {
        let virtual_memory = self.shared.options.virtual_memory;
        let rdma = virtual_memory && self.shared.options.rdma;
        let handle_types = HandleTypes { file_descriptor: virtual_memory, fabric: false };
        let granularity = virtual_memory.then_some(GRANULE);
        Capabilities { handle_types, legacy_ipc: true, rdma, ..Capabilities::new(granularity) }
    }

    fn native_context(&self) -> DeviceResult<Option<u64>> {
        Ok(None)
    }

    fn memory_info(&self) -> DeviceResult<MemoryInfo> {
        self.call(DriverCall::MemoryInfo, |state| {
            let bank = &mut state.memory.banks[self.index];
            bank.settle();
            Ok(bank.info())
        })
    }

    fn reserve(&self, bytes: Bytes) -> DeviceResult<Address> {
        self.call(DriverCall::Reserve, |state| {
            let address = state.memory.reserve(self.index, bytes)?;
            state.charge(self.index, DriverCall::Reserve, bytes);
            Ok(address)
        })
    }

    fn free_address(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.call(DriverCall::FreeAddress, |state| {
            state.memory.free_address(self.index, address, bytes)?;
            state.charge(self.index, DriverCall::FreeAddress, bytes);
            Ok(())
        })
    }

    fn create(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        self.call(DriverCall::Create, |state| {
            let handle = state.memory.create(self.index, bytes, false)?;
            state.charge(self.index, DriverCall::Create, bytes);
            Ok(handle)
        })
    }

    fn create_for_rdma(&self, bytes: Bytes) -> DeviceResult<HandleId> {
        self.call(DriverCall::Create, |state| {
            if !self.shared.options.rdma {
                return Err(unsupported("no network card reaches the memory of this device"));
            }
            let handle = state.memory.create(self.index, bytes, true)?;
            state.charge(self.index, DriverCall::Create, bytes);
            Ok(handle)
        })
    }

    fn release(&self, handle: HandleId) -> DeviceResult<()> {
        self.call(DriverCall::Release, |state| {
            let bytes = state.memory.release(self.index, handle)?;
            state.charge(self.index, DriverCall::Release, bytes);
            Ok(())
        })
    }

    fn map(&self, address: Address, bytes: Bytes, handle: HandleId) -> DeviceResult<()> {
        self.call(DriverCall::Map, |state| {
            let rdma = state.memory.map(self.index, address, bytes, handle)?;
            state.charge(self.index, DriverCall::Map, bytes);
            state.books[self.index].counters.charge(if rdma { RDMA } else { 0 });
            Ok(())
        })
    }

    fn set_access(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.call(DriverCall::SetAccess, |state| {
            let State { memory, books, .. } = &mut **state;
            let counters = &mut books[self.index].counters;
            memory.set_access(self.index, address, bytes, |each| {
                counters.charge(sized_price(DriverCall::SetAccess, each));
            })
        })
    }

    fn unmap(&self, address: Address, bytes: Bytes) -> DeviceResult<()> {
        self.call(DriverCall::Unmap, |state| {
            state.work.check_unused(address, bytes)?;
            let State { memory, books, .. } = &mut **state;
            let counters = &mut books[self.index].counters;
            memory.unmap(self.index, address, bytes, |each, rdma| {
                let more = if rdma { RDMA } else { 0 };
                counters.charge(sized_price(DriverCall::Unmap, each) + more);
            })
        })
    }

    fn malloc(&self, bytes: Bytes) -> DeviceResult<Address> {
        self.call(DriverCall::Malloc, |state| {
            self.forbid_in_global_capture(state, "malloc")?;
            let address = state.memory.malloc(self.index, bytes)?;
            state.charge(self.index, DriverCall::Malloc, bytes);
            Ok(address)
        })
    }

    fn free(&self, address: Address) -> DeviceResult<()> {
        self.call(DriverCall::Free, |state| {
            self.forbid_in_global_capture(state, "free")?;
            state.memory.allocation(self.index, address)?;
            self.shared.wait_while(state, |work| work.busy_stream_of(self.index))?;
            // While it waited, another thread may have freed the same memory; and a peer, whose
            // work is not waited for, may still use it.
            let bytes = state.memory.allocation(self.index, address)?;
            state.work.check_unused(address, bytes)?;
            state.memory.free(self.index, address)?;
            state.charge(self.index, DriverCall::Free, bytes);
            Ok(())
        })
    }

    fn export_handle(
        &self,
        handle: HandleId,
        handle_type: HandleType,
    ) -> DeviceResult<ShareableHandle> {
        self.call(DriverCall::ExportHandle, |state| {
            state.memory.export_handle(self.index, handle, handle_type)
        })
    }

    fn import_handle(&self, shared: &ShareableHandle) -> DeviceResult<HandleId> {
        self.call(DriverCall::ImportHandle, |state| state.memory.import_handle(self.index, shared))
    }

    fn ipc_get_handle(&self, address: Address) -> DeviceResult<IpcHandle> {
        self.call(DriverCall::IpcGetHandle, |state| {
            state.memory.ipc_get_handle(self.index, address)
        })
    }

    fn ipc_open_handle(&self, handle: IpcHandle) -> DeviceResult<Address> {
        self.call(DriverCall::IpcOpenHandle, |state| {
            state.memory.ipc_open_handle(self.index, handle)
        })
    }

    fn ipc_close_handle(&self, address: Address) -> DeviceResult<()> {
        self.call(DriverCall::IpcCloseHandle, |state| {
            let State { memory, work, .. } = &mut **state;
            memory.ipc_close_handle(self.index, address, |bytes| work.check_unused(address, bytes))
        })
    }

    fn stream_create(&self) -> DeviceResult<StreamId> {
        self.call(DriverCall::StreamCreate, |state| Ok(state.work.create_stream(self.index)))
    }

    fn has_stream(&self, stream: StreamId) -> DeviceResult<bool> {
        self.call(DriverCall::HasStream, |state| Ok(state.work.may_have(self.index, stream)))
    }

    fn stream_destroy(&self, stream: StreamId) -> DeviceResult<()> {
        self.call(DriverCall::StreamDestroy, |state| state.work.destroy_stream(self.index, stream))
    }

    fn stream_synchronize(&self, stream: StreamId) -> DeviceResult<()> {
        self.call(DriverCall::StreamSynchronize, |state| {
            let slot = state.work.stream(self.index, stream)?;
            state.work.forbid_in_capture(slot, "waiting for the stream")?;
            let end = state.work.end_of(slot);
            self.shared.wait_while(state, |work| work.stream_before(end))
        })
    }

    fn stream_wait_event(&self, stream: StreamId, event: EventId) -> DeviceResult<()> {
        self.call(DriverCall::StreamWaitEvent, |state| {
            let slot = state.work.stream(self.index, stream)?;
            if state.work.events.get(event)?.point.is_some() {
                let what = "waiting for an event recorded outside the capture";
                state.work.forbid_in_capture(slot, what)?;
            }
            state.work.wait_for(slot, event)
        })
    }

    fn synchronize(&self) -> DeviceResult<()> {
        self.call(DriverCall::DeviceSynchronize, |state| {
            let what = "waiting for the device";
            state.work.forbid_in_captures(what, |device| device == self.index)?;
            self.shared.wait_while(state, |work| work.busy_stream_of(self.index))
        })
    }

    fn event_create(&self) -> DeviceResult<EventId> {
        self.call(DriverCall::EventCreate, |state| Ok(state.work.events.create(self.index)))
    }

    fn event_destroy(&self, event: EventId) -> DeviceResult<()> {
        self.call(DriverCall::EventDestroy, |state| state.work.events.destroy(event))
    }

    fn event_record(&self, event: EventId, stream: StreamId) -> DeviceResult<()> {
        self.call(DriverCall::EventRecord, |state| {
            let slot = state.work.stream(self.index, stream)?;
            state.work.events.get(event)?;
            state.work.forbid_in_capture(slot, "recording an event")?;
            state.work.record(self.index, event, slot)
        })
    }

    fn event_query(&self, event: EventId) -> DeviceResult<bool> {
        self.call(DriverCall::EventQuery, |state| {
            self.forbid_in_global_capture(state, "querying an event")?;
            let completed = state.work.is_completed(event)?;
            let price = if completed { QUERY_DONE } else { QUERY_PENDING };
            state.books[self.index].counters.charge(price);
            Ok(completed)
        })
    }

    fn event_synchronize(&self, event: EventId) -> DeviceResult<()> {
        self.call(DriverCall::EventSynchronize, |state| {
            self.forbid_in_global_capture(state, "waiting for an event")?;
            let Some(point) = state.work.events.get(event)?.point else {
                return Ok(());
            };
            self.shared.wait_while(state, |work| work.stream_before(point))
        })
    }

    fn capture_begin(&self, stream: StreamId) -> DeviceResult<CaptureId> {
        self.call(DriverCall::CaptureBegin, |state| state.work.capture_begin(self.index, stream))
    }

    fn capture_end(&self, stream: StreamId) -> DeviceResult<CaptureId> {
        self.call(DriverCall::CaptureEnd, |state| state.work.capture_end(self.index, stream))
    }

    fn capture_status(&self, stream: StreamId) -> DeviceResult<Option<CaptureId>> {
        self.call(DriverCall::CaptureStatus, |state| {
            let slot = state.work.stream(self.index, stream)?;
            Ok(state.work.streams[slot].capture)
        })
    }

    fn graph_launch(&self, graph: CaptureId, stream: StreamId) -> DeviceResult<()> {
        self.call(DriverCall::GraphLaunch, |state| {
            let slot = state.work.stream(self.index, stream)?;
            let nodes = state.work.graphs.nodes(self.index, graph)?.to_vec();
            // All of it is looked at before any of it is queued.
            nodes.iter().try_for_each(|node| state.memory.check_node(self.index, node))?;
            for node in nodes {
                state.work.submit_or_record(slot, node)?;
            }
            Ok(())
        })
    }

    fn graph_destroy(&self, graph: CaptureId) -> DeviceResult<()> {
        self.call(DriverCall::GraphDestroy, |state| state.work.graphs.destroy(self.index, graph))
    }

    unsafe fn copy_async(
        &self,
        to: Address,
        from: Address,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()> {
        self.call(DriverCall::Copy, |state| {
            let slot = state.work.stream(self.index, stream)?;
            state.submit_node(self.index, slot, Node::Copy { to, from, bytes })
        })
    }

    fn fill_async(
        &self,
        at: Address,
        value: u8,
        bytes: Bytes,
        stream: StreamId,
    ) -> DeviceResult<()> {
        self.call(DriverCall::Fill, |state| {
            let slot = state.work.stream(self.index, stream)?;
            state.submit_node(self.index, slot, Node::Fill { at, value, bytes })
        })
    }

    fn host_function(&self, stream: StreamId, function: HostFunction) -> DeviceResult<()> {
        self.call(DriverCall::HostFunction, |state| {
            let slot = state.work.stream(self.index, stream)?;
            if state.work.streams[slot].capture.is_some() {
                return Err(unsupported(
                    "a function of the host can run only once, so it cannot be captured",
                ));
            }
            state.work.submit(slot, Task::Host(function));
            Ok(())
        })
    }

    fn can_access_peer(&self, peer: DeviceId) -> DeviceResult<bool> {
        self.call(DriverCall::EnablePeer, |state| Ok(self.peer_index(state, peer)? != self.index))
    }

    fn enable_peer_access(&self, peer: DeviceId) -> DeviceResult<()> {
        self.call(DriverCall::EnablePeer, |state| {
            let peer = self.peer_index(state, peer)?;
            if peer == self.index {
                return Err(misuse("a device is no peer of itself"));
            }
            state.memory.banks[self.index].reaches[peer] = true;
            Ok(())
        })
    }
}
