//! The out-of-memory error: its numbers, and a hint that is true for the configuration in force.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::{A, B, GPU, Rig, capacity, config, plain};
use plugalloc::Config;
use plugalloc::device::Device;
use plugalloc::error::{DriverCall, Error};
use plugalloc::units::{DeviceId, GIB, GRANULE, KIB, MIB, StreamId};

#[test]
fn the_numbers_are_those_of_the_device_and_the_allocator() {
    let rig = Rig::of(64 * MIB);
    let blocks = [rig.allocate(16 * MIB, A), rig.allocate(8 * MIB, A), rig.allocate(16 * MIB, B)];
    rig.free(blocks[0]);
    let report = rig.out_of_memory(41 * MIB, B);
    assert_eq!((report.requested, report.device), (41 * MIB, 0));
    assert_eq!((report.total, report.limit), (64 * MIB, 64 * MIB));
    assert_eq!((report.free, report.reserved), (24 * MIB, 40 * MIB));
    assert_eq!((report.allocated, report.pending), (24 * MIB, 0));
    assert_eq!((report.largest_free_block, report.fragmentation), (16 * MIB, 0.0));
    let streams: Vec<_> =
        report.streams.iter().map(|usage| (usage.stream, usage.allocated, usage.cached)).collect();
    assert_eq!(streams, [(A, 8 * MIB, 16 * MIB), (B, 16 * MIB, 0)]);
    rig.free(blocks[1]);
    rig.free(blocks[2]);
    rig.finish();
}

#[test]
fn fragmentation_is_the_share_of_cached_memory_outside_the_largest_block() {
    let rig = Rig::of(32 * MIB);
    let blocks: Vec<_> = (0..4).map(|_| rig.allocate(8 * MIB, A)).collect();
    rig.free(blocks[0]);
    rig.free(blocks[2]);
    let report = rig.out_of_memory(17 * MIB, A);
    assert_eq!((report.largest_free_block, report.fragmentation), (8 * MIB, 0.5));
    rig.free(blocks[1]);
    rig.free(blocks[3]);
    rig.finish();
}

#[test]
fn the_message_names_every_number() {
    let rig = Rig::of(64 * MIB);
    let live = rig.allocate(24 * MIB, A);
    let text = rig.try_allocate(48 * MIB, StreamId::DEFAULT).unwrap_err().to_string();
    for part in [
        "CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total capacity of 64.00 MiB \
         of which 40.00 MiB is free.",
        "reserves 24.00 MiB, of which 24.00 MiB is allocated and 0 bytes waits",
        "stream 0xa0: 24.00 MiB allocated, 0 bytes cached",
        "only freeing allocations helps",
    ] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    rig.free(live);
    rig.finish();
}

#[test]
fn the_device_at_fault_is_named() {
    let options = plugalloc::device::sim::SimOptions { devices: 3, ..capacity(64 * MIB) };
    let rig = Rig::new(options, Config::default());
    match rig.allocator.allocate(DeviceId(2), 65 * MIB, A) {
        Err(Error::OutOfMemory(report)) => assert_eq!(report.device, 2),
        other => panic!("{other:?}"),
    }
    rig.finish();
}

#[test]
fn a_request_beyond_the_device_is_told_so() {
    let rig = Rig::of(64 * MIB);
    let report = rig.out_of_memory(65 * MIB, A);
    assert_eq!((report.free, report.reserved), (64 * MIB, 0));
    assert!(report.hint.contains("more than the device has"), "{}", report.hint);
    rig.finish();
}

#[test]
fn a_memory_fraction_in_the_way_is_told() {
    let rig = Rig::of(64 * MIB);
    rig.allocator.set_memory_fraction(GPU, 0.5).unwrap();
    let live = rig.allocate(20 * MIB, A);
    let report = rig.out_of_memory(20 * MIB, A);
    assert_eq!((report.limit, report.total), (32 * MIB, 64 * MIB));
    assert!(report.hint.contains("memory fraction allows 32.00 MiB"), "{}", report.hint);
    let text = rig.try_allocate(20 * MIB, A).unwrap_err().to_string();
    assert!(text.contains("32.00 MiB allowed by the memory fraction"), "{text}");
    rig.allocator.set_memory_fraction(GPU, 1.0).unwrap();
    let other = rig.allocate(20 * MIB, A);
    rig.free(live);
    rig.free(other);
    rig.finish();
}

#[test]
fn memory_used_outside_is_told() {
    let rig = Rig::of(64 * MIB);
    let outside = rig.device().malloc(40 * MIB).unwrap();
    let report = rig.out_of_memory(32 * MIB, A);
    assert_eq!(report.free + report.reserved, 24 * MIB);
    assert!(report.hint.contains("40.00 MiB of the device is in use outside"), "{}", report.hint);
    rig.device().free(outside).unwrap();
    let served = rig.allocate(32 * MIB, A);
    rig.free(served);
    rig.finish();
}

#[test]
fn a_device_smaller_than_what_is_taken_is_told() {
    for (options, requested, taken) in [
        (capacity(MIB), 1000, "2.00 MiB"),
        (capacity(3 * MIB), 2 * MIB + 1, "4.00 MiB"),
        (plain(MIB), 1000, "2.00 MiB"),
        (plain(19 * MIB), 2 * MIB, "20.00 MiB"),
    ] {
        let rig = Rig::new(options, Config::default());
        let hint = rig.out_of_memory(requested, A).hint;
        assert!(hint.contains(&format!("for this request {taken}, which is more")), "{hint}");
        rig.finish();
    }
    // Without caching, what is asked for is taken.
    let rig = Rig::new(plain(19 * MIB), config(|c| c.caching = false));
    let live = rig.allocate(2 * MIB, A);
    let hint = rig.out_of_memory(18 * MIB, A).hint;
    assert!(hint.contains("only freeing allocations helps"), "{hint}");
    rig.free(live);
    rig.finish();
    // What is left is less than a piece.
    let rig = Rig::of(3 * MIB);
    let live = rig.allocate(2 * MIB, A);
    let hint = rig.out_of_memory(600 * KIB, A).hint;
    assert!(hint.contains("for this request 2.00 MiB: what is free there is no use"), "{hint}");
    rig.free(live);
    rig.finish();
}

#[test]
fn stealing_that_is_off_is_told() {
    let rig = Rig::new(capacity(64 * MIB), config(|c| c.steal = false));
    let idle = rig.allocate(48 * MIB, A);
    rig.free(idle);
    let report = rig.out_of_memory(40 * MIB, B);
    assert!(report.hint.contains("steal:True"), "{}", report.hint);
    assert_eq!(report.largest_free_block, 48 * MIB);
    rig.allocator.empty_cache().unwrap();
    let served = rig.allocate(40 * MIB, B);
    rig.free(served);
    rig.finish();
}

/// Leaves every other block of a segment free, and gives what a larger request is told.
fn hint_for_a_fragmented_segment(rig: &Rig) -> String {
    let blocks: Vec<_> = (0..10).map(|_| rig.allocate(2 * MIB, A)).collect();
    blocks.iter().step_by(2).for_each(|&address| rig.free(address));
    let report = rig.out_of_memory(4 * MIB, A);
    assert_eq!((report.largest_free_block, report.reserved), (2 * MIB, 20 * MIB));
    assert!((report.fragmentation - 0.8).abs() < 1e-9, "{}", report.fragmentation);
    blocks.iter().skip(1).step_by(2).for_each(|&address| rig.free(address));
    report.hint
}

#[test]
fn segments_chosen_by_configuration_are_told() {
    let rig = Rig::new(capacity(21 * MIB), config(|c| c.expandable_segments = false));
    let hint = hint_for_a_fragmented_segment(&rig);
    assert!(hint.contains("expandable_segments:True"), "{hint}");
    rig.finish();
}

#[test]
fn a_device_without_virtual_memory_is_told() {
    for expandable in [true, false] {
        let rig = Rig::new(plain(21 * MIB), config(|c| c.expandable_segments = expandable));
        let hint = hint_for_a_fragmented_segment(&rig);
        assert!(hint.contains("this device has no virtual memory"), "{hint}");
        assert!(!hint.contains("expandable_segments:True"), "{hint}");
        rig.finish();
    }
}

#[test]
fn a_failed_request_takes_and_keeps_nothing() {
    let rig = Rig::of(64 * MIB);
    let live = rig.allocate(8 * MIB, A);
    let before = rig.ledger();
    for _ in 0..5 {
        rig.out_of_memory(60 * MIB, A);
        rig.out_of_memory(60 * MIB, B);
    }
    let after = rig.ledger();
    for call in [DriverCall::Create, DriverCall::Reserve, DriverCall::Map] {
        assert_eq!(after.calls(call), before.calls(call), "{call} was called in vain");
    }
    assert_eq!(after.used, before.used);
    assert_eq!(rig.statistics().num_ooms, 10);
    rig.free(live);
    rig.finish();
}

#[test]
fn a_block_that_fits_is_found_behind_many_that_do_not() {
    // Blocks of nearly one length share a list, of which the first eight are looked at. None of
    // them holds a whole granule, which could move.
    let (many, one, between) = (1540 * KIB, 1548 * KIB, 1028 * KIB);
    let rig = Rig::of(64 * MIB);
    let mut holes = Vec::new();
    let mut live = Vec::new();
    for bytes in std::iter::once(one).chain([many; 12]) {
        holes.push(rig.allocate(bytes, A));
        live.push(rig.allocate(between, A));
    }
    for bytes in [MIB + 4 * KIB, KIB] {
        while let Ok(address) = rig.try_allocate(bytes, A) {
            live.push(address);
        }
    }
    // The one that fits is freed first, so that it is the last of its list.
    for hole in &holes {
        rig.free(*hole);
    }
    assert_eq!(rig.allocate(1544 * KIB, A), holes[0]);
    rig.free(holes[0]);
    live.into_iter().for_each(|address| rig.free(address));
    rig.finish();
}

/// What the device refused once is no limit to allocations of its own later.
#[test]
fn without_a_cache_the_device_is_asked_again_for_what_it_refused() {
    let rig = Rig::new(capacity(GIB), config(|c| c.max_handle = GRANULE));
    let blocks: Vec<_> = (0..100).map(|_| rig.allocate(8 * MIB, A)).collect();
    let elsewhere = rig.device().malloc(224 * MIB).unwrap();
    let (freed, live): (Vec<_>, Vec<_>) = (0..).zip(blocks).partition(|(k, _)| k % 2 == 1);
    freed.into_iter().for_each(|(_, block)| rig.free(block));
    // The device is asked for a little, refuses, and memory moves instead.
    let moved = rig.allocate(16 * MIB, B);
    rig.device().free(elsewhere).unwrap();
    rig.allocator.set_caching(false);
    let block = rig.allocate(500 * MIB, A);
    let live = live.into_iter().map(|(_, block)| block);
    live.chain([moved, block]).for_each(|block| rig.free(block));
    rig.finish();
}
