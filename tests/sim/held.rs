//! Work that is held back, and what must not happen to memory meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use plugalloc::device::Device;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{Address, GRANULE, StreamId};

use super::{OTHER, STREAM, assert_misuse, byte, device, device_with, mapped};

#[test]
fn nothing_runs_on_a_held_stream_until_it_is_resumed() {
    let device = device();
    let (at, _) = mapped(&device, GRANULE);
    device.hold(STREAM).unwrap();
    device.fill_async(at, 5, GRANULE, STREAM).unwrap();
    device.fill_async(at + 1, 6, 1, STREAM).unwrap();
    assert_eq!(byte(&device, at), 0);
    device.resume(STREAM).unwrap();
    assert_eq!((byte(&device, at), byte(&device, at + 1), byte(&device, at + 2)), (5, 6, 5));
}

#[test]
fn an_event_on_a_held_stream_is_not_completed_even_with_nothing_queued() {
    let device = device();
    let (before, behind) = (device.event_create().unwrap(), device.event_create().unwrap());
    device.event_record(before, STREAM).unwrap();
    device.hold(STREAM).unwrap();
    device.event_record(behind, STREAM).unwrap();
    assert!(device.event_query(before).unwrap());
    assert!(!device.event_query(behind).unwrap());
    device.resume(STREAM).unwrap();
    assert!(device.event_query(behind).unwrap());
}

#[test]
fn what_waits_for_a_held_stream_runs_when_that_is_resumed() {
    let device = device();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |number: usize, stream: StreamId| {
        let order = Arc::clone(&order);
        let function = move || order.lock().unwrap().push(number);
        device.host_function(stream, Box::new(function)).unwrap();
    };
    // The waiting streams come before and after the held one in any order of slots.
    let (early, held, late) = (StreamId(1), StreamId(2), StreamId(3));
    for stream in [early, held, late] {
        device.stream_synchronize(stream).unwrap();
    }
    let (first, second) = (device.event_create().unwrap(), device.event_create().unwrap());
    device.hold(held).unwrap();
    note(1, held);
    device.event_record(first, held).unwrap();
    device.stream_wait_event(late, first).unwrap();
    note(2, late);
    device.event_record(second, late).unwrap();
    device.stream_wait_event(early, second).unwrap();
    note(3, early);
    assert_eq!(order.lock().unwrap().len(), 0);
    assert!(!device.event_query(second).unwrap());
    device.resume(held).unwrap();
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
}

#[test]
fn a_stream_that_does_not_wait_overtakes_a_held_one() {
    let device = device();
    let (at, _) = mapped(&device, GRANULE);
    device.hold(STREAM).unwrap();
    device.fill_async(at, 1, 1, STREAM).unwrap();
    device.fill_async(at, 2, 1, OTHER).unwrap();
    assert_eq!(byte(&device, at), 2);
    device.resume(STREAM).unwrap();
    assert_eq!(byte(&device, at), 1);
}

#[test]
fn waiting_for_a_held_stream_is_told_instead_of_waiting_for_ever() {
    let device = device();
    let event = device.event_create().unwrap();
    device.hold(STREAM).unwrap();
    device.event_record(event, STREAM).unwrap();
    device.stream_wait_event(OTHER, event).unwrap();
    let words = "would wait for ever: stream 0x8 of device 0 is held";
    assert_misuse(device.event_synchronize(event), words);
    assert_misuse(device.stream_synchronize(STREAM), words);
    assert_misuse(device.stream_synchronize(OTHER), words);
    assert_misuse(device.synchronize(), words);
    let memory = device.malloc(1).unwrap();
    assert_misuse(device.free(memory), words);
    device.resume(STREAM).unwrap();
    device.synchronize().unwrap();
    device.free(memory).unwrap();
}

#[test]
fn waiting_blocks_until_another_thread_resumes_where_that_is_wanted() {
    let device = device_with(SimOptions { wait_for_release: true, ..SimOptions::default() });
    let event = device.event_create().unwrap();
    device.hold(STREAM).unwrap();
    device.event_record(event, STREAM).unwrap();
    let waiter = {
        let device = Arc::clone(&device);
        thread::spawn(move || device.event_synchronize(event))
    };
    // Give the waiter the chance to fail, as it would if it did not block.
    thread::sleep(Duration::from_millis(20));
    assert!(!waiter.is_finished());
    device.resume(STREAM).unwrap();
    waiter.join().unwrap().unwrap();
    assert!(device.event_query(event).unwrap());
}

#[test]
fn a_waiting_thread_goes_on_while_a_later_host_function_still_runs() {
    let device = device_with(SimOptions { wait_for_release: true, ..SimOptions::default() });
    let event = device.event_create().unwrap();
    let (open, gate) = channel::<()>();
    let opened = Arc::new(AtomicBool::new(false));
    device.hold(STREAM).unwrap();
    device.event_record(event, STREAM).unwrap();
    device.stream_wait_event(OTHER, event).unwrap();
    let seen = Arc::clone(&opened);
    let function = move || {
        let in_time = gate.recv_timeout(Duration::from_secs(5)).is_ok();
        seen.store(in_time, Ordering::Relaxed);
    };
    device.host_function(OTHER, Box::new(function)).unwrap();
    let waiter = {
        let device = Arc::clone(&device);
        thread::spawn(move || {
            device.event_synchronize(event).unwrap();
            open.send(()).unwrap();
        })
    };
    thread::sleep(Duration::from_millis(20));
    device.resume(STREAM).unwrap();
    waiter.join().unwrap();
    assert!(opened.load(Ordering::Relaxed), "the waiter was not told in time");
}

#[test]
fn unmapping_under_queued_work_is_told() {
    let device = device();
    let (at, _) = mapped(&device, GRANULE);
    let (from, _) = mapped(&device, GRANULE);
    device.hold(STREAM).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(at + 8, from + 8, 8, STREAM) }.unwrap();
    let words = "still used by work queued on stream 0x8";
    assert_misuse(device.unmap(at, GRANULE), words);
    assert_misuse(device.unmap(from, GRANULE), words);
    device.fill_async(at, 1, 4, OTHER).unwrap();
    device.resume(STREAM).unwrap();
    device.unmap(at, GRANULE).unwrap();
    device.unmap(from, GRANULE).unwrap();
}

#[test]
fn unmapping_beside_queued_work_is_fine() {
    let device = device();
    let at = device.reserve(3 * GRANULE).unwrap();
    for place in 0..3 {
        let handle = device.create(GRANULE).unwrap();
        device.map(at + place * GRANULE, GRANULE, handle).unwrap();
    }
    device.set_access(at, 3 * GRANULE).unwrap();
    device.hold(STREAM).unwrap();
    device.fill_async(at + GRANULE, 1, GRANULE, STREAM).unwrap();
    device.unmap(at, GRANULE).unwrap();
    device.unmap(at + 2 * GRANULE, GRANULE).unwrap();
    assert_misuse(device.unmap(at + GRANULE, GRANULE), "still used");
}

#[test]
fn unmapping_an_alias_does_not_disturb_work_at_the_other_address() {
    let device = device();
    let (at, handle) = mapped(&device, GRANULE);
    device.hold(STREAM).unwrap();
    device.fill_async(at, 7, 1, STREAM).unwrap();
    let alias = device.reserve(GRANULE).unwrap();
    device.map(alias, GRANULE, handle).unwrap();
    device.set_access(alias, GRANULE).unwrap();
    device.unmap(alias, GRANULE).unwrap();
    device.release(handle).unwrap();
    device.resume(STREAM).unwrap();
    assert_eq!(byte(&device, at), 7);
}

#[test]
fn freeing_memory_that_a_peer_still_uses_is_told() {
    let options = SimOptions { devices: 2, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let (owner, user) = (machine.device(0), machine.device(1));
    user.enable_peer_access(owner.id()).unwrap();
    let memory = owner.malloc(GRANULE).unwrap();
    user.hold(STREAM).unwrap();
    user.fill_async(memory, 1, GRANULE, STREAM).unwrap();
    // `free` waits for the owner's work only.
    assert_misuse(owner.free(memory), "queued on stream 0x8 of device 1");
    user.resume(STREAM).unwrap();
    owner.free(memory).unwrap();
}

#[test]
fn a_stream_destroyed_while_held_runs_when_it_is_resumed() {
    let device = device();
    let (at, _) = mapped(&device, GRANULE);
    let stream = device.stream_create().unwrap();
    device.hold(stream).unwrap();
    device.fill_async(at, 4, 1, stream).unwrap();
    device.stream_destroy(stream).unwrap();
    assert_eq!(byte(&device, at), 0);
    device.resume(stream).unwrap();
    assert_eq!(byte(&device, at), 4);
}

#[test]
fn host_memory_is_read_when_the_copy_runs() {
    let device = device();
    let (at, _) = mapped(&device, GRANULE);
    let mut source = Box::new([1u8; 4]);
    let from = source.as_mut_ptr() as Address;
    device.hold(STREAM).unwrap();
    // SAFETY: the memory stays there until the copy has run, which is held back while it changes.
    unsafe { device.copy_async(at, from, 4, STREAM) }.unwrap();
    source.fill(9);
    device.resume(STREAM).unwrap();
    assert_eq!(byte(&device, at), 9);
    drop(source);
}
