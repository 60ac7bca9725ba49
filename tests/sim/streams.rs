//! The names of streams and events, and what happens to those that are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::device::{Device, EventId};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::StreamId;

use super::{OTHER, STREAM, assert_misuse, assert_refused, device, device_with};

#[test]
fn an_invented_stream_is_adopted() {
    let device = device();
    let event = device.event_create().unwrap();
    device.event_record(event, STREAM).unwrap();
    assert!(device.event_query(event).unwrap());
    assert_eq!(device.capture_status(OTHER).unwrap(), None);
}

#[test]
fn an_invented_stream_is_refused_where_that_is_wanted() {
    let strict = device_with(SimOptions { adopt_streams: false, ..SimOptions::default() });
    assert_misuse(strict.stream_synchronize(STREAM), "no stream of device 0");
    strict.stream_synchronize(StreamId::DEFAULT).unwrap();
    let created = strict.stream_create().unwrap();
    strict.stream_synchronize(created).unwrap();
}

#[test]
fn a_destroyed_stream_is_told() {
    let device = device();
    let created = device.stream_create().unwrap();
    device.stream_synchronize(STREAM).unwrap();
    for stream in [created, STREAM] {
        device.stream_destroy(stream).unwrap();
        assert_misuse(device.stream_synchronize(stream), "destroyed before");
        assert_misuse(device.stream_destroy(stream), "destroyed before");
        assert_misuse(device.hold(stream), "destroyed before");
    }
    assert_misuse(device.stream_destroy(StreamId::DEFAULT), "cannot be destroyed");
}

#[test]
fn a_stream_of_another_device_is_told() {
    let options = SimOptions { devices: 2, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let stream = machine.device(0).stream_create().unwrap();
    assert_misuse(machine.device(1).stream_synchronize(stream), "no stream of device 1");
    let event = machine.device(0).event_create().unwrap();
    let recorded = machine.device(1).event_record(event, StreamId::DEFAULT);
    assert_misuse(recorded, "an event of device 0");
}

#[test]
fn a_destroyed_event_is_told_even_when_its_place_is_taken() {
    let device = device();
    let event = device.event_create().unwrap();
    device.event_destroy(event).unwrap();
    assert_misuse(device.event_destroy(event), "destroyed before");
    let successor = device.event_create().unwrap();
    assert_misuse(device.event_query(event), "destroyed before");
    assert_misuse(device.event_record(event, STREAM), "destroyed before");
    assert_misuse(device.stream_wait_event(STREAM, event), "destroyed before");
    assert_misuse(device.event_synchronize(event), "destroyed before");
    assert!(device.event_query(successor).unwrap());
    assert_misuse(device.event_query(EventId(77)), "does not exist");
}

#[test]
fn a_slot_that_served_a_stream_before_keeps_its_old_events_completed() {
    let device = device();
    let event = device.event_create().unwrap();
    for _ in 0..3 {
        let stream = device.stream_create().unwrap();
        device.host_function(stream, Box::new(|| ())).unwrap();
        device.event_record(event, stream).unwrap();
        device.stream_destroy(stream).unwrap();
        let successor = device.stream_create().unwrap();
        device.hold(successor).unwrap();
        device.host_function(successor, Box::new(|| ())).unwrap();
        assert!(device.event_query(event).unwrap());
        device.resume(successor).unwrap();
        device.stream_destroy(successor).unwrap();
    }
}

#[test]
fn host_functions_run_once_and_unlocked() {
    let device = device();
    let calls = Arc::new(AtomicUsize::new(0));
    let (counter, inner) = (Arc::clone(&calls), Arc::clone(&device));
    let function = move || {
        // Would deadlock if the machine were locked. Waiting is what such a function must not do.
        assert!(inner.memory_info().unwrap().total > 0);
        let waiting = inner.stream_synchronize(STREAM);
        assert_refused(waiting, DeviceErrorKind::NotPermitted, "must not wait");
        counter.fetch_add(1, Ordering::Relaxed);
    };
    device.host_function(STREAM, Box::new(function)).unwrap();
    device.stream_synchronize(STREAM).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[test]
fn a_panic_in_a_host_function_leaves_the_stream_usable() {
    let device = device();
    let queued = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = device.host_function(STREAM, Box::new(|| panic!("on purpose")));
    }));
    assert!(queued.is_err());
    device.stream_synchronize(STREAM).unwrap();
    let event = device.event_create().unwrap();
    device.event_record(event, STREAM).unwrap();
    assert!(device.event_query(event).unwrap());
}
