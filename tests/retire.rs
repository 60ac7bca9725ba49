//! Streams that the program destroys while the allocator still has memory of theirs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{A, B, C, GPU, Rig, capacity};
use plugalloc::cpp::CachingAllocator;
use plugalloc::device::Device;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{DeviceId, GIB, MIB, PoolId, StreamId};
use plugalloc::{Allocator, Config, Error};

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
fn a_live_block_waits_for_a_stream_that_was_retired_before_its_free() {
    let rig = Rig::of(GIB);
    let user = rig.device().stream_create().unwrap();
    let block = rig.allocate(MIB, A);
    rig.device().hold(user).unwrap();
    rig.allocator.record_stream(block, user).unwrap();
    rig.fill(block, 0x11, MIB, user);
    rig.allocator.retire_stream(GPU, user).unwrap();
    rig.device().stream_destroy(user).unwrap();
    rig.free(block);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 1, "its work has not run");
    rig.device().resume(user).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 0);
    assert_eq!(rig.ledger().calls_of_no_stream, 0);
    rig.finish();
}

#[test]
fn a_stream_under_a_retired_name_is_waited_for_itself() {
    let rig = Rig::of(GIB);
    let name = StreamId(0x77);
    rig.allocator.retire_stream(GPU, name).unwrap();
    let block = rig.allocate(MIB, A);
    rig.device().hold(name).unwrap();
    rig.allocator.record_stream(block, name).unwrap();
    rig.fill(block, 0x11, MIB, name);
    rig.free(block);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 1, "the new stream has not run");
    rig.device().resume(name).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 0);
    rig.finish();
}

/// The name was retired before it had memory, or before it had any in the pool.
#[test]
fn memory_of_a_stream_under_a_retired_name_is_taken_in_its_order() {
    for in_pool in [false, true] {
        let rig = Rig::of(8 * MIB);
        let (name, pool) = (StreamId(0x77), PoolId(0, 1));
        if in_pool {
            let before = rig.allocate(MIB, name);
            rig.free(before);
        }
        rig.allocator.retire_stream(GPU, name).unwrap();
        if in_pool {
            rig.allocator.empty_cache().unwrap();
            rig.allocator.begin_allocate_to_pool(GPU, pool, move |on| on == name).unwrap();
        }
        let old = rig.allocate(8 * MIB, name);
        rig.device().hold(name).unwrap();
        rig.fill(old, 0xaa, 8 * MIB, name);
        rig.free(old);
        if in_pool {
            rig.allocator.end_allocate_to_pool(GPU, pool).unwrap();
            rig.allocator.release_pool(GPU, pool).unwrap();
        }
        let new = rig.allocate(8 * MIB, B);
        rig.fill(new, 0xbb, 8 * MIB, B);
        rig.device().resume(name).unwrap();
        rig.assert_filled(new, 0xbb, 8 * MIB);
        rig.free(new);
        rig.finish();
    }
}

/// A stream ends, and the next one of its name uses a block that it has left: the block's memory is
/// taken in the order of that one.
#[test]
fn a_stream_under_a_retired_name_that_was_recorded_is_waited_for() {
    let rig = Rig::of(8 * MIB);
    let last = rig.device().stream_create().unwrap();
    let name = StreamId(last.0 + 0x100);
    let old = rig.allocate(8 * MIB, name);
    rig.allocator.retire_stream(GPU, name).unwrap();
    rig.device().stream_destroy(name).unwrap();
    assert_eq!(rig.device().stream_create().unwrap(), name);
    rig.device().hold(name).unwrap();
    rig.allocator.record_stream(old, name).unwrap();
    rig.fill(old, 0xaa, 8 * MIB, name);
    rig.free(old);
    let new = rig.allocate(8 * MIB, B);
    rig.fill(new, 0xbb, 8 * MIB, B);
    rig.device().resume(name).unwrap();
    rig.assert_filled(new, 0xbb, 8 * MIB);
    rig.free(new);
    rig.finish();
}

/// A stream is destroyed with work held back, and the driver gives its name to the next one, which
/// ends without having used any memory.
#[test]
fn a_name_that_is_retired_twice_still_stands_for_what_the_first_stream_left() {
    let rig = Rig::of(8 * MIB);
    let last = rig.device().stream_create().unwrap();
    let name = StreamId(last.0 + 0x100);
    let old = rig.allocate(8 * MIB, name);
    let event = rig.device().event_create().unwrap();
    rig.device().hold(C).unwrap();
    rig.device().event_record(event, C).unwrap();
    rig.device().stream_wait_event(name, event).unwrap();
    rig.fill(old, 0xaa, 8 * MIB, name);
    rig.free(old);
    rig.allocator.retire_stream(GPU, name).unwrap();
    rig.device().stream_destroy(name).unwrap();
    assert_eq!(rig.device().stream_create().unwrap(), name);
    rig.allocator.retire_stream(GPU, name).unwrap();
    rig.device().stream_destroy(name).unwrap();
    let new = rig.allocate(8 * MIB, B);
    rig.fill(new, 0xbb, 8 * MIB, B);
    rig.device().resume(C).unwrap();
    rig.assert_filled(new, 0xbb, 8 * MIB);
    rig.free(new);
    rig.device().event_destroy(event).unwrap();
    rig.finish();
}

/// A real driver may fault at the name of a stream that is gone.
#[test]
fn nothing_is_asked_of_streams_that_were_retired() {
    let pool = PoolId(7, 0);
    let rig = Rig::of(GIB);
    let streams = [(); 2].map(|()| rig.device().stream_create().unwrap());
    let [stream, other] = streams;
    rig.allocator.begin_allocate_to_pool(GPU, pool, move |on| on == stream).unwrap();
    let inside = rig.allocate(5 * MIB, stream);
    let beside = rig.allocate(5 * MIB, other);
    let shared = rig.allocate(5 * MIB, other);
    rig.allocator.record_stream(shared, stream).unwrap();
    for gone in streams {
        rig.allocator.retire_stream(GPU, gone).unwrap();
        rig.device().stream_destroy(gone).unwrap();
    }
    rig.free(shared);
    rig.allocator.process_events().unwrap();
    rig.allocator.end_allocate_to_pool(GPU, pool).unwrap();
    [inside, beside].into_iter().for_each(|at| rig.free(at));
    rig.allocator.release_pool(GPU, pool).unwrap();
    let most = rig.allocate(GIB - 2 * MIB, A);
    assert!(rig.try_allocate(GIB, A).unwrap_err().is_out_of_memory());
    rig.free(most);
    rig.allocator.empty_cache().unwrap();
    assert_eq!(rig.ledger().calls_of_no_stream, 0);
    rig.finish();
}

#[test]
fn a_live_block_forgets_a_stream_of_another_device_that_was_retired() {
    let options = SimOptions { devices: 2, ..capacity(GIB) };
    let machine = SimMachine::new(options).unwrap();
    let engine = Allocator::new(machine.as_devices(), Config::default()).unwrap();
    let peer = machine.device(1);
    let user = peer.stream_create().unwrap();
    let block = engine.allocate(GPU, MIB, A).unwrap();
    engine.record_stream(block, user).unwrap();
    engine.retire_stream(DeviceId(1), user).unwrap();
    peer.stream_destroy(user).unwrap();
    engine.free(block).unwrap();
    assert_eq!(engine.statistics(GPU).unwrap().active.all.current, 0, "nobody is waited for");
    assert_eq!(peer.ledger().calls_of_no_stream, 0);
    engine.is_quiescent().unwrap();
    engine.is_valid().unwrap();
}

#[test]
fn programs_in_cpp_retire_streams() {
    let machine = SimMachine::new(capacity(GIB)).unwrap();
    let device = machine.device(0);
    let engine = Arc::new(Allocator::new(machine.as_devices(), Config::default()).unwrap());
    let cpp = CachingAllocator::new(Arc::clone(&engine)).unwrap();
    let [stream, other] = [(); 2].map(|()| device.stream_create().unwrap());
    let at = cpp.raw_alloc_with_stream(600 * MIB as usize, stream.0).unwrap();
    cpp.raw_delete(at).unwrap();
    cpp.retire_stream(0, stream.0).unwrap();
    device.stream_destroy(stream).unwrap();
    let at = cpp.raw_alloc_with_stream(1000 * MIB as usize, other.0).unwrap();
    cpp.raw_delete(at).unwrap();
    assert_eq!(device.ledger().calls_of_no_stream, 0);
    let refused = cpp.retire_stream(7, other.0).unwrap_err();
    assert!(matches!(refused, Error::InvalidDevice { .. }), "{refused}");
    engine.is_quiescent().unwrap();
    engine.is_valid().unwrap();
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
