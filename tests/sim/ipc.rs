//! Memory given to others: how long it counts, and what is refused.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use plugalloc::device::sim::SimDevice;
use plugalloc::device::{Device, HandleType, IpcHandle, ShareableHandle};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::GRANULE;

use crate::{STREAM, assert_misuse, assert_refused, assert_untouched, byte, device, mapped};

fn export(device: &SimDevice, bytes: u64) -> ShareableHandle {
    let handle = device.create(bytes).unwrap();
    let shared = device.export_handle(handle, HandleType::FileDescriptor).unwrap();
    device.release(handle).unwrap();
    shared
}

#[test]
fn exported_memory_counts_as_used_until_everybody_has_let_it_go() {
    let device = device();
    let shared = export(&device, 3 * GRANULE);
    assert_eq!(device.ledger().used, 3 * GRANULE);
    let imported = device.import_handle(&shared).unwrap();
    assert_eq!(device.ledger().used, 3 * GRANULE, "it is the same memory");
    drop(shared);
    assert_eq!(device.ledger().used, 3 * GRANULE);
    device.release(imported).unwrap();
    assert_eq!(device.ledger().used, 0);
    assert_untouched(&device);
}

#[test]
fn memory_that_others_hold_is_no_room_for_new_memory() {
    let device = device();
    device.set_capacity(4 * GRANULE);
    let shared = export(&device, 3 * GRANULE);
    let refused = device.create(2 * GRANULE);
    assert_refused(refused, DeviceErrorKind::OutOfMemory, "of 8388608 free");
    drop(shared);
    let handle = device.create(2 * GRANULE).unwrap();
    device.release(handle).unwrap();
    assert_untouched(&device);
}

#[test]
fn another_machine_of_the_process_imports_memory_and_keeps_it() {
    let (giver, taker) = (device(), device());
    let (at, handle) = mapped(&giver, GRANULE);
    giver.fill_async(at, 7, GRANULE, STREAM).unwrap();
    let shared = giver.export_handle(handle, HandleType::FileDescriptor).unwrap();
    let imported = taker.import_handle(&shared).unwrap();
    drop(shared);
    giver.unmap(at, GRANULE).unwrap();
    giver.release(handle).unwrap();
    giver.free_address(at, GRANULE).unwrap();
    let there = taker.reserve(GRANULE).unwrap();
    taker.map(there, GRANULE, imported).unwrap();
    taker.set_access(there, GRANULE).unwrap();
    assert_eq!(byte(&taker, there + GRANULE - 1), 7);
    assert_eq!((taker.ledger().used, giver.ledger().used), (0, GRANULE));
    taker.release(imported).unwrap();
    taker.unmap(there, GRANULE).unwrap();
    taker.free_address(there, GRANULE).unwrap();
    assert_untouched(&giver);
    assert_untouched(&taker);
}

#[test]
fn an_imported_handle_is_mapped_whole_and_released_once() {
    let device = device();
    let imported = device.import_handle(&export(&device, 2 * GRANULE)).unwrap();
    let at = device.reserve(2 * GRANULE).unwrap();
    assert_misuse(device.map(at, GRANULE, imported), "whole or not at all");
    device.free_address(at, 2 * GRANULE).unwrap();
    device.release(imported).unwrap();
    assert_misuse(device.release(imported), "released before");
    assert_untouched(&device);
}

#[test]
fn garbage_is_told_from_shared_memory() {
    let device = device();
    let import = |file: File| {
        let shared = ShareableHandle::FileDescriptor(OwnedFd::from(file));
        device.import_handle(&shared)
    };
    assert_misuse(import(File::open("/dev/null").unwrap()), "no memory that");
    assert_misuse(import(File::open("/proc/self/exe").unwrap()), "no memory that");
    // Opened anew, a file of shared memory is a file like others: what was shared goes by its
    // descriptor.
    let shared = export(&device, GRANULE);
    let ShareableHandle::FileDescriptor(descriptor) = &shared else { panic!("{shared:?}") };
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    assert_misuse(import(File::open(path).unwrap()), "no memory that");
    drop(shared);
    assert_refused(
        device.import_handle(&ShareableHandle::Fabric([1; 64])),
        DeviceErrorKind::Unsupported,
        "no fabric",
    );
    assert_misuse(device.ipc_open_handle(IpcHandle([3; 64])), "no handle");
    assert_untouched(&device);
}

#[test]
fn legacy_handles_are_of_whole_allocations_and_closed_only_after_opening() {
    let device = device();
    let memory = device.malloc(2 * GRANULE).unwrap();
    assert_misuse(device.ipc_get_handle(memory + 512), "inside the memory");
    assert_misuse(device.ipc_close_handle(memory), "closed before");
    let handle = device.ipc_get_handle(memory).unwrap();
    let other = device.malloc(GRANULE).unwrap();
    assert_ne!(device.ipc_get_handle(other).unwrap(), handle);
    device.free(other).unwrap();
    device.free(memory).unwrap();
    assert_misuse(device.ipc_get_handle(memory), "freed before");
    assert_untouched(&device);
}
