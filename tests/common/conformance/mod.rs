//! What every device must do, as functions over `dyn Device` that hold on a real GPU as well.
//!
//! The cases use no more than the contract, and only such misuse as a driver detects too. A case
//! for which the device lacks the ability prints that it is skipped. Apply them all with
//! [`conformance_cases`].

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod ipc;
mod memory;
mod work;

use plugalloc::device::{Device, HandleId};
use plugalloc::units::{Address, Bytes, StreamId};

use crate::blocked::while_blocked;

/// Hands the names of all cases over one device to a macro.
macro_rules! conformance_cases {
    ($apply:ident) => {
        $apply! {
            memory_in_use_is_missing_from_the_free_memory,
            reservations_are_aligned_and_apart,
            mapped_memory_keeps_what_is_written,
            a_handle_shows_the_same_bytes_at_two_addresses,
            a_handle_keeps_its_bytes_when_it_moves,
            neighbouring_mappings_are_one_span,
            released_memory_lives_on_while_it_is_mapped,
            a_handle_is_mapped_whole_or_not_at_all,
            nothing_is_mapped_over_a_mapping,
            a_mapping_is_unmapped_whole_or_not_at_all,
            a_reservation_in_use_is_not_freed,
            a_handle_larger_than_the_device_is_out_of_memory,
            malloc_gives_aligned_memory_that_keeps_its_bytes,
            malloc_of_more_than_the_device_is_out_of_memory,
            a_stream_runs_its_work_in_order,
            created_streams_differ,
            a_new_event_counts_as_completed,
            an_event_waits_for_the_work_before_it,
            a_stream_waits_for_an_event_of_another,
            a_wait_concerns_the_record_that_was_the_last,
            a_destroyed_stream_still_runs_its_work,
            memory_can_be_mapped_elsewhere_under_queued_work,
            captured_work_runs_when_the_graph_is_launched,
            capture_status_names_the_capture,
            waiting_for_a_capturing_stream_spoils_the_capture,
            virtual_memory_can_be_managed_during_a_capture,
            threads_may_share_the_device,
            imported_memory_is_the_same_memory,
            exported_memory_lives_while_somebody_has_it,
            what_nobody_exported_is_not_imported,
            a_released_handle_is_not_exported,
            a_handle_type_works_or_is_unsupported,
            a_process_opens_no_handle_of_its_own,
            mapped_memory_has_no_legacy_handle,
        }
    };
}
pub(crate) use conformance_cases;
pub(crate) use ipc::*;
pub(crate) use memory::*;
pub(crate) use work::*;

/// The granularity, or `None` with a printed reason where the device has no virtual memory
/// management.
fn granularity(device: &dyn Device) -> Option<Bytes> {
    let granularity = device.capabilities().virtual_memory;
    if granularity.is_none() {
        println!("skipped: {} has no virtual memory management", device.name());
    }
    granularity
}

/// Writes bytes through the default stream.
pub(crate) fn write(device: &dyn Device, at: Address, bytes: &[u8]) {
    let from = bytes.as_ptr() as Address;
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(at, from, bytes.len() as Bytes, StreamId::DEFAULT) }.unwrap();
    device.stream_synchronize(StreamId::DEFAULT).unwrap();
}

/// Reads bytes through the default stream.
pub(crate) fn read(device: &dyn Device, at: Address, count: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; count];
    let to = bytes.as_mut_ptr() as Address;
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(to, at, count as Bytes, StreamId::DEFAULT) }.unwrap();
    device.stream_synchronize(StreamId::DEFAULT).unwrap();
    bytes
}

/// Memory that is mapped and accessible at the start of a reservation of its own.
pub(crate) struct Mapped {
    pub(crate) handle: HandleId,
    pub(crate) at: Address,
    pub(crate) bytes: Bytes,
}

impl Mapped {
    pub(crate) fn new(device: &dyn Device, bytes: Bytes) -> Mapped {
        let at = device.reserve(bytes).unwrap();
        let handle = device.create(bytes).unwrap();
        device.map(at, bytes, handle).unwrap();
        device.set_access(at, bytes).unwrap();
        Mapped { handle, at, bytes }
    }

    pub(crate) fn end(self, device: &dyn Device) {
        device.unmap(self.at, self.bytes).unwrap();
        device.release(self.handle).unwrap();
        device.free_address(self.at, self.bytes).unwrap();
    }
}
