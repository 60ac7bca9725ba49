//! Captures: what is recorded, and what spoils them.

use std::sync::Arc;

use plugalloc::device::sim::{SimDevice, SimOptions};
use plugalloc::device::{CaptureId, Device};
use plugalloc::error::DeviceErrorKind::{NotPermitted, Unsupported};
use plugalloc::units::{GRANULE, StreamId};

use super::{OTHER, STREAM, assert_misuse, assert_refused, byte, device, device_with, mapped};

/// Asserts that the capture of `STREAM` was lost, and that the stream works again after its end.
#[track_caller]
fn assert_spoilt(device: &SimDevice) {
    assert!(
        device.capture_status(STREAM).unwrap().is_some(),
        "a spoilt capture goes on to its end"
    );
    let memory = device.malloc(1).unwrap();
    let queued = device.fill_async(memory, 1, 1, STREAM);
    assert_refused(queued, NotPermitted, "was invalidated");
    assert_refused(device.capture_end(STREAM), NotPermitted, "was invalidated");
    assert_eq!(device.capture_status(STREAM).unwrap(), None);
    device.fill_async(memory, 1, 1, STREAM).unwrap();
    device.stream_synchronize(STREAM).unwrap();
}

/// A device with a capture under way on `STREAM`.
fn capturing() -> Arc<SimDevice> {
    let device = device();
    device.capture_begin(STREAM).unwrap();
    device
}

#[test]
fn recording_an_event_spoils_the_capture() {
    let device = capturing();
    let event = device.event_create().unwrap();
    assert_refused(device.event_record(event, STREAM), NotPermitted, "recording an event");
    assert_spoilt(&device);
    assert!(device.event_query(event).unwrap());
}

#[test]
fn waiting_for_an_outside_event_spoils_the_capture() {
    let device = device();
    let (recorded, fresh) = (device.event_create().unwrap(), device.event_create().unwrap());
    device.event_record(recorded, OTHER).unwrap();
    device.capture_begin(STREAM).unwrap();
    device.stream_wait_event(STREAM, fresh).unwrap();
    assert_refused(device.stream_wait_event(STREAM, recorded), NotPermitted, "outside the capture");
    assert_spoilt(&device);
}

#[test]
fn waiting_for_the_device_spoils_the_capture() {
    let device = capturing();
    device.stream_synchronize(OTHER).unwrap();
    assert_refused(device.synchronize(), NotPermitted, "waiting for the device");
    assert_spoilt(&device);
}

#[test]
fn other_streams_run_during_a_capture() {
    let device = capturing();
    let (at, _) = mapped(&device, GRANULE);
    let event = device.event_create().unwrap();
    device.fill_async(at, 3, 1, OTHER).unwrap();
    device.event_record(event, OTHER).unwrap();
    assert!(device.event_query(event).unwrap());
    assert_eq!(byte(&device, at), 3);
    device.capture_end(STREAM).unwrap();
}

#[test]
fn a_global_capture_forbids_what_is_unsafe_in_every_thread() {
    let strict = device_with(SimOptions { global_capture: true, ..SimOptions::default() });
    let event = strict.event_create().unwrap();
    let memory = strict.malloc(1).unwrap();
    let spoils = |call: &dyn Fn(&SimDevice) -> bool| {
        strict.capture_begin(STREAM).unwrap();
        assert!(call(&strict), "the call was allowed");
        assert_refused(strict.capture_end(STREAM), NotPermitted, "was invalidated");
    };
    spoils(&|device| device.event_query(event).is_err());
    spoils(&|device| device.event_synchronize(event).is_err());
    spoils(&|device| device.malloc(1).is_err());
    spoils(&|device| device.free(memory).is_err());
    strict.free(memory).unwrap();
}

#[test]
fn host_functions_and_the_default_stream_are_not_captured() {
    let device = device();
    let on_default = device.capture_begin(StreamId::DEFAULT);
    assert_refused(on_default, Unsupported, "default stream");
    device.capture_begin(STREAM).unwrap();
    let function = device.host_function(STREAM, Box::new(|| ()));
    assert_refused(function, Unsupported, "only once");
    // Neither of these is a reason to lose the capture.
    device.capture_end(STREAM).unwrap();
}

#[test]
fn captures_do_not_nest() {
    let device = capturing();
    assert_refused(device.capture_begin(STREAM), NotPermitted, "capturing already");
    assert_misuse(device.stream_destroy(STREAM), "is capturing");
    device.capture_end(STREAM).unwrap();
    assert_refused(device.capture_end(STREAM), NotPermitted, "not capturing");
}

#[test]
fn a_graph_is_launched_on_any_stream_and_kept_back_with_it() {
    let device = capturing();
    let (at, _) = mapped(&device, GRANULE);
    device.fill_async(at, 8, 1, STREAM).unwrap();
    let graph = device.capture_end(STREAM).unwrap();
    device.hold(OTHER).unwrap();
    device.graph_launch(graph, OTHER).unwrap();
    // What was launched no longer needs the graph, but it needs the memory.
    device.graph_destroy(graph).unwrap();
    assert_eq!(byte(&device, at), 0);
    assert_misuse(device.unmap(at, GRANULE), "still used by work");
    device.resume(OTHER).unwrap();
    assert_eq!(byte(&device, at), 8);
}

#[test]
fn a_graph_launched_in_a_capture_becomes_a_part_of_it() {
    let device = capturing();
    let (at, _) = mapped(&device, GRANULE);
    device.fill_async(at, 1, 2, STREAM).unwrap();
    let inner = device.capture_end(STREAM).unwrap();
    device.capture_begin(OTHER).unwrap();
    device.graph_launch(inner, OTHER).unwrap();
    device.fill_async(at, 2, 1, OTHER).unwrap();
    let outer = device.capture_end(OTHER).unwrap();
    assert_eq!(byte(&device, at), 0);
    device.graph_launch(outer, STREAM).unwrap();
    assert_eq!((byte(&device, at), byte(&device, at + 1)), (2, 1));
}

#[test]
fn launching_a_graph_whose_memory_was_unmapped_is_told() {
    let device = capturing();
    let (kept, _) = mapped(&device, GRANULE);
    let (lost, handle) = mapped(&device, GRANULE);
    device.fill_async(kept, 1, 1, STREAM).unwrap();
    device.fill_async(lost, 1, 1, STREAM).unwrap();
    let graph = device.capture_end(STREAM).unwrap();
    device.unmap(lost, GRANULE).unwrap();
    assert_misuse(device.graph_launch(graph, STREAM), "nothing is mapped");
    // Nothing of it ran.
    assert_eq!(byte(&device, kept), 0);
    device.map(lost, GRANULE, handle).unwrap();
    device.set_access(lost, GRANULE).unwrap();
    device.graph_launch(graph, STREAM).unwrap();
    assert_eq!((byte(&device, kept), byte(&device, lost)), (1, 1));
}

#[test]
fn a_graph_that_does_not_exist_is_told() {
    let device = capturing();
    let open = device.capture_status(STREAM).unwrap().unwrap();
    assert_misuse(device.graph_launch(open, OTHER), "has not ended");
    assert_misuse(device.graph_destroy(open), "has not ended");
    let graph = device.capture_end(STREAM).unwrap();
    device.graph_destroy(graph).unwrap();
    assert_misuse(device.graph_destroy(graph), "does not exist");
    assert_misuse(device.graph_launch(CaptureId(99), STREAM), "does not exist");
}
