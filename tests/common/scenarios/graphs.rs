//! Captured work over memory of private pools.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use plugalloc::Checkpoint;
use plugalloc::device::CaptureId;
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, Bytes, KIB, MIB, PoolId, StreamId};

use super::others::among_others;
use super::{Site, while_blocked};

const POOL: PoolId = PoolId(1, 0);

/// Sends the stream's allocations to the pool and captures it, as a framework does.
fn begin(site: &Site, pool: PoolId, stream: StreamId) {
    site.allocator.begin_allocate_to_pool(site.id, pool, move |on| on == stream).unwrap();
    site.device().capture_begin(stream).unwrap();
}

#[track_caller]
fn end(site: &Site, pool: PoolId, stream: StreamId) -> CaptureId {
    let graph = match site.device().capture_end(stream) {
        Ok(graph) => graph,
        Err(error) => panic!("the capture was broken: {error}"),
    };
    site.allocator.end_allocate_to_pool(site.id, pool).unwrap();
    graph
}

/// Launches a graph, and waits until it has run.
#[track_caller]
fn launch(site: &Site, graph: CaptureId, stream: StreamId) {
    let launched = site.device().graph_launch(graph, stream);
    if let Err(error) = launched.and_then(|()| site.device().stream_synchronize(stream)) {
        panic!("the launch of a graph: {error}");
    }
}

/// A graph, and what it leaves in memory.
struct Captured {
    graph: CaptureId,
    pool: PoolId,
    /// What it used and freed during the capture.
    scratch: Vec<Address>,
    results: Vec<(Address, u8)>,
    /// Where it copies its input to.
    input: Address,
    echo: Address,
}

/// How long each result is.
const RESULT: Bytes = 300 * KIB;

/// Captures steps that paint scratch memory, copy a part of it to a result, and free it, and one
/// that passes an input on: the graph depends on all of its scratch memory.
fn capture(site: &Site, pool: PoolId, stream: StreamId) -> Captured {
    let input = site.allocate(RESULT, stream);
    begin(site, pool, stream);
    let (mut scratch, mut results) = (Vec::new(), Vec::new());
    for step in 0..4u8 {
        let value = 16 * pool.0 as u8 + step;
        let bytes = (3 + u64::from(step)) * MIB;
        let at = site.allocate(bytes, stream);
        site.paint(at, bytes, value, stream);
        let result = site.allocate(RESULT, stream);
        site.copy(result, at + bytes - RESULT, RESULT, stream);
        site.free(at);
        scratch.push(at);
        results.push((result, value));
    }
    let between = site.allocate(RESULT, stream);
    site.copy(between, input, RESULT, stream);
    let echo = site.allocate(RESULT, stream);
    site.copy(echo, between, RESULT, stream);
    site.free(between);
    scratch.push(between);
    Captured { graph: end(site, pool, stream), pool, scratch, results, input, echo }
}

impl Captured {
    /// Gives it an input, launches it, and looks at all that it leaves.
    fn replay(&self, site: &Site, stream: StreamId, round: u8) {
        site.paint(self.input, RESULT, round, stream);
        for &(at, value) in &self.results {
            site.paint(at, RESULT, !value, stream);
        }
        launch(site, self.graph, stream);
        let (pool, round_text) = (self.pool, format!("replay {round}"));
        for (step, &(at, value)) in self.results.iter().enumerate() {
            let what = format!("{round_text} of {pool:?}, result {step}");
            site.assert_painted((at, RESULT), value, stream, &what);
        }
        let what = format!("{round_text} of {pool:?}, what the input became");
        site.assert_painted((self.echo, RESULT), round, stream, &what);
    }

    fn forget(self, site: &Site) {
        site.device().graph_destroy(self.graph).unwrap();
        self.results.iter().for_each(|&(at, _)| site.free(at));
        [self.input, self.echo].into_iter().for_each(|at| site.free(at));
        site.allocator.release_pool(site.id, self.pool).unwrap();
    }
}

pub(crate) fn a_graph_in_a_pool_replays_rightly_while_others_allocate_and_empty_the_cache(
    site: &Site,
) {
    let streams = [site.stream(), site.stream()];
    among_others(site, 31..34, || {
        let captured = capture(site, POOL, streams[0]);
        // So little that others must take what is idle wherever they can.
        site.limit(120 * MIB);
        for round in 0..60 {
            captured.replay(site, streams[usize::from(round) % 2], round);
            if round % 8 == 3 {
                site.allocator.empty_cache().unwrap();
            }
        }
        captured.forget(site);
    });
    streams.into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn two_graphs_share_a_pool_and_its_memory(site: &Site) {
    share_a_pool(site);
    site.finish();
}

/// Captures two graphs in one pool, and replays them while others want its memory.
pub(super) fn share_a_pool(site: &Site) {
    let (stream, other) = (site.stream(), site.stream());
    let first = capture(site, POOL, stream);
    let once = site.reserved();
    let second = capture(site, POOL, stream);
    let reused = second.scratch.iter().filter(|at| first.scratch.contains(at)).count();
    let grown = site.reserved() - once;
    assert!(reused > 0, "{:x?} and {:x?}", first.scratch, second.scratch);
    assert!(grown < once / 2, "{grown} bytes more for the second graph than {once} for the first");
    assert_eq!(site.allocator.pool_use_count(site.id, POOL).unwrap(), 2);
    for round in 0..20 {
        first.replay(site, stream, round);
        second.replay(site, other, round + 100);
    }
    first.forget(site);
    assert_eq!(site.allocator.pool_use_count(site.id, POOL).unwrap(), 1);
    // Others take whatever they can have.
    site.limit(128 * MIB);
    let mut taken = Vec::new();
    while let Ok(at) = site.allocator.allocate(site.id, 4 * MIB, other) {
        site.paint(at, 4 * MIB, 0xee, other);
        taken.push(at);
    }
    for round in 0..20 {
        second.replay(site, stream, round + 50);
    }
    for &at in &taken {
        site.assert_painted((at, 4 * MIB), 0xee, other, "a block beside the graph's pool");
    }
    taken.into_iter().for_each(|at| site.free(at));
    second.forget(site);
    let all = site.allocate(126 * MIB, other);
    site.free(all);
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
}

pub(crate) fn a_stream_that_is_not_captured_allocates_beside_a_capture(site: &Site) {
    let (stream, other) = (site.stream(), site.stream());
    let use_at_once = |value: u8| {
        let at = site.allocate(5 * MIB, other);
        site.paint(at, 5 * MIB, value, other);
        site.assert_painted((at, 5 * MIB), value, other, "a block used during the capture");
        at
    };
    begin(site, POOL, stream);
    let before = use_at_once(1);
    let inside = site.allocate(5 * MIB, stream);
    site.paint(inside, 5 * MIB, 2, stream);
    let after = use_at_once(3);
    let elsewhere = thread::scope(|scope| scope.spawn(|| use_at_once(4)).join().unwrap());
    let only = HashSet::from([inside]);
    assert!(site.allocator.pool_holds_exactly(site.id, POOL, &only).unwrap());
    let graph = end(site, POOL, stream);
    let outside = site.allocate(5 * MIB, stream);
    assert!(site.allocator.pool_holds_exactly(site.id, POOL, &only).unwrap());
    for _ in 0..3 {
        site.paint(inside, 5 * MIB, 0, stream);
        launch(site, graph, stream);
        site.assert_painted((inside, 5 * MIB), 2, stream, "what the graph painted");
        for (at, value) in [(before, 1), (after, 3), (elsewhere, 4)] {
            site.assert_painted((at, 5 * MIB), value, other, "a block of the other stream");
        }
    }
    site.device().graph_destroy(graph).unwrap();
    [before, inside, after, elsewhere, outside].into_iter().for_each(|at| site.free(at));
    site.allocator.release_pool(site.id, POOL).unwrap();
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn memory_freed_in_a_capture_is_used_again_there_and_by_nobody_else(site: &Site) {
    const BYTES: Bytes = 24 * MIB;
    let (stream, other) = (site.stream(), site.stream());
    let results = [site.allocate(MIB, other), site.allocate(MIB, other)];
    begin(site, POOL, stream);
    let first = site.allocate(BYTES, stream);
    site.paint(first, BYTES, 1, stream);
    site.copy(results[0], first + BYTES - MIB, MIB, stream);
    site.free(first);
    let second = site.allocate(BYTES, stream);
    assert_eq!(first, second, "what was freed during the capture serves the capture");
    site.paint(second, BYTES, 2, stream);
    site.copy(results[1], second, MIB, stream);
    site.free(second);
    let graph = end(site, POOL, stream);
    site.limit(site.reserved() + 2 * MIB);
    for on in [stream, other] {
        // It is free, but the graph will use it.
        let refused = site.allocator.allocate(site.id, BYTES, on).unwrap_err();
        assert!(refused.is_out_of_memory(), "{refused}");
    }
    site.allocator.empty_cache().unwrap();
    for _ in 0..10 {
        results.iter().for_each(|&at| site.paint(at, MIB, 0xff, other));
        site.device().stream_synchronize(other).unwrap();
        launch(site, graph, stream);
        site.assert_painted((results[0], MIB), 1, stream, "copied before the free");
        site.assert_painted((results[1], MIB), 2, stream, "copied after it");
    }
    site.device().graph_destroy(graph).unwrap();
    site.allocator.release_pool(site.id, POOL).unwrap();
    let block = site.allocate(BYTES, other);
    for at in [results[0], results[1], block] {
        site.free(at);
    }
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn a_failed_capture_leaves_memory_stream_and_pool_as_good_as_before(site: &Site) {
    const BYTES: Bytes = 24 * MIB;
    let (stream, other) = (site.stream(), site.stream());
    begin(site, POOL, stream);
    let first = site.allocate(BYTES, stream);
    site.paint(first, BYTES, 1, stream);
    let error = site.device().stream_synchronize(stream).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::NotPermitted, "{error}");
    println!("as wanted: {error}");
    // The program need not know yet.
    let second = site.allocate(BYTES, stream);
    let beside = site.allocate(BYTES, other);
    site.allocator.process_events().unwrap();
    site.allocator.empty_cache().unwrap();
    let error = site.device().capture_end(stream).unwrap_err();
    println!("as wanted: {error}");
    site.allocator.end_allocate_to_pool(site.id, POOL).unwrap();
    for (at, value, on) in [(first, 3, stream), (second, 4, stream), (beside, 5, other)] {
        site.paint(at, BYTES, value, on);
        site.assert_painted((at, BYTES), value, on, "a block that outlives the failed capture");
        site.free(at);
    }
    site.allocator.is_valid().unwrap();
    site.allocator.release_pool(site.id, POOL).unwrap();
    site.allocator.empty_cache().unwrap();
    assert_eq!(site.reserved(), 0, "what the failed capture left");
    let again = capture(site, POOL, stream);
    (0..5).for_each(|round| again.replay(site, other, round));
    again.forget(site);
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn a_request_that_does_not_fit_breaks_no_capture(site: &Site) {
    const BYTES: Bytes = 24 * MIB;
    let (stream, other) = (site.stream(), site.stream());
    // What waits for a stream cannot be waited for during the capture.
    let waiting = site.allocate(8 * MIB, other);
    site.allocator.record_stream(waiting, stream).unwrap();
    site.limit(64 * MIB);
    begin(site, POOL, stream);
    let inside = site.allocate(BYTES, stream);
    site.free(waiting);
    for on in [stream, other] {
        let refused = site.allocator.allocate(site.id, 60 * MIB, on).unwrap_err();
        assert!(refused.is_out_of_memory(), "{refused}");
        println!("as wanted: {refused}");
    }
    site.paint(inside, BYTES, 9, stream);
    let graph = end(site, POOL, stream);
    site.allocator.process_events().unwrap();
    assert_eq!(site.active(), 1, "the free that waited has come to pass");
    for _ in 0..3 {
        site.paint(inside, BYTES, 0, stream);
        launch(site, graph, stream);
        site.assert_painted((inside, BYTES), 9, stream, "what the graph painted");
    }
    site.device().graph_destroy(graph).unwrap();
    site.free(inside);
    site.allocator.release_pool(site.id, POOL).unwrap();
    let all = site.allocate(62 * MIB, other);
    site.free(all);
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn memory_of_a_pool_comes_back_when_its_graph_has_gone_and_it_is_released(site: &Site) {
    const BYTES: Bytes = 64 * MIB;
    let (stream, other) = (site.stream(), site.stream());
    let result = site.allocate(MIB, other);
    let (before, reserved) = (site.free_memory(), site.reserved());
    begin(site, POOL, stream);
    let scratch = site.allocate(BYTES, stream);
    site.paint(scratch, BYTES, 7, stream);
    site.copy(result, scratch + BYTES - MIB, MIB, stream);
    site.free(scratch);
    let graph = end(site, POOL, stream);
    let assert_held = |when: &str| {
        site.allocator.empty_cache().unwrap();
        site.allocator.empty_pool(POOL).unwrap();
        assert_eq!(site.reserved(), reserved + BYTES, "bytes reserved {when}");
        let free = site.free_memory();
        assert!(free + BYTES <= before + 8 * MIB, "{free} bytes free of {before} {when}");
    };
    assert_held("while the graph is there");
    for _ in 0..5 {
        site.paint(result, MIB, 0, other);
        site.device().stream_synchronize(other).unwrap();
        launch(site, graph, other);
        site.assert_painted((result, MIB), 7, other, "what the graph copied");
        assert_held("between the launches");
    }
    site.device().graph_destroy(graph).unwrap();
    assert_held("while the pool has a user");
    site.allocator.release_pool(site.id, POOL).unwrap();
    site.allocator.empty_cache().unwrap();
    assert_eq!(site.reserved(), reserved, "bytes reserved after the pool was released");
    site.await_free(before, "after the pool was released");
    site.free(result);
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn a_graph_that_still_runs_keeps_the_memory_of_its_released_pool(site: &Site) {
    const BYTES: Bytes = 40 * MIB;
    let [stream, unknown, taker] = [(); 3].map(|()| site.stream());
    site.limit(64 * MIB);
    begin(site, POOL, stream);
    let scratch = site.allocate(BYTES, stream);
    site.paint(scratch, BYTES, 5, stream);
    site.free(scratch);
    let graph = end(site, POOL, stream);
    let opened = AtomicBool::new(false);
    while_blocked(site.device(), unknown, |open| {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(200));
                opened.store(true, Ordering::SeqCst);
                open.send(()).unwrap();
            });
            site.device().graph_launch(graph, unknown).unwrap();
            site.allocator.release_pool(site.id, POOL).unwrap();
            // No stream that the allocator knows has anything to wait for.
            let block = site.allocate(BYTES, taker);
            let waited = opened.load(Ordering::SeqCst);
            site.paint(block, BYTES, 6, taker);
            site.device().stream_synchronize(unknown).unwrap();
            site.assert_painted((block, BYTES), 6, taker, "memory that the graph had");
            assert!(waited, "the graph had not run when its memory was handed on");
            site.free(block);
            site.device().graph_destroy(graph).unwrap();
        });
    });
    [stream, unknown, taker].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

pub(crate) fn graphs_take_turns_in_a_pool_that_goes_back_to_checkpoints(site: &Site) {
    let (stream, other) = (site.stream(), site.stream());
    let save = || site.allocator.checkpoint_pool(site.id, POOL).unwrap();
    let go_back = |checkpoint: &Checkpoint, what: &str| {
        let restored = site.allocator.restore_pool(site.id, checkpoint);
        let delta = restored.unwrap_or_else(|error| panic!("{what}: {error}"));
        let live: HashSet<Address> = delta.allocated.iter().map(|block| block.address).collect();
        assert!(site.allocator.pool_holds_exactly(site.id, POOL, &live).unwrap(), "{what}");
        live
    };
    // A graph, and two that may follow it, each in what the other one has of the pool.
    let first = capture(site, POOL, stream);
    let after_first = save();
    let second = capture(site, POOL, stream);
    let after_second = save();
    let live = go_back(&after_first, "after the first");
    let mut results: HashSet<Address> = first.results.iter().map(|result| result.0).collect();
    results.insert(first.echo);
    assert_eq!(live, results);
    let reserved = site.reserved();
    let third = capture(site, POOL, stream);
    let after_third = save();
    assert_eq!(site.reserved(), reserved, "the third graph has the memory of the second");
    assert_eq!(third.results, second.results);
    site.limit(reserved + 24 * MIB);
    let mut taken = Vec::new();
    while let Ok(at) = site.allocator.allocate(site.id, 4 * MIB, other) {
        site.paint(at, 4 * MIB, 0xee, other);
        taken.push(at);
    }
    for round in 0..20 {
        let (next, saved) =
            if round % 2 == 0 { (&second, &after_second) } else { (&third, &after_third) };
        go_back(&after_first, "before a graph");
        first.replay(site, stream, round);
        let live = go_back(saved, "after a graph");
        assert!(next.results.iter().all(|result| live.contains(&result.0)));
        next.replay(site, other, round + 100);
        for (step, &(at, value)) in first.results.iter().enumerate() {
            let what = format!("result {step} of the first graph in round {round}");
            site.assert_painted((at, RESULT), value, stream, &what);
        }
        site.allocator.empty_cache().unwrap();
    }
    for &at in &taken {
        site.assert_painted((at, 4 * MIB), 0xee, other, "a block beside the pool");
    }
    taken.into_iter().for_each(|at| site.free(at));
    // Its results have ended with the last step back.
    go_back(&after_second, "at the end");
    site.device().graph_destroy(third.graph).unwrap();
    site.free(third.input);
    site.allocator.release_pool(site.id, POOL).unwrap();
    [first, second].into_iter().for_each(|captured| captured.forget(site));
    assert!(site.allocator.restore_pool(site.id, &after_first).is_err(), "the pool has ended");
    [stream, other].into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}

/// Hands the names of all scenarios about graphs to a macro.
macro_rules! graph_scenarios {
    ($apply:ident) => {
        $apply! {
            a_graph_in_a_pool_replays_rightly_while_others_allocate_and_empty_the_cache,
            two_graphs_share_a_pool_and_its_memory,
            a_stream_that_is_not_captured_allocates_beside_a_capture,
            memory_freed_in_a_capture_is_used_again_there_and_by_nobody_else,
            a_failed_capture_leaves_memory_stream_and_pool_as_good_as_before,
            a_request_that_does_not_fit_breaks_no_capture,
            memory_of_a_pool_comes_back_when_its_graph_has_gone_and_it_is_released,
            a_graph_that_still_runs_keeps_the_memory_of_its_released_pool,
            graphs_take_turns_in_a_pool_that_goes_back_to_checkpoints,
        }
    };
}
pub(crate) use graph_scenarios;
