//! Streams that the program destroys while the allocator still has memory of theirs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, GPU, Rig};
use plugalloc::device::Device;
use plugalloc::units::{GIB, MIB, StreamId};

/// A stream is destroyed with work held back on memory that it has freed; B takes the memory. Gives
/// what is in it once all work has run.
fn take_from_a_destroyed_stream(retire: bool) -> u8 {
    let rig = Rig::of(8 * MIB);
    let stream = rig.device().stream_create().unwrap();
    let old = rig.allocate(8 * MIB, stream);
    if retire {
        // Without notice, taking the memory waits for the whole device: nothing may be held back.
        rig.device().hold(stream).unwrap();
    }
    rig.fill(old, 0xaa, 8 * MIB, stream);
    rig.free(old);
    if retire {
        rig.allocator.retire_stream(GPU, stream).unwrap();
    }
    rig.device().stream_destroy(stream).unwrap();
    let new = rig.allocate(8 * MIB, B);
    rig.fill(new, 0xbb, 8 * MIB, B);
    if retire {
        rig.device().resume(stream).unwrap();
    }
    let found = rig.read(new, 8 * MIB);
    rig.free(new);
    rig.finish();
    assert!(found.iter().all(|&byte| byte == found[0]));
    found[0]
}

#[test]
fn memory_of_a_retired_stream_is_taken_in_its_order() {
    assert_eq!(take_from_a_destroyed_stream(true), 0xbb);
}

#[test]
fn memory_of_a_stream_destroyed_without_notice_is_not_lost() {
    assert_eq!(take_from_a_destroyed_stream(false), 0xbb);
}

#[test]
fn a_free_that_waits_for_a_stream_ends_after_the_stream_is_gone() {
    for retire in [true, false] {
        let rig = Rig::of(GIB);
        let user = rig.device().stream_create().unwrap();
        let block = rig.allocate(MIB, A);
        rig.device().hold(user).unwrap();
        rig.allocator.record_stream(block, user).unwrap();
        rig.free(block);
        if retire {
            rig.allocator.retire_stream(GPU, user).unwrap();
        }
        rig.fill(block, 0x11, MIB, user);
        rig.device().stream_destroy(user).unwrap();
        rig.allocator.process_events().unwrap();
        assert_eq!(rig.statistics().active.all.current, 1, "its work has not run");
        rig.device().resume(user).unwrap();
        rig.allocator.process_events().unwrap();
        assert_eq!(rig.statistics().active.all.current, 0);
        rig.finish();
    }
}

#[test]
fn a_stream_that_dies_before_the_free_is_waited_for_with_the_device() {
    let rig = Rig::of(GIB);
    let user = rig.device().stream_create().unwrap();
    let block = rig.allocate(MIB, A);
    rig.allocator.record_stream(block, user).unwrap();
    rig.device().stream_destroy(user).unwrap();
    rig.free(block);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 0);
    rig.finish();
}

#[test]
fn many_streams_come_and_go() {
    let rig = Rig::of(64 * MIB);
    for round in 0..50 {
        let stream = rig.device().stream_create().unwrap();
        let block = rig.allocate(40 * MIB, stream);
        rig.fill(block, round, 40 * MIB, stream);
        rig.free(block);
        rig.allocator.retire_stream(GPU, stream).unwrap();
        rig.device().stream_destroy(stream).unwrap();
    }
    assert!(rig.ledger().used <= 64 * MIB);
    rig.finish();
}

#[test]
fn a_retired_handle_that_comes_back_is_a_stream_like_others() {
    let rig = Rig::of(16 * MIB);
    let stream = StreamId(0x77);
    for round in 1..5 {
        let block = rig.allocate(10 * MIB, stream);
        rig.fill(block, round, 10 * MIB, stream);
        rig.free(block);
        rig.allocator.retire_stream(GPU, stream).unwrap();
        let other = rig.allocate(12 * MIB, B);
        rig.fill(other, 0xbb, 12 * MIB, B);
        rig.assert_filled(other, 0xbb, 12 * MIB);
        rig.free(other);
    }
    rig.finish();
}

#[test]
fn live_memory_of_a_retired_stream_stays_and_is_freed() {
    let rig = Rig::of(GIB);
    let stream = rig.device().stream_create().unwrap();
    let block = rig.allocate(5 * MIB, stream);
    rig.fill(block, 0x55, 5 * MIB, stream);
    rig.allocator.retire_stream(GPU, stream).unwrap();
    rig.device().stream_destroy(stream).unwrap();
    rig.assert_filled(block, 0x55, 5 * MIB);
    rig.allocator.is_valid().unwrap();
    rig.free(block);
    let next = rig.allocate(5 * MIB, B);
    rig.free(next);
    rig.finish();
}
