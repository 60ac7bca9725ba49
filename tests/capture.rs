//! Streams that are being captured: nothing is asked of them, nothing is taken from them, and
//! nothing that the allocator does spoils the capture.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, C, GPU, Rig, capacity, config, plain};
use plugalloc::device::Device;
use plugalloc::error::DriverCall;
use plugalloc::units::{Bytes, GIB, GRANULE, MIB};

const EVENT_CALLS: [DriverCall; 3] =
    [DriverCall::EventRecord, DriverCall::EventQuery, DriverCall::EventSynchronize];

fn event_calls(rig: &Rig) -> u64 {
    let ledger = rig.ledger();
    EVENT_CALLS.iter().map(|&call| ledger.calls(call)).sum()
}

#[test]
fn frees_with_a_user_that_is_captured_wait_for_the_end_of_the_capture() {
    let rig = Rig::of(GIB);
    let block = rig.allocate(MIB, A);
    rig.device().capture_begin(B).unwrap();
    rig.fill(block, 0x11, MIB, B);
    rig.allocator.record_stream(block, B).unwrap();
    rig.free(block);
    let before = event_calls(&rig);
    for _ in 0..10 {
        rig.allocator.process_events().unwrap();
        let other = rig.allocate(MIB, A);
        assert_ne!(other, block);
        rig.free(other);
    }
    assert_eq!(event_calls(&rig), before, "no event is recorded or asked for during the capture");
    assert_eq!(rig.statistics().active.all.current, 1);
    rig.device().capture_end(B).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 0);
    assert_eq!(rig.ledger().calls(DriverCall::EventRecord), 1);
    rig.finish();
}

#[test]
fn a_captured_stream_reuses_its_own_memory_and_takes_new_memory() {
    let rig = Rig::of(GIB);
    rig.device().capture_begin(A).unwrap();
    let first = rig.allocate(4 * MIB, A);
    rig.fill(first, 0x11, 4 * MIB, A);
    rig.free(first);
    assert_eq!(rig.allocate(4 * MIB, A), first);
    let second = rig.allocate(4 * MIB, A);
    rig.fill(second, 0x22, 4 * MIB, A);
    assert_eq!(event_calls(&rig), 0);
    let graph = rig.device().capture_end(A).unwrap();
    rig.device().graph_launch(graph, B).unwrap();
    rig.assert_filled(first, 0x11, 4 * MIB);
    rig.assert_filled(second, 0x22, 4 * MIB);
    rig.free(first);
    rig.free(second);
    rig.finish();
}

#[test]
fn a_captured_stream_is_served_although_idle_memory_cannot_be_taken() {
    let rig = Rig::of(GIB);
    let idle = rig.allocate(100 * MIB, A);
    rig.free(idle);
    rig.device().capture_begin(B).unwrap();
    let block = rig.allocate(10 * MIB, B);
    rig.fill(block, 0x11, 10 * MIB, B);
    let graph = rig.device().capture_end(B).unwrap();
    rig.device().graph_launch(graph, B).unwrap();
    rig.assert_filled(block, 0x11, 10 * MIB);
    rig.free(block);
    rig.finish();
}

#[test]
fn a_stream_is_served_although_a_captured_one_holds_idle_memory() {
    let rig = Rig::of(64 * MIB);
    let idle = rig.allocate(20 * MIB, C);
    rig.device().capture_begin(A).unwrap();
    let freed = rig.allocate(20 * MIB, A);
    rig.fill(freed, 0x11, 20 * MIB, A);
    rig.free(freed);
    rig.free(idle);
    // 24 MiB of the device and 20 MiB of C; nothing of A.
    let block = rig.allocate(44 * MIB, B);
    rig.fill(block, 0xbb, 44 * MIB, B);
    let graph = rig.device().capture_end(A).unwrap();
    rig.device().graph_launch(graph, A).unwrap();
    rig.assert_filled(block, 0xbb, 44 * MIB);
    rig.free(block);
    rig.finish();
}

#[test]
fn emptying_the_cache_spares_what_a_capture_uses() {
    let rig = Rig::of(16 * MIB);
    rig.device().capture_begin(A).unwrap();
    let freed = rig.allocate(6 * MIB, A);
    rig.fill(freed, 0x11, 6 * MIB, A);
    rig.free(freed);
    let live = rig.allocate(2 * MIB, A);
    rig.fill(live, 0x22, 2 * MIB, A);
    let idle = rig.allocate(4 * MIB, B);
    rig.free(idle);
    rig.allocator.empty_cache().unwrap();
    rig.allocator.is_valid().unwrap();
    assert_eq!(rig.ledger().used, 6 * MIB, "the idle memory of B is given back, that of A is not");
    let graph = rig.device().capture_end(A).unwrap();
    rig.device().graph_launch(graph, A).unwrap();
    rig.assert_filled(live, 0x22, 2 * MIB);
    rig.free(live);
    rig.finish();
}

#[test]
fn memory_freed_in_a_capture_serves_no_other_stream_after_emptying_the_cache() {
    let rig = Rig::of(8 * MIB);
    rig.device().capture_begin(A).unwrap();
    let freed = rig.allocate(8 * MIB, A);
    rig.fill(freed, 0x11, 8 * MIB, A);
    rig.free(freed);
    rig.allocator.empty_cache().unwrap();
    assert_eq!(rig.allocator.largest_free_block(GPU).unwrap(), 8 * MIB, "still cached for A");
    let report = rig.out_of_memory(8 * MIB, B);
    assert!(report.hint.contains("being captured"), "{}", report.hint);
    assert_eq!(rig.allocate(8 * MIB, A), freed, "the captured stream itself may use it");
    rig.free(freed);
    rig.device().capture_end(A).unwrap();
    let block = rig.allocate(8 * MIB, B);
    rig.free(block);
    rig.finish();
}

/// A segment that a captured stream has freed is idle, and in use by the graph.
#[test]
fn segments_that_a_capture_uses_are_not_given_back() {
    for way in ["empty", "idle", "full"] {
        let rig = Rig::new(plain(64 * MIB), config(|c| c.release_idle_ms = 10));
        rig.allocator.clock().set_us(0);
        rig.device().capture_begin(A).unwrap();
        let freed = rig.allocate(20 * MIB, A);
        rig.fill(freed, 0x11, 20 * MIB, A);
        rig.free(freed);
        match way {
            "empty" => rig.allocator.empty_cache().unwrap(),
            "idle" => [11, 22, 33].into_iter().for_each(|ms| {
                rig.allocator.clock().set_us(ms * 1000);
                rig.allocator.process_events().unwrap();
            }),
            _ => _ = rig.out_of_memory(60 * MIB, B),
        }
        assert_eq!(rig.ledger().used, 20 * MIB, "{way}");
        let graph = rig.device().capture_end(A).unwrap();
        rig.device().graph_launch(graph, A).unwrap();
        rig.assert_filled(freed, 0x11, 20 * MIB);
        rig.finish();
    }
}

/// Each attempt counts on memory of the captured stream, and moves other memory before it finds
/// that it cannot have that: observers have to be told of that each time.
#[test]
fn a_request_beside_a_capture_ends_where_observers_are_told_of_what_moves() {
    let rig = Rig::new(capacity(26 * MIB), config(|c| c.max_handle = GRANULE));
    rig.allocator.observe_mappings(|_| {}).unwrap();
    rig.device().capture_begin(C).unwrap();
    let idle = rig.allocate(15 * MIB, C);
    rig.free(idle);
    let live = rig.allocate(5 * MIB / 2, B);
    rig.out_of_memory(29 * MIB / 2, A);
    rig.device().capture_end(C).unwrap();
    rig.free(live);
    rig.finish();
}

/// Memory that was unmapped for a request which then did not need it has no address any more.
#[test]
fn a_snapshot_shows_all_that_is_reserved_after_memory_was_unmapped_for_a_request() {
    let rig = Rig::new(capacity(32 * MIB), config(|c| c.max_handle = GRANULE));
    rig.allocator.observe_mappings(|_| {}).unwrap();
    rig.device().capture_begin(C).unwrap();
    let idle = rig.allocate(20 * MIB, A);
    rig.free(idle);
    let block = rig.allocate(13 * MIB, C);
    let snapshot = rig.allocator.snapshot(None, false).unwrap();
    let total: Bytes = snapshot.segments.iter().map(|segment| segment.total).sum();
    assert_eq!(total as i64, rig.statistics().reserved_bytes.all.current);
    rig.device().capture_end(C).unwrap();
    rig.free(block);
    rig.finish();
}
