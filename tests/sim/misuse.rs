//! Breaking the contract of addresses, handles and mappings is an error that says how.

use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::device::{Device, HandleId};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, GRANULE, StreamId};

use super::{assert_misuse, assert_refused, assert_untouched, byte, device, device_with, mapped};

#[test]
fn mapping_over_a_mapping_is_told() {
    let device = device();
    let (at, handle) = mapped(&device, 2 * GRANULE);
    let small = device.create(GRANULE).unwrap();
    assert_misuse(device.map(at, 2 * GRANULE, handle), "overlap with what is mapped");
    assert_misuse(device.map(at + GRANULE, GRANULE, small), "overlap with what is mapped");
}

#[test]
fn mapping_outside_a_reservation_is_told() {
    let device = device();
    let handle = device.create(2 * GRANULE).unwrap();
    let at = device.reserve(2 * GRANULE).unwrap();
    assert_misuse(device.map(at + GRANULE, 2 * GRANULE, handle), "past the end");
    assert_misuse(device.map(at + 4096, 2 * GRANULE, handle), "not a multiple");
    let allocation = device.malloc(2 * GRANULE).unwrap();
    assert_misuse(device.map(allocation, 2 * GRANULE, handle), "in no reservation");
    device.free_address(at, 2 * GRANULE).unwrap();
    assert_misuse(device.map(at, 2 * GRANULE, handle), "in no reservation");
}

#[test]
fn mapping_a_part_of_a_handle_is_told() {
    let device = device();
    let at = device.reserve(2 * GRANULE).unwrap();
    let handle = device.create(2 * GRANULE).unwrap();
    assert_misuse(device.map(at, GRANULE, handle), "whole or not at all");
}

#[test]
fn mapping_a_released_handle_is_told() {
    let device = device();
    let (at, handle) = mapped(&device, GRANULE);
    let other = device.reserve(GRANULE).unwrap();
    device.release(handle).unwrap();
    assert_misuse(device.map(other, GRANULE, handle), "released before");
    device.unmap(at, GRANULE).unwrap();
    assert_misuse(device.map(other, GRANULE, handle), "released before");
}

#[test]
fn unmapping_a_part_of_a_mapping_is_told() {
    let device = device();
    let (at, _) = mapped(&device, 2 * GRANULE);
    assert_misuse(device.unmap(at, GRANULE), "inside the mapping");
    assert_misuse(device.unmap(at + GRANULE, GRANULE), "inside the mapping");
}

#[test]
fn a_span_with_a_gap_is_told() {
    let device = device();
    let at = device.reserve(3 * GRANULE).unwrap();
    for place in [at, at + 2 * GRANULE] {
        let handle = device.create(GRANULE).unwrap();
        device.map(place, GRANULE, handle).unwrap();
    }
    assert_misuse(device.unmap(at, 3 * GRANULE), "nothing is mapped");
    assert_misuse(device.set_access(at, 3 * GRANULE), "nothing is mapped");
    assert_misuse(device.unmap(at + GRANULE, GRANULE), "nothing is mapped");
    // The refused calls have changed nothing.
    device.set_access(at, GRANULE).unwrap();
    device.unmap(at, GRANULE).unwrap();
    device.unmap(at + 2 * GRANULE, GRANULE).unwrap();
}

#[test]
fn unmapping_twice_is_told() {
    let device = device();
    let (at, _) = mapped(&device, GRANULE);
    device.unmap(at, GRANULE).unwrap();
    assert_misuse(device.unmap(at, GRANULE), "nothing is mapped");
}

#[test]
fn releasing_twice_is_told() {
    let device = device();
    let handle = device.create(GRANULE).unwrap();
    device.release(handle).unwrap();
    assert_misuse(device.release(handle), "released before");
    let (_, still_mapped) = mapped(&device, GRANULE);
    device.release(still_mapped).unwrap();
    assert_misuse(device.release(still_mapped), "released before");
    assert_misuse(device.release(HandleId(1 << 40)), "does not exist");
}

#[test]
fn freeing_twice_is_told() {
    let device = device();
    let at = device.malloc(100).unwrap();
    assert_misuse(device.free(at + 64), "lies inside");
    device.free(at).unwrap();
    assert_misuse(device.free(at), "freed before");
    assert_misuse(device.free(device.reserve(GRANULE).unwrap()), "in a reservation");
    assert_eq!(device.memory_info().unwrap().free, device.memory_info().unwrap().total);
}

#[test]
fn freeing_addresses_in_use_or_in_part_is_told() {
    let device = device();
    let at = device.reserve(4 * GRANULE).unwrap();
    let handle = device.create(GRANULE).unwrap();
    device.map(at + 3 * GRANULE, GRANULE, handle).unwrap();
    assert_misuse(device.free_address(at, 4 * GRANULE), "still in use");
    assert_misuse(device.free_address(at, 2 * GRANULE), "only a part");
    assert_misuse(device.free_address(at + GRANULE, GRANULE), "only a part");
    device.unmap(at + 3 * GRANULE, GRANULE).unwrap();
    device.free_address(at, 4 * GRANULE).unwrap();
    assert_misuse(device.free_address(at, 4 * GRANULE), "in no reservation");
}

#[test]
fn sizes_off_the_granularity_are_told() {
    let device = device();
    assert_misuse(device.create(GRANULE + 1), "multiple of");
    assert_misuse(device.create(0), "multiple of");
    assert_misuse(device.reserve(GRANULE / 2), "multiple of");
    assert_misuse(device.malloc(0), "0 bytes");
    assert_untouched(&device);
}

#[test]
fn work_on_memory_that_is_not_accessible_is_told_when_it_is_queued() {
    let device = device();
    let stream = StreamId::DEFAULT;
    let at = device.reserve(2 * GRANULE).unwrap();
    assert_misuse(device.fill_async(at, 1, 1, stream), "nothing is mapped");
    let handle = device.create(GRANULE).unwrap();
    device.map(at, GRANULE, handle).unwrap();
    assert_misuse(device.fill_async(at, 1, 1, stream), "not made accessible");
    device.set_access(at, GRANULE).unwrap();
    device.fill_async(at, 1, GRANULE, stream).unwrap();
    assert_misuse(device.fill_async(at, 1, GRANULE + 1, stream), "nothing is mapped");
    assert_misuse(device.fill_async(at, 1, 2 * GRANULE + 1, stream), "past the end");
    device.unmap(at, GRANULE).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    assert_misuse(unsafe { device.copy_async(at, at, 1, stream) }, "nothing is mapped");
}

#[test]
fn remapped_memory_needs_access_again() {
    let device = device();
    let (at, handle) = mapped(&device, GRANULE);
    device.unmap(at, GRANULE).unwrap();
    device.map(at, GRANULE, handle).unwrap();
    let queued = device.fill_async(at, 1, 1, StreamId::DEFAULT);
    assert_misuse(queued, "not made accessible");
}

#[test]
fn work_on_memory_that_does_not_exist_is_told() {
    let device = device();
    let stream = StreamId::DEFAULT;
    let at = device.malloc(GRANULE).unwrap();
    device.free(at).unwrap();
    assert_misuse(
        device.fill_async(at, 1, 1, stream),
        "neither memory of a device nor of the host",
    );
    assert_misuse(device.fill_async(0, 1, 1, stream), "neither memory of a device nor of the host");
    assert_misuse(device.fill_async(Address::MAX, 1, 2, stream), "exceed the address space");
    // Of nothing, nothing is asked.
    device.fill_async(0, 1, 0, stream).unwrap();
}

#[test]
fn memory_of_another_device_is_told() {
    let options = SimOptions { devices: 2, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let (mine, other) = (machine.device(0), machine.device(1));
    let (at, handle) = mapped(&other, GRANULE);
    assert_misuse(mine.unmap(at, GRANULE), "of device 1");
    assert_misuse(mine.release(handle), "belongs to device 1");
    assert_misuse(mine.free_address(at, GRANULE), "of device 1");
    let allocation = other.malloc(1).unwrap();
    assert_misuse(mine.free(allocation), "belongs to device 1");
    other.fill_async(at, 3, 1, StreamId::DEFAULT).unwrap();
    assert_eq!(byte(&other, at), 3);
}

#[test]
fn a_device_without_virtual_memory_says_so() {
    let plain = device_with(SimOptions { virtual_memory: false, ..SimOptions::default() });
    assert_eq!(plain.capabilities().virtual_memory, None);
    let words = "no virtual memory management";
    assert_refused(plain.reserve(GRANULE), DeviceErrorKind::Unsupported, words);
    assert_refused(plain.create(GRANULE), DeviceErrorKind::Unsupported, words);
    let at = plain.malloc(GRANULE).unwrap();
    assert_refused(plain.unmap(at, GRANULE), DeviceErrorKind::Unsupported, words);
    plain.free(at).unwrap();
}

#[test]
fn a_machine_with_more_memory_than_there_can_be_is_refused() {
    let machine = |capacity| SimMachine::new(SimOptions { capacity, ..SimOptions::default() });
    assert_misuse(machine((1 << 60) + 1).map(drop), "at most 1 EiB");
    machine(1 << 60).unwrap();
}
