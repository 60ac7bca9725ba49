//! Cases about work: the order of streams, events, captures, threads and peers.

use std::thread;

use plugalloc::device::Device;
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, MIB, StreamId};

use super::{Mapped, granularity, read, while_blocked, write};

pub(crate) fn a_stream_runs_its_work_in_order(device: &dyn Device) {
    let memory = device.malloc(2 * MIB).unwrap();
    let stream = device.stream_create().unwrap();
    device.fill_async(memory, 1, MIB, stream).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(memory + MIB, memory, MIB, stream) }.unwrap();
    device.fill_async(memory, 2, MIB, stream).unwrap();
    device.stream_synchronize(stream).unwrap();
    assert_eq!(read(device, memory + MIB - 2, 4), [2, 2, 1, 1]);
    device.stream_destroy(stream).unwrap();
    device.free(memory).unwrap();
}

pub(crate) fn created_streams_differ(device: &dyn Device) {
    let streams = [device.stream_create().unwrap(), device.stream_create().unwrap()];
    assert_ne!(streams[0], streams[1]);
    assert!(!streams.contains(&StreamId::DEFAULT));
    for stream in streams {
        device.stream_destroy(stream).unwrap();
    }
}

pub(crate) fn a_new_event_counts_as_completed(device: &dyn Device) {
    let event = device.event_create().unwrap();
    assert!(device.event_query(event).unwrap());
    device.event_synchronize(event).unwrap();
    device.stream_wait_event(StreamId::DEFAULT, event).unwrap();
    device.stream_synchronize(StreamId::DEFAULT).unwrap();
    device.event_destroy(event).unwrap();
}

pub(crate) fn an_event_waits_for_the_work_before_it(device: &dyn Device) {
    let stream = device.stream_create().unwrap();
    let event = device.event_create().unwrap();
    while_blocked(device, stream, |open| {
        device.event_record(event, stream).unwrap();
        assert!(!device.event_query(event).unwrap());
        open.send(()).unwrap();
        device.event_synchronize(event).unwrap();
        assert!(device.event_query(event).unwrap());
    });
    device.event_destroy(event).unwrap();
    device.stream_destroy(stream).unwrap();
}

pub(crate) fn a_stream_waits_for_an_event_of_another(device: &dyn Device) {
    let memory = device.malloc(2 * MIB).unwrap();
    device.fill_async(memory, 0, 2 * MIB, StreamId::DEFAULT).unwrap();
    device.stream_synchronize(StreamId::DEFAULT).unwrap();
    let (writer, reader) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let (written, copied) = (device.event_create().unwrap(), device.event_create().unwrap());
    while_blocked(device, writer, |open| {
        device.fill_async(memory, 7, MIB, writer).unwrap();
        device.event_record(written, writer).unwrap();
        device.stream_wait_event(reader, written).unwrap();
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { device.copy_async(memory + MIB, memory, MIB, reader) }.unwrap();
        device.event_record(copied, reader).unwrap();
        // A wait outlives the event that it was queued for.
        device.event_destroy(written).unwrap();
        assert!(!device.event_query(copied).unwrap());
        open.send(()).unwrap();
        device.stream_synchronize(reader).unwrap();
        assert_eq!(read(device, memory + 2 * MIB - 2, 2), [7, 7]);
    });
    device.event_destroy(copied).unwrap();
    device.stream_destroy(writer).unwrap();
    device.stream_destroy(reader).unwrap();
    device.free(memory).unwrap();
}

pub(crate) fn a_wait_concerns_the_record_that_was_the_last(device: &dyn Device) {
    let (blocked, free) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let event = device.event_create().unwrap();
    device.event_record(event, free).unwrap();
    device.event_synchronize(event).unwrap();
    while_blocked(device, blocked, |open| {
        device.stream_wait_event(free, event).unwrap();
        device.event_record(event, blocked).unwrap();
        // The wait was queued before the event moved, so this does not block.
        device.stream_synchronize(free).unwrap();
        assert!(!device.event_query(event).unwrap());
        open.send(()).unwrap();
    });
    device.synchronize().unwrap();
    assert!(device.event_query(event).unwrap());
    device.event_destroy(event).unwrap();
    device.stream_destroy(blocked).unwrap();
    device.stream_destroy(free).unwrap();
}

pub(crate) fn a_destroyed_stream_still_runs_its_work(device: &dyn Device) {
    let memory = device.malloc(MIB).unwrap();
    let stream = device.stream_create().unwrap();
    while_blocked(device, stream, |open| {
        device.fill_async(memory, 9, MIB, stream).unwrap();
        device.stream_destroy(stream).unwrap();
        open.send(()).unwrap();
    });
    device.synchronize().unwrap();
    assert_eq!(read(device, memory, 2), [9, 9]);
    device.free(memory).unwrap();
}

pub(crate) fn memory_can_be_mapped_elsewhere_under_queued_work(device: &dyn Device) {
    let Some(bytes) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, bytes);
    let alias = device.reserve(bytes).unwrap();
    let stream = device.stream_create().unwrap();
    while_blocked(device, stream, |open| {
        device.fill_async(mapped.at, 3, bytes, stream).unwrap();
        device.map(alias, bytes, mapped.handle).unwrap();
        device.set_access(alias, bytes).unwrap();
        device.fill_async(alias, 4, bytes / 2, stream).unwrap();
        open.send(()).unwrap();
    });
    device.stream_synchronize(stream).unwrap();
    assert_eq!(read(device, mapped.at + bytes / 2 - 1, 2), [4, 3]);
    device.stream_destroy(stream).unwrap();
    device.unmap(alias, bytes).unwrap();
    device.free_address(alias, bytes).unwrap();
    mapped.end(device);
}

pub(crate) fn captured_work_runs_when_the_graph_is_launched(device: &dyn Device) {
    let memory = device.malloc(2 * MIB).unwrap();
    device.fill_async(memory, 1, 2 * MIB, StreamId::DEFAULT).unwrap();
    device.synchronize().unwrap();
    let stream = device.stream_create().unwrap();
    let begun = device.capture_begin(stream).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(memory + MIB, memory, MIB, stream) }.unwrap();
    device.fill_async(memory, 5, MIB, stream).unwrap();
    let graph = device.capture_end(stream).unwrap();
    assert_eq!(graph, begun);
    device.synchronize().unwrap();
    assert_eq!(read(device, memory + MIB - 1, 2), [1, 1]);
    device.graph_launch(graph, stream).unwrap();
    device.stream_synchronize(stream).unwrap();
    assert_eq!(read(device, memory + MIB - 1, 2), [5, 1]);
    device.graph_launch(graph, stream).unwrap();
    device.stream_synchronize(stream).unwrap();
    assert_eq!(read(device, memory + MIB - 1, 2), [5, 5]);
    device.graph_destroy(graph).unwrap();
    assert!(device.graph_launch(graph, stream).is_err());
    device.stream_destroy(stream).unwrap();
    device.free(memory).unwrap();
}

pub(crate) fn capture_status_names_the_capture(device: &dyn Device) {
    let stream = device.stream_create().unwrap();
    assert_eq!(device.capture_status(stream).unwrap(), None);
    let first = device.capture_begin(stream).unwrap();
    assert_eq!(device.capture_status(stream).unwrap(), Some(first));
    device.capture_end(stream).unwrap();
    assert_eq!(device.capture_status(stream).unwrap(), None);
    let second = device.capture_begin(stream).unwrap();
    assert_ne!(first, second);
    device.capture_end(stream).unwrap();
    assert!(device.capture_end(stream).is_err());
    device.graph_destroy(first).unwrap();
    device.graph_destroy(second).unwrap();
    device.stream_destroy(stream).unwrap();
}

pub(crate) fn waiting_for_a_capturing_stream_spoils_the_capture(device: &dyn Device) {
    let stream = device.stream_create().unwrap();
    device.capture_begin(stream).unwrap();
    let error = device.stream_synchronize(stream).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::NotPermitted, "{error}");
    assert!(device.capture_end(stream).is_err());
    // The stream is out of the capture, and as good as before.
    assert_eq!(device.capture_status(stream).unwrap(), None);
    device.stream_synchronize(stream).unwrap();
    device.stream_destroy(stream).unwrap();
}

pub(crate) fn virtual_memory_can_be_managed_during_a_capture(device: &dyn Device) {
    let Some(bytes) = granularity(device) else {
        return;
    };
    let stream = device.stream_create().unwrap();
    device.capture_begin(stream).unwrap();
    Mapped::new(device, bytes).end(device);
    let graph = device.capture_end(stream).unwrap();
    device.graph_destroy(graph).unwrap();
    device.stream_destroy(stream).unwrap();
}

pub(crate) fn threads_may_share_the_device(device: &dyn Device) {
    thread::scope(|scope| {
        for value in 1..=4u8 {
            scope.spawn(move || {
                let stream = device.stream_create().unwrap();
                let memory = device.malloc(MIB).unwrap();
                for _ in 0..20 {
                    device.fill_async(memory, value, MIB, stream).unwrap();
                    device.stream_synchronize(stream).unwrap();
                    let mut byte = 0u8;
                    let to = &raw mut byte as Address;
                    // SAFETY: nobody else uses the byte until the copy has run.
                    unsafe { device.copy_async(to, memory + MIB - 1, 1, stream) }.unwrap();
                    device.stream_synchronize(stream).unwrap();
                    assert_eq!(byte, value);
                }
                device.free(memory).unwrap();
                device.stream_destroy(stream).unwrap();
            });
        }
    });
}

/// Of two devices that can reach each other.
pub(crate) fn peers_copy_between_each_other(device: &dyn Device, peer: &dyn Device) {
    if !device.can_access_peer(peer.id()).unwrap() {
        println!("skipped: {} cannot reach {}", device.name(), peer.name());
        return;
    }
    device.enable_peer_access(peer.id()).unwrap();
    device.enable_peer_access(peer.id()).unwrap();
    let (here, there) = (device.malloc(MIB).unwrap(), peer.malloc(MIB).unwrap());
    write(peer, there, b"far away");
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(here, there, 8, StreamId::DEFAULT) }.unwrap();
    device.stream_synchronize(StreamId::DEFAULT).unwrap();
    assert_eq!(read(device, here, 8), b"far away");
    device.free(here).unwrap();
    peer.free(there).unwrap();
}
