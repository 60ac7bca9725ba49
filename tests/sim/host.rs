//! What the simulator takes of the host, and devices beside each other.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;

use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::device::{Device, HandleId};
use plugalloc::units::{Address, Bytes, DeviceId, GIB, GRANULE, MIB, StreamId};

use super::{STREAM, assert_misuse, byte, mapped};

/// Tests that read what the whole process occupies take turns.
static RESIDENT: Mutex<()> = Mutex::new(());

/// The bytes of this process that are in memory now, shared ones included.
fn resident() -> Bytes {
    let counts = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Bytes = counts.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// What the memory files of this process occupy, mapped or not.
fn memory_files() -> Bytes {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    // A file may be closed by another test between the listing and the look at it.
    let is_memory = |path: &PathBuf| {
        std::fs::read_link(path)
            .is_ok_and(|name| name.to_string_lossy().contains("memfd:plugalloc"))
    };
    let occupied = |path| std::fs::metadata(path).map_or(0, |file| file.blocks() * 512);
    files.filter(is_memory).map(occupied).sum()
}

#[test]
fn memory_costs_the_host_nothing_until_it_is_touched() {
    let _turn = RESIDENT.lock().unwrap_or_else(|error| error.into_inner());
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    let before = resident();
    let at = device.reserve(32 * GIB).unwrap();
    let sizes = [GRANULE, 20 * MIB, GIB];
    let mut end = at;
    for index in 0.. {
        if end >= at + 19 * GIB {
            break;
        }
        let bytes = sizes[index % sizes.len()];
        let handle = device.create(bytes).unwrap();
        device.map(end, bytes, handle).unwrap();
        end += bytes;
    }
    device.set_access(at, end - at).unwrap();
    device.malloc(19 * GIB).unwrap();
    assert!(device.ledger().used >= 38 * GIB);
    let taken = resident().saturating_sub(before);
    assert!(taken < 64 * MIB, "38 GiB took {taken} bytes of the host");
    device.fill_async(end - GRANULE, 5, GRANULE, STREAM).unwrap();
    assert_eq!(byte(&device, end - 1), 5);
}

#[test]
fn released_memory_goes_back_to_the_host() {
    let _turn = RESIDENT.lock().unwrap_or_else(|error| error.into_inner());
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    let before = memory_files();
    for _ in 0..8 {
        let (at, handle) = mapped(&device, 32 * MIB);
        device.fill_async(at, 1, 32 * MIB, STREAM).unwrap();
        assert!(memory_files() >= before + 16 * MIB, "the measure sees nothing");
        device.release(handle).unwrap();
        device.unmap(at, 32 * MIB).unwrap();
        device.free_address(at, 32 * MIB).unwrap();
    }
    // Other tests touch a little meanwhile.
    let taken = memory_files().saturating_sub(before);
    assert!(taken < 64 * MIB, "{taken} bytes were not given back");
}

#[test]
fn handles_made_and_mapped_in_a_row_are_one_mapping_of_the_kernel() {
    let _turn = RESIDENT.lock().unwrap_or_else(|error| error.into_inner());
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    let count = 2000;
    let at = device.reserve(count * GRANULE).unwrap();
    let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let before = mappings();
    for place in 0..count {
        let handle = device.create(GRANULE).unwrap();
        device.map(at + place * GRANULE, GRANULE, handle).unwrap();
        device.set_access(at + place * GRANULE, GRANULE).unwrap();
    }
    let added = mappings().saturating_sub(before);
    assert!(added < 100, "{count} granules side by side took {added} mappings");
}

#[test]
fn memory_ends_with_the_last_device_of_the_machine() {
    let machine = SimMachine::new(SimOptions { devices: 2, ..SimOptions::default() }).unwrap();
    let (first, second) = (machine.device(0), machine.device(1));
    drop(machine);
    let at = second.malloc(GRANULE).unwrap();
    drop(second);
    first.enable_peer_access(DeviceId(1)).unwrap();
    first.fill_async(at, 6, 1, STREAM).unwrap();
    assert_eq!(byte(&first, at), 6);
}

#[test]
fn addresses_of_two_devices_never_coincide() {
    let machine = SimMachine::new(SimOptions { devices: 2, ..SimOptions::default() }).unwrap();
    let mut spans: Vec<Address> = Vec::new();
    for device in machine.devices() {
        for _ in 0..4 {
            spans.push(device.reserve(8 * GRANULE).unwrap());
            spans.push(device.malloc(8 * GRANULE).unwrap());
        }
    }
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0] + 8 * GRANULE <= pair[1]), "{spans:x?}");
}

#[test]
fn a_peers_memory_is_out_of_reach_until_access_is_enabled() {
    let machine = SimMachine::new(SimOptions { devices: 2, ..SimOptions::default() }).unwrap();
    let (mine, peer) = (machine.device(0), machine.device(1));
    let (theirs, _) = mapped(&peer, GRANULE);
    let here = mine.malloc(GRANULE).unwrap();
    assert!(mine.can_access_peer(peer.id()).unwrap());
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    assert_misuse(unsafe { mine.copy_async(here, theirs, 8, STREAM) }, "no access to this peer");
    mine.enable_peer_access(peer.id()).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { mine.copy_async(here, theirs, 8, STREAM) }.unwrap();
    // Access runs one way, and reaches memory that is mapped later, too.
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    assert_misuse(unsafe { peer.copy_async(theirs, here, 8, STREAM) }, "no access to this peer");
    let (later, _) = mapped(&peer, GRANULE);
    mine.fill_async(later, 2, 1, STREAM).unwrap();
    assert_eq!(byte(&peer, later), 2);
}

#[test]
fn a_device_that_does_not_exist_is_told() {
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    assert_misuse(device.can_access_peer(DeviceId(7)), "there is no device 7");
    assert_misuse(device.enable_peer_access(DeviceId(-1)), "there is no device -1");
    assert!(!device.can_access_peer(DeviceId(0)).unwrap());
}

#[test]
fn the_ledgers_of_two_devices_are_their_own() {
    let machine = SimMachine::new(SimOptions { devices: 2, ..SimOptions::default() }).unwrap();
    let handle: HandleId = machine.device(1).create(GRANULE).unwrap();
    assert_eq!(machine.device(0).ledger().total_calls, 0);
    assert_eq!(machine.device(0).memory_info().unwrap().free, 80 * GIB);
    assert_eq!(machine.device(1).memory_info().unwrap().free, 80 * GIB - GRANULE);
    machine.device(1).release(handle).unwrap();
}

#[test]
fn copies_within_the_host_are_fine() {
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    let (source, mut target) = (*b"host", [0u8; 4]);
    let (from, to) = (source.as_ptr() as Address, target.as_mut_ptr() as Address);
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(to, from, 4, StreamId::DEFAULT) }.unwrap();
    assert_eq!(target, source);
}

/// It is not the device's, and safe code must not write to it through the device.
#[test]
fn memory_of_the_host_is_not_filled() {
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    let mut target = [7u8; 4];
    let at = target.as_mut_ptr() as Address;
    assert_misuse(device.fill_async(at, 1, 4, STREAM), "no memory of a device");
    assert_misuse(device.read(at, 4), "no memory of a device");
    assert_eq!(target, [7; 4]);
    let memory = device.malloc(GRANULE).unwrap();
    device.fill_async(memory, 9, 4, STREAM).unwrap();
    assert_eq!(device.read(memory, 4).unwrap(), [9; 4]);
    device.free(memory).unwrap();
}
