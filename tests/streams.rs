//! Several streams: memory passes between them only in an order that their work keeps.
//!
//! Work is held back on one stream, the allocator hands the memory on, and the pattern tells
//! whether the work found what was there when it was queued.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::thread;
use std::time::Duration;

use common::{A, B, C, Rig, capacity, config};
use plugalloc::Config;
use plugalloc::device::Device;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::DriverCall;
use plugalloc::units::{Address, GIB, KIB, MIB, StreamId};

/// Work of B, held back, is to read a block of A that A then frees, reuses and overwrites. Gives
/// what the work read.
fn read_late(record: bool) -> Vec<u8> {
    let rig = Rig::of(GIB);
    let block = rig.allocate(MIB, A);
    rig.fill(block, 0x11, MIB, A);
    rig.device().hold(B).unwrap();
    let mut found = vec![0u8; MIB as usize];
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { rig.device().copy_async(found.as_mut_ptr() as Address, block, MIB, B) }.unwrap();
    if record {
        rig.allocator.record_stream(block, B).unwrap();
    }
    rig.free(block);
    let others: Vec<_> = (0..8).map(|_| rig.allocate(MIB, A)).collect();
    for &other in &others {
        rig.fill(other, 0xee, MIB, A);
    }
    assert_eq!(others.contains(&block), !record, "reused at once unless it is recorded");
    rig.device().resume(B).unwrap();
    others.into_iter().for_each(|other| rig.free(other));
    rig.finish();
    found
}

#[test]
fn a_recorded_stream_still_reads_a_block_that_was_freed() {
    assert!(read_late(true).iter().all(|&byte| byte == 0x11));
}

#[test]
fn without_record_stream_the_same_work_reads_what_came_later() {
    // That the simulator shows the fault which the test above is there to find.
    assert!(read_late(false).iter().all(|&byte| byte == 0xee));
}

/// A block with two users beside its owner; they pass in this order.
fn wait_for_both(order: [StreamId; 2]) {
    let rig = Rig::of(GIB);
    let block = rig.allocate(64 * KIB, A);
    for stream in [B, C] {
        rig.device().hold(stream).unwrap();
        rig.allocator.record_stream(block, stream).unwrap();
    }
    rig.free(block);
    let reused = |rig: &Rig| {
        rig.allocator.process_events().unwrap();
        let next = rig.allocate(64 * KIB, A);
        rig.free(next);
        next == block
    };
    assert!(!reused(&rig));
    rig.device().resume(order[0]).unwrap();
    assert!(!reused(&rig), "{} still uses it", order[1]);
    rig.device().resume(order[1]).unwrap();
    rig.allocator.process_events().unwrap();
    // What was freed last is kept aside and comes first.
    let both = [rig.allocate(64 * KIB, A), rig.allocate(64 * KIB, A)];
    assert!(both.contains(&block));
    both.into_iter().for_each(|address| rig.free(address));
    rig.finish();
}

#[test]
fn a_deferred_block_is_reused_once_all_its_users_have_passed() {
    wait_for_both([B, C]);
    wait_for_both([C, B]);
}

#[test]
fn recording_the_own_stream_defers_nothing() {
    let rig = Rig::of(GIB);
    rig.device().hold(A).unwrap();
    let block = rig.allocate(MIB, A);
    rig.allocator.record_stream(block, A).unwrap();
    rig.free(block);
    assert_eq!(rig.allocate(MIB, A), block);
    assert_eq!(rig.ledger().calls(DriverCall::EventRecord), 0);
    rig.free(block);
    rig.device().resume(A).unwrap();
    rig.finish();
}

#[test]
fn a_stream_reuses_its_own_memory_under_queued_work_without_waiting() {
    let rig = Rig::of(GIB);
    rig.device().hold(A).unwrap();
    let block = rig.allocate(4 * MIB, A);
    rig.fill(block, 0x11, 4 * MIB, A);
    rig.free(block);
    assert_eq!(rig.allocate(4 * MIB, A), block);
    rig.fill(block, 0x22, 4 * MIB, A);
    let ledger = rig.ledger();
    for call in [DriverCall::EventRecord, DriverCall::EventSynchronize] {
        assert_eq!(ledger.calls(call), 0, "{call}");
    }
    rig.device().resume(A).unwrap();
    rig.assert_filled(block, 0x22, 4 * MIB);
    rig.free(block);
    rig.finish();
}

/// A's queued work writes memory that is freed; B takes its pages and writes them too, where they
/// are or, if they lie `apart`, mapped to other addresses. The streams are resumed in this order.
fn steal_and_resume(order: [StreamId; 2], apart: bool) {
    let rig = Rig::new(capacity(10 * MIB), config(|c| c.max_handle = 2 * MIB));
    rig.device().hold(A).unwrap();
    rig.device().hold(B).unwrap();
    let sizes = if apart { [4 * MIB, 2 * MIB, 4 * MIB] } else { [2 * MIB, 6 * MIB, 2 * MIB] };
    let old = sizes.map(|bytes| rig.allocate(bytes, A));
    for (at, bytes) in old.into_iter().zip(sizes) {
        rig.fill(at, 0xaa, bytes, A);
    }
    let kept = if apart { 1 } else { 2 };
    (0..3).filter(|&k| k != kept).for_each(|k| rig.free(old[k]));
    let new = rig.allocate(8 * MIB, B);
    assert_eq!(new == old[0], !apart);
    rig.fill(new, 0xbb, 8 * MIB, B);
    assert_eq!(rig.ledger().used, 10 * MIB, "the same pages");
    rig.device().resume(order[0]).unwrap();
    if order[0] == B {
        rig.assert_filled(new, 0, 8 * MIB);
    }
    rig.device().resume(order[1]).unwrap();
    rig.assert_filled(new, 0xbb, 8 * MIB);
    rig.assert_filled(old[kept], 0xaa, 2 * MIB);
    rig.free(new);
    rig.free(old[kept]);
    rig.finish();
}

#[test]
fn the_taker_of_stolen_memory_runs_after_the_stream_that_had_it() {
    [false, true].into_iter().for_each(|apart| steal_and_resume([A, B], apart));
    [false, true].into_iter().for_each(|apart| steal_and_resume([B, A], apart));
}

#[test]
fn memory_that_wanders_over_three_streams_is_used_in_that_order() {
    let rig = Rig::of(4 * MIB);
    for stream in [A, B, C] {
        rig.device().hold(stream).unwrap();
    }
    let mut last = 0;
    for (value, stream) in [(1, A), (2, B), (3, C), (4, A), (5, C)] {
        last = rig.allocate(4 * MIB, stream);
        rig.fill(last, value, 4 * MIB, stream);
        rig.free(last);
    }
    for stream in [C, B, A] {
        rig.device().resume(stream).unwrap();
    }
    rig.assert_filled(last, 5, 4 * MIB);
    rig.finish();
}

/// Leaves a block of A at addresses behind which nothing is free, with work on it held back, and
/// lets A use its pages elsewhere. Gives what is live: the block in the way and the new one.
fn alias(rig: &Rig) -> [Address; 2] {
    rig.device().hold(A).unwrap();
    let old = rig.allocate(4 * MIB, A);
    let between = rig.allocate(2 * MIB, A);
    rig.fill(old, 0x11, 4 * MIB, A);
    rig.free(old);
    let new = rig.allocate(6 * MIB, A);
    assert!(new >= between || new + 6 * MIB <= old, "at other addresses");
    assert_eq!(rig.ledger().used, 8 * MIB, "4 MiB of pages are at two addresses");
    rig.fill(new, 0x22, 6 * MIB, A);
    [between, new]
}

#[test]
fn pages_at_a_new_address_keep_the_order_of_their_stream() {
    let rig = Rig::of(8 * MIB);
    let [between, new] = alias(&rig);
    let ledger = rig.ledger();
    for call in [
        DriverCall::EventRecord,
        DriverCall::EventSynchronize,
        DriverCall::Unmap,
        DriverCall::StreamWaitEvent,
    ] {
        assert_eq!(ledger.calls(call), 0, "{call}");
    }
    rig.device().resume(A).unwrap();
    rig.assert_filled(new, 0x22, 6 * MIB);
    rig.free(between);
    rig.free(new);
    rig.finish();
}

#[test]
fn a_dormant_mapping_is_not_unmapped_under_queued_work() {
    let options = SimOptions { wait_for_release: true, ..capacity(8 * MIB) };
    let rig = Rig::new(options, Config::default());
    let [between, new] = alias(&rig);
    rig.free(new);
    thread::scope(|scope| {
        let emptying = scope.spawn(|| rig.allocator.empty_cache());
        thread::sleep(Duration::from_millis(30));
        assert_eq!(rig.ledger().calls(DriverCall::Unmap), 0);
        rig.device().resume(A).unwrap();
        emptying.join().unwrap().unwrap();
    });
    assert_eq!(rig.ledger().used, 2 * MIB);
    rig.free(between);
    rig.finish();
}

#[test]
fn one_event_a_stream_serves_many_frees() {
    let rig = Rig::of(GIB);
    for round in 1..=3 {
        let blocks: Vec<_> = (0..100).map(|_| rig.allocate(4 * KIB, A)).collect();
        for &block in &blocks {
            for _ in 0..5 {
                rig.allocator.record_stream(block, B).unwrap();
                rig.allocator.record_stream(block, C).unwrap();
            }
            rig.free(block);
        }
        rig.allocator.process_events().unwrap();
        let ledger = rig.ledger();
        // Each free moves its streams' events on: the program may destroy a stream right after.
        assert_eq!(ledger.calls(DriverCall::EventRecord), 200 * round);
        assert_eq!(ledger.calls(DriverCall::EventCreate), 2, "one a stream, used again");
        assert_eq!(ledger.calls(DriverCall::EventQuery), 2 * round, "asked once an epoch");
        rig.allocator.is_quiescent().unwrap();
    }
    rig.finish();
}

#[test]
fn a_handle_left_over_by_a_failed_step_is_still_ordered() {
    // The mapping of a stolen handle fails for B, whose small request lies elsewhere; C is the next
    // to take it.
    let rig = Rig::new(capacity(2 * MIB), config(|c| c.max_handle = 2 * MIB));
    rig.device().hold(A).unwrap();
    let old = rig.allocate(2 * MIB, A);
    rig.fill(old, 0xaa, 2 * MIB, A);
    rig.free(old);
    rig.device().fail_nth(DriverCall::Map, 1);
    assert!(rig.try_allocate(KIB, B).is_err());
    let new = rig.allocate(2 * MIB, C);
    rig.fill(new, 0xcc, 2 * MIB, C);
    rig.device().resume(A).unwrap();
    rig.assert_filled(new, 0xcc, 2 * MIB);
    rig.free(new);
    rig.finish();
}

#[test]
fn a_leftover_handle_comes_back_to_its_first_stream_in_order() {
    // B used it last, and A has still a mapping of it.
    let rig = Rig::new(capacity(2 * MIB), config(|c| c.max_handle = 2 * MIB));
    rig.device().hold(B).unwrap();
    let first = rig.allocate(2 * MIB, A);
    rig.free(first);
    let second = rig.allocate(MIB, B);
    rig.fill(second, 0xbb, MIB, B);
    rig.free(second);
    rig.device().fail_nth(DriverCall::Map, 1);
    assert!(rig.try_allocate(2 * MIB, C).is_err());
    assert_eq!(rig.allocate(2 * MIB, A), first);
    rig.fill(first, 0xaa, 2 * MIB, A);
    rig.device().resume(B).unwrap();
    rig.assert_filled(first, 0xaa, 2 * MIB);
    rig.free(first);
    rig.finish();
}
