//! Captured work with private pools: a graph replays rightly as often as wanted while others
//! allocate, and what the allocator does in the meantime breaks no capture.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, C, GPU, Random, Rig, capacity};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::device::{CaptureId, Device};
use plugalloc::error::{DriverCall, Error};
use plugalloc::units::{Address, Bytes, GIB, MIB, PoolId, StreamId};

const POOL: PoolId = PoolId(1, 0);
const EVENT_CALLS: [DriverCall; 3] =
    [DriverCall::EventRecord, DriverCall::EventQuery, DriverCall::EventSynchronize];

fn event_calls(rig: &Rig, calls: &[DriverCall]) -> u64 {
    let ledger = rig.ledger();
    calls.iter().map(|&call| ledger.calls(call)).sum()
}

/// A captured graph, and what it leaves in memory: address, bytes, value.
struct Captured {
    graph: CaptureId,
    results: Vec<(Address, Bytes, u8)>,
}

/// Opens the pool for the stream and captures it, as a framework does.
fn begin(rig: &Rig, pool: PoolId, stream: StreamId) {
    rig.allocator.begin_allocate_to_pool(GPU, pool, move |on| on == stream).unwrap();
    rig.device().capture_begin(stream).unwrap();
}

fn end(rig: &Rig, pool: PoolId, stream: StreamId) -> CaptureId {
    let graph = rig.device().capture_end(stream).unwrap();
    rig.allocator.end_allocate_to_pool(GPU, pool).unwrap();
    graph
}

/// Captures steps that allocate scratch memory, fill it, copy a part of it to a result, and free
/// it: the graph depends on all of its scratch memory.
fn capture(rig: &Rig, pool: PoolId, stream: StreamId, random: &mut Random) -> Captured {
    begin(rig, pool, stream);
    let mut results = Vec::new();
    for step in 0..6 {
        let bytes = (1 + random.below(12)) * 200_000;
        let value = step + 16 * pool.0 as u8;
        // Long enough to be idle memory that others could take, handles and all.
        let scratch = rig.allocate(bytes + 8 * MIB, stream);
        rig.fill(scratch, value, bytes + 8 * MIB, stream);
        let result = rig.allocate(bytes, stream);
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { rig.device().copy_async(result, scratch, bytes, stream) }.unwrap();
        rig.free(scratch);
        results.push((result, bytes, value));
    }
    Captured { graph: end(rig, pool, stream), results }
}

fn assert_replays(rig: &Rig, captured: &Captured, stream: StreamId) {
    for &(at, bytes, _) in &captured.results {
        rig.fill(at, 0, bytes, stream);
    }
    rig.device().graph_launch(captured.graph, stream).unwrap();
    for &(at, bytes, value) in &captured.results {
        rig.assert_filled(at, value, bytes);
    }
}

fn forget(rig: &Rig, pool: PoolId, captured: Captured) {
    captured.results.iter().for_each(|&(at, ..)| rig.free(at));
    rig.device().graph_destroy(captured.graph).unwrap();
    rig.allocator.release_pool(GPU, pool).unwrap();
}

/// Allocates and frees at random on a stream, with patterns that must stay; sometimes more than
/// there is.
struct Others {
    live: Vec<(Address, Bytes, u8)>,
    next: u8,
}

impl Others {
    /// Takes whatever can be had on a stream.
    fn take_all(&mut self, rig: &Rig, stream: StreamId) {
        for bytes in [4 * MIB, 600_000, 4000] {
            while let Ok(at) = rig.try_allocate(bytes, stream) {
                self.next = self.next % 250 + 1;
                rig.fill(at, self.next, bytes, stream);
                self.live.push((at, bytes, self.next));
                if bytes == 4000 && self.live.len() > 200 {
                    break;
                }
            }
        }
    }

    fn step(&mut self, rig: &Rig, random: &mut Random, stream: StreamId) {
        if self.live.len() > 8 || (random.below(3) == 0 && !self.live.is_empty()) {
            let (at, bytes, value) =
                self.live.swap_remove(random.below(self.live.len() as u64) as usize);
            rig.assert_filled(at, value, bytes);
            rig.free(at);
            return;
        }
        let bytes = random.size(16 * MIB);
        match rig.try_allocate(bytes, stream) {
            Ok(at) => {
                self.next = self.next % 250 + 1;
                rig.fill(at, self.next, bytes, stream);
                self.live.push((at, bytes, self.next));
            }
            Err(error) => assert!(error.is_out_of_memory(), "{error}"),
        }
    }
}

#[test]
fn graphs_replay_rightly_many_times_while_others_allocate() {
    let seed = Random::seed(0x6_4a9);
    for round in 0..2 {
        let mut random = Random::new(seed + round);
        // So little that others must take what is idle wherever they can.
        let rig = Rig::of(64 * MIB);
        let first = capture(&rig, POOL, A, &mut random);
        let second = capture(&rig, PoolId(2, 0), A, &mut random);
        let mut others = Others { live: Vec::new(), next: 0 };
        for replay in 0..30 {
            for _ in 0..8 {
                let stream = [A, B, C][random.below(3) as usize];
                others.step(&rig, &mut random, stream);
            }
            if replay % 10 == 7 {
                others.take_all(&rig, [B, A, C][replay / 10]);
            }
            if replay % 10 == 5 {
                rig.allocator.empty_cache().unwrap();
            }
            assert_replays(&rig, &first, [A, B, C][replay % 3]);
            assert_replays(&rig, &second, [B, C, A][replay % 3]);
            for &(at, bytes, value) in &others.live {
                rig.assert_filled(at, value, bytes);
            }
        }
        rig.allocator.is_valid().unwrap();
        others.live.iter().for_each(|&(at, ..)| rig.free(at));
        forget(&rig, POOL, first);
        forget(&rig, PoolId(2, 0), second);
        rig.finish();
    }
}

#[test]
fn one_pool_serves_several_graphs() {
    let mut random = Random::new(7);
    let rig = Rig::of(GIB);
    let first = capture(&rig, POOL, A, &mut random);
    let second = capture(&rig, POOL, A, &mut random);
    for stream in [A, B, A] {
        assert_replays(&rig, &first, stream);
        assert_replays(&rig, &second, stream);
    }
    forget(&rig, POOL, first);
    assert_eq!(rig.allocator.pool_use_count(GPU, POOL).unwrap(), 1);
    let large = rig.allocate(900 * MIB, B);
    assert_replays(&rig, &second, B);
    rig.free(large);
    forget(&rig, POOL, second);
    rig.finish();
}

#[test]
fn a_capture_that_forbids_asking_events_survives_whatever_others_do() {
    let options = SimOptions { global_capture: true, ..capacity(64 * MIB) };
    let rig = Rig::new(options, Config::default());
    let shared = [0; 8].map(|_| rig.allocate(2 * MIB, B));
    let idle = rig.allocate(20 * MIB, C);
    rig.free(idle);
    begin(&rig, POOL, A);
    // Frees that wait for others, more on the way, idle memory that moves, memory that runs out.
    for &block in &shared {
        rig.allocator.record_stream(block, C).unwrap();
        rig.free(block);
        let moved = rig.allocate(3 * MIB, B);
        rig.allocator.process_events().unwrap();
        rig.free(moved);
    }
    let scratch = rig.allocate(8 * MIB, A);
    rig.fill(scratch, 0x33, 8 * MIB, A);
    rig.out_of_memory(60 * MIB, B);
    rig.allocator.empty_cache().unwrap();
    let large = rig.allocate(20 * MIB, B);
    rig.free(large);
    assert_eq!(event_calls(&rig, &EVENT_CALLS[1..]), 0, "no event was asked or waited for");
    assert_eq!(rig.ledger().calls(DriverCall::Unmap), 0);
    assert_eq!(rig.statistics().active.all.current - rig.statistics().allocation.all.current, 8);
    rig.free(scratch);
    let graph = end(&rig, POOL, A);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 0, "they were waited for after the capture");
    rig.device().graph_launch(graph, C).unwrap();
    rig.assert_filled(scratch, 0x33, 8 * MIB);
    rig.device().graph_destroy(graph).unwrap();
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}

#[test]
fn the_end_of_a_capture_that_never_began_is_refused() {
    let rig = Rig::of(64 * MIB);
    let ends = || rig.allocator.mark_capture_end(GPU);
    let refused = || match ends() {
        Err(Error::InvalidArgument { value, .. }) => assert_eq!(value, "0"),
        other => panic!("{other:?}"),
    };
    refused();
    (0..2).for_each(|_| rig.allocator.mark_capture_begin(GPU).unwrap());
    ends().unwrap();
    ends().unwrap();
    refused();
    // It has not counted: the next one is a capture like any other.
    rig.allocator.mark_capture_begin(GPU).unwrap();
    rig.free(rig.allocate(MIB, A));
    rig.allocator.empty_cache().unwrap();
    assert!(rig.ledger().used > 0, "a capture may be under way");
    ends().unwrap();
    rig.finish();
}

#[test]
fn a_marked_capture_is_left_alone_before_anything_is_known_of_its_stream() {
    let options = SimOptions { global_capture: true, ..capacity(64 * MIB) };
    let rig = Rig::new(options, Config::default());
    let block = rig.allocate(2 * MIB, B);
    rig.allocator.record_stream(block, C).unwrap();
    rig.free(block);
    rig.allocator.mark_capture_begin(GPU).unwrap();
    rig.device().capture_begin(A).unwrap();
    rig.allocator.process_events().unwrap();
    rig.allocator.empty_cache().unwrap();
    let other = rig.allocate(2 * MIB, B);
    assert_ne!(other, block);
    rig.device().capture_end(A).unwrap();
    rig.allocator.mark_capture_end(GPU).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 1);
    rig.free(other);
    rig.finish();
}

#[test]
fn a_pool_without_a_capture_lets_frees_complete() {
    let rig = Rig::of(GIB);
    rig.allocator.begin_allocate_to_pool(GPU, PoolId(0, 1), |on| on == A).unwrap();
    let first = rig.allocate(MIB, A);
    let block = rig.allocate(2 * MIB, B);
    rig.allocator.record_stream(block, C).unwrap();
    rig.free(block);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 1, "nothing is being captured");
    rig.free(first);
    rig.allocator.end_allocate_to_pool(GPU, PoolId(0, 1)).unwrap();
    rig.allocator.release_pool(GPU, PoolId(0, 1)).unwrap();
    rig.finish();
}

#[test]
fn a_capture_takes_no_memory_that_its_own_stream_may_still_use_outside() {
    let rig = Rig::of(64 * MIB);
    let before = rig.allocate(20 * MIB, A);
    rig.device().hold(A).unwrap();
    rig.fill(before, 0xee, 20 * MIB, A);
    rig.free(before);
    begin(&rig, POOL, A);
    let inside = rig.allocate(20 * MIB, A);
    rig.fill(inside, 0x11, 20 * MIB, A);
    let graph = end(&rig, POOL, A);
    // The graph runs on another stream before what was queued on A.
    rig.device().graph_launch(graph, B).unwrap();
    rig.device().resume(A).unwrap();
    rig.assert_filled(inside, 0x11, 20 * MIB);
    rig.free(inside);
    rig.device().graph_destroy(graph).unwrap();
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}

#[test]
fn memory_of_an_ended_pool_waits_for_graphs_that_still_run() {
    // The second pool is no graph's at first.
    for pool in [POOL, PoolId(0, 1)] {
        let rig = Rig::of(64 * MIB);
        rig.allocator.begin_allocate_to_pool(GPU, pool, |on| on == A).unwrap();
        let first = rig.allocate(MIB, A);
        rig.free(first);
        rig.allocator.end_allocate_to_pool(GPU, pool).unwrap();
        begin(&rig, pool, A);
        rig.allocator.release_pool(GPU, pool).unwrap();
        let scratch = rig.allocate(40 * MIB, A);
        rig.fill(scratch, 0x55, 40 * MIB, A);
        rig.free(scratch);
        let graph = end(&rig, pool, A);
        rig.device().hold(B).unwrap();
        rig.device().graph_launch(graph, B).unwrap();
        rig.device().graph_destroy(graph).unwrap();
        rig.allocator.release_pool(GPU, pool).unwrap();
        // A waits for nothing, but the graph is still to run on B.
        rig.out_of_memory(40 * MIB, A);
        rig.out_of_memory(40 * MIB, C);
        rig.device().resume(B).unwrap();
        let block = rig.allocate(60 * MIB, C);
        rig.fill(block, 0x66, 60 * MIB, C);
        rig.assert_filled(block, 0x66, 60 * MIB);
        rig.free(block);
        rig.finish();
    }
}

#[test]
fn memory_freed_with_a_captured_user_comes_back_after_the_capture() {
    let rig = Rig::of(GIB);
    begin(&rig, POOL, A);
    let block = rig.allocate(4 * MIB, A);
    rig.fill(block, 0x11, 4 * MIB, A);
    rig.device().capture_begin(B).unwrap();
    rig.allocator.record_stream(block, B).unwrap();
    rig.free(block);
    let next = rig.allocate(4 * MIB, A);
    assert_ne!(next, block, "B may still read it in the graph");
    let other = rig.device().capture_end(B).unwrap();
    let graph = end(&rig, POOL, A);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 1);
    rig.free(next);
    [graph, other].iter().for_each(|&graph| rig.device().graph_destroy(graph).unwrap());
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}
