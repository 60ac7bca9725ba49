//! Private pools: who allocates there, what stays in place while one is in use, and what becomes of
//! it afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/segment_source.rs"]
mod segment_source;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{A, B, C, GPU, Rig, capacity, config, plain};
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{DriverCall, Error, Result};
use plugalloc::units::{Address, DeviceId, GIB, MIB, PoolId, StreamId};
use plugalloc::{Config, SegmentSource};
use segment_source::Counted;

const GRAPHS: PoolId = PoolId(1, 0);
const OWN: PoolId = PoolId(0, 1);
const OTHER: PoolId = PoolId(0, 2);

impl Rig {
    /// Opens a pool for everything on these streams.
    fn begin(&self, pool: PoolId, streams: &'static [StreamId]) {
        let filter = move |stream| streams.contains(&stream);
        self.allocator.begin_allocate_to_pool(GPU, pool, filter).unwrap();
    }

    fn end(&self, pool: PoolId) {
        self.allocator.end_allocate_to_pool(GPU, pool).unwrap();
    }

    fn release(&self, pool: PoolId) {
        self.allocator.release_pool(GPU, pool).unwrap();
    }

    fn uses(&self, pool: PoolId) -> u32 {
        self.allocator.pool_use_count(GPU, pool).unwrap()
    }

    fn holds(&self, pool: PoolId, expected: &[Address]) -> bool {
        let expected: HashSet<Address> = expected.iter().copied().collect();
        self.allocator.pool_holds_exactly(GPU, pool, &expected).unwrap()
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { argument: "pool", .. }), "{error}");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn allocations_go_where_the_filters_say_the_newest_first() {
    let rig = Rig::of(GIB);
    rig.begin(OWN, &[A, B]);
    rig.begin(OTHER, &[B]);
    let [on_a, on_b, on_c] = [A, B, C].map(|stream| rig.allocate(MIB, stream));
    assert!(rig.holds(OWN, &[on_a]));
    assert!(rig.holds(OTHER, &[on_b]));
    rig.end(OTHER);
    let again = rig.allocate(MIB, B);
    assert!(rig.holds(OWN, &[on_a, again]));
    assert!(!rig.holds(OWN, &[on_a]));
    assert!(!rig.holds(OWN, &[on_a, again, on_c]));
    rig.allocator.record_stream(again, A).unwrap();
    assert!(rig.holds(OWN, &[on_a, again]), "whoever uses it");
    rig.end(OWN);
    let outside = rig.allocate(MIB, A);
    assert!(rig.holds(OWN, &[on_a, again]), "{outside:#x} is outside");
    [on_a, on_b, on_c, again, outside].iter().for_each(|&block| rig.free(block));
    assert!(rig.holds(OWN, &[]) && rig.holds(OTHER, &[]));
    rig.release(OWN);
    rig.release(OTHER);
    rig.finish();
}

#[test]
fn uses_are_counted() {
    let rig = Rig::of(GIB);
    assert_eq!(rig.uses(OWN), 0);
    rig.allocator.create_or_incref_pool(GPU, OWN, None).unwrap();
    rig.begin(OWN, &[A]);
    assert_eq!(rig.uses(OWN), 2);
    rig.end(OWN);
    assert_eq!(rig.uses(OWN), 2, "the end of allocating is not the end of a use");
    rig.release(OWN);
    rig.release(OWN);
    assert_eq!(rig.uses(OWN), 0);
    rig.finish();
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let rig = Rig::of(GIB);
    let allocator = &rig.allocator;
    assert_refused(allocator.release_pool(GPU, OWN), "could not find a pool");
    assert_refused(allocator.end_allocate_to_pool(GPU, OWN), "to which allocations go");
    assert_refused(allocator.set_use_on_oom(GPU, OWN, true), "could not find a pool");
    allocator.set_use_on_oom(GPU, OWN, false).unwrap();
    assert_refused(allocator.set_no_split(GPU, OWN), "could not find a pool");
    assert_refused(allocator.pool_holds_exactly(GPU, OWN, &HashSet::new()), "could not find");
    assert_refused(allocator.create_or_incref_pool(GPU, PoolId::DEFAULT, None), "default pool");
    rig.begin(OWN, &[A]);
    assert_refused(allocator.begin_allocate_to_pool(GPU, OWN, |_| true), "already");
    assert_eq!(rig.uses(OWN), 1);
    assert_refused(allocator.release_pool(GPU, OWN), "do not go any more");
    rig.end(OWN);
    rig.release(OWN);
    let wrong = DeviceId(3);
    assert!(matches!(allocator.release_pool(wrong, OWN), Err(Error::InvalidDevice { .. })));
    rig.finish();
}

#[test]
fn idle_memory_of_a_pool_in_use_serves_nobody_else_and_of_an_ended_one_everybody() {
    let rig = Rig::of(64 * MIB);
    rig.begin(OWN, &[A]);
    let block = rig.allocate(40 * MIB, A);
    rig.free(block);
    rig.end(OWN);
    for stream in [A, B] {
        let report = rig.out_of_memory(40 * MIB, stream);
        assert!(report.hint.contains("private pools"), "{}", report.hint);
    }
    rig.allocator.empty_cache().unwrap();
    rig.allocator.empty_pool(OWN).unwrap();
    assert_eq!(rig.ledger().used, 40 * MIB);
    rig.begin(OWN, &[A]);
    assert_eq!(rig.allocate(40 * MIB, A), block, "the pool itself has it");
    rig.end(OWN);
    rig.free(block);
    rig.release(OWN);
    rig.release(OWN);
    let other = rig.allocate(60 * MIB, B);
    rig.free(other);
    rig.finish();
}

#[test]
fn a_pool_does_not_move_its_own_idle_memory() {
    let rig = Rig::of(64 * MIB);
    rig.begin(OWN, &[A]);
    let blocks = [0; 4].map(|_| rig.allocate(8 * MIB, A));
    // Every second one is idle: 16 MiB side by side can be had only by moving them.
    rig.free(blocks[0]);
    rig.free(blocks[2]);
    let before = rig.ledger().used;
    let block = rig.allocate(16 * MIB, A);
    assert_eq!(rig.ledger().used, before + 16 * MIB, "new memory");
    assert_eq!(
        [rig.allocate(8 * MIB, A), rig.allocate(8 * MIB, A)].map(|b| blocks.contains(&b)),
        [true; 2]
    );
    rig.end(OWN);
    [blocks[0], blocks[1], blocks[2], blocks[3], block].iter().for_each(|&block| rig.free(block));
    rig.release(OWN);
    rig.finish();
}

#[test]
fn an_ended_pool_is_emptied_by_its_id() {
    let rig = Rig::of(GIB);
    for (pool, stream) in [(OWN, &[A]), (OTHER, &[B])] {
        rig.begin(pool, stream);
        let block = rig.allocate(20 * MIB, stream[0]);
        rig.free(block);
        rig.end(pool);
    }
    rig.release(OTHER);
    rig.allocator.empty_pool(OWN).unwrap();
    assert_eq!(rig.ledger().used, 40 * MIB, "one is in use, the other was not meant");
    rig.allocator.empty_pool(OTHER).unwrap();
    assert_eq!(rig.ledger().used, 20 * MIB);
    rig.release(OWN);
    rig.finish();
}

#[test]
fn what_is_live_outlives_its_pool() {
    let rig = Rig::of(GIB);
    rig.begin(GRAPHS, &[A]);
    let block = rig.allocate(4 * MIB, A);
    rig.fill(block, 0x77, 4 * MIB, A);
    rig.end(GRAPHS);
    rig.release(GRAPHS);
    rig.allocator.empty_cache().unwrap();
    rig.assert_filled(block, 0x77, 4 * MIB);
    rig.begin(GRAPHS, &[A]);
    assert!(rig.holds(GRAPHS, &[]), "a pool of the same number is another pool");
    rig.end(GRAPHS);
    rig.release(GRAPHS);
    rig.free(block);
    rig.finish();
}

#[test]
fn pools_that_come_and_go_use_the_same_heaps_and_memory() {
    let rig = Rig::of(GIB);
    let mut first = None;
    for round in 1..100 {
        let pool = PoolId(round, 0);
        rig.begin(pool, &[A]);
        let block = rig.allocate(8 * MIB, A);
        assert_eq!(*first.get_or_insert(block), block);
        rig.free(block);
        rig.end(pool);
        rig.release(pool);
    }
    assert_eq!(rig.ledger().used, 8 * MIB);
    assert_eq!(rig.ledger().calls(DriverCall::Reserve), 1);
    rig.finish();
}

#[test]
fn a_request_that_would_fail_takes_what_a_pool_allows() {
    for options in [capacity(64 * MIB), plain(64 * MIB)] {
        let rig = Rig::new(options, Config::default());
        rig.begin(OWN, &[A]);
        let idle = rig.allocate(40 * MIB, A);
        rig.free(idle);
        rig.end(OWN);
        rig.out_of_memory(30 * MIB, A);
        rig.allocator.set_use_on_oom(GPU, OWN, true).unwrap();
        rig.out_of_memory(30 * MIB, B);
        let block = rig.allocate(30 * MIB, A);
        assert!(rig.holds(OWN, &[block]));
        rig.out_of_memory(50 * MIB, A);
        rig.allocator.set_use_on_oom(GPU, OWN, false).unwrap();
        rig.free(block);
        rig.out_of_memory(30 * MIB, A);
        rig.release(OWN);
        rig.finish();
    }
}

#[test]
fn a_request_that_would_fail_waits_for_what_a_pool_that_allows_it_gets_back() {
    let options = SimOptions { wait_for_release: true, ..capacity(64 * MIB) };
    let rig = Rig::new(options, Config::default());
    rig.begin(OWN, &[A]);
    let waiting = rig.allocate(40 * MIB, A);
    rig.end(OWN);
    rig.allocator.set_use_on_oom(GPU, OWN, true).unwrap();
    rig.device().hold(B).unwrap();
    rig.allocator.record_stream(waiting, B).unwrap();
    rig.fill(waiting, 1, MIB, B);
    rig.free(waiting);
    let block = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The request waits for B by then, as a rule.
            std::thread::sleep(Duration::from_millis(100));
            rig.device().resume(B).unwrap();
        });
        rig.allocate(30 * MIB, A)
    });
    assert!(rig.holds(OWN, &[block]));
    rig.free(block);
    rig.release(OWN);
    rig.finish();
}

/// The pool has not heard of the new stream then.
#[test]
fn a_pool_lends_to_a_stream_whose_name_came_back() {
    let rig = Rig::of(64 * MIB);
    rig.begin(OWN, &[A]);
    let idle = rig.allocate(40 * MIB, A);
    rig.free(idle);
    rig.end(OWN);
    rig.allocator.set_use_on_oom(GPU, OWN, true).unwrap();
    rig.allocator.retire_stream(GPU, A).unwrap();
    let block = rig.allocate(30 * MIB, A);
    assert!(rig.holds(OWN, &[block]));
    rig.free(block);
    rig.release(OWN);
    rig.finish();
}

#[test]
fn without_splitting_each_request_has_a_segment() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, Config::default());
        rig.allocator.create_or_incref_pool(GPU, OWN, None).unwrap();
        rig.allocator.set_no_split(GPU, OWN).unwrap();
        rig.begin(OWN, &[A]);
        let sizes = [1000, 1000, 3 * MIB, 12 * MIB];
        let blocks = sizes.map(|bytes| rig.allocate(bytes, A));
        for (block, segment) in blocks.iter().zip([2, 2, 20, 12]) {
            assert_eq!(rig.allocator.base_allocation(*block).unwrap(), (*block, segment * MIB));
        }
        assert_eq!(rig.statistics().requested_bytes.all.current, 2000 + 15 * MIB as i64);
        // One that was freed serves what fits, as a whole.
        rig.free(blocks[3]);
        let smaller = rig.allocate(11 * MIB, A);
        assert_eq!(smaller, blocks[3]);
        assert_eq!(rig.allocator.block(smaller).unwrap().bytes, 12 * MIB);
        [blocks[0], blocks[1], blocks[2], smaller].iter().for_each(|&block| rig.free(block));
        rig.end(OWN);
        rig.allocator.empty_cache().unwrap();
        assert_eq!(rig.ledger().used, 36 * MIB);
        rig.release(OWN);
        rig.release(OWN);
        rig.finish();
    }
}

#[test]
fn a_pool_works_without_virtual_memory() {
    let rig = Rig::new(plain(64 * MIB), Config::default());
    rig.begin(OWN, &[A]);
    let block = rig.allocate(30 * MIB, A);
    rig.free(block);
    rig.end(OWN);
    rig.allocator.empty_cache().unwrap();
    rig.out_of_memory(40 * MIB, A);
    rig.release(OWN);
    let block = rig.allocate(40 * MIB, A);
    rig.free(block);
    rig.finish();
}

#[test]
fn a_pool_takes_its_segments_from_where_it_was_told_to() {
    let rig = Rig::of(GIB);
    let source = Counted::new(rig.device(), 32 * MIB);
    let given: Arc<dyn SegmentSource> = Arc::clone(&source) as Arc<dyn SegmentSource>;
    rig.allocator.create_or_incref_pool(GPU, OWN, Some(Arc::clone(&given))).unwrap();
    let again = rig.allocator.create_or_incref_pool(GPU, OWN, Some(given));
    assert_refused(again, "a new pool");
    rig.begin(OWN, &[A]);
    let blocks = [0; 3].map(|_| rig.allocate(3 * MIB, A));
    assert_eq!(source.live.lock().as_slice(), [(blocks[0], 20 * MIB)], "one segment, divided");
    assert_eq!(rig.ledger().calls(DriverCall::Create), 0);
    assert_eq!(rig.statistics().reserved_bytes.all.current, 20 * MIB as i64);
    let report = rig.out_of_memory(40 * MIB, A);
    assert_eq!(report.allocated, 9 * MIB);
    source.shift.store(4096, Ordering::Relaxed);
    let error = rig.try_allocate(24 * MIB, A).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { operation, .. } if operation.contains("2 MiB")));
    source.shift.store(0, Ordering::Relaxed);
    assert_eq!(*source.streams.lock(), [A].into());
    blocks.iter().for_each(|&block| rig.free(block));
    rig.end(OWN);
    rig.allocator.empty_cache().unwrap();
    assert_eq!(source.live.lock().len(), 1, "in use");
    rig.release(OWN);
    rig.release(OWN);
    rig.allocator.empty_cache().unwrap();
    assert!(source.live.lock().is_empty());
    assert_eq!(Arc::strong_count(&source), 1, "kept no longer");
    rig.finish();
}

#[test]
fn caching_off_goes_past_the_pools() {
    let rig = Rig::new(capacity(GIB), config(|c| c.caching = false));
    rig.begin(OWN, &[A]);
    let block = rig.allocate(MIB, A);
    assert!(rig.holds(OWN, &[]));
    rig.free(block);
    rig.end(OWN);
    rig.release(OWN);
    rig.finish();
}

#[test]
fn threads_allocate_in_and_outside_of_a_pool_at_once() {
    let rig = Rig::of(GIB);
    rig.begin(OWN, &[A, B]);
    std::thread::scope(|scope| {
        for stream in [A, B, C, A] {
            let rig = &rig;
            scope.spawn(move || {
                for round in 0..300 {
                    let block = rig.allocate(1 + round * 10_000, stream);
                    rig.free(block);
                }
            });
        }
    });
    assert!(rig.holds(OWN, &[]));
    rig.end(OWN);
    rig.release(OWN);
    rig.finish();
}

/// A pool that does not split leaves its heap to one that does.
#[test]
fn a_pool_splits_blocks_whatever_pool_had_its_heap_before() {
    for virtual_memory in [true, false] {
        for emptied in [true, false] {
            let options = SimOptions { virtual_memory, ..capacity(256 * MIB) };
            let rig = Rig::new(options, Config::default());
            rig.begin(OWN, &[A]);
            rig.allocator.set_no_split(GPU, OWN).unwrap();
            let block = rig.allocate(30 * MIB, A);
            rig.free(block);
            rig.end(OWN);
            rig.release(OWN);
            match emptied {
                true => rig.allocator.empty_cache().unwrap(),
                // That of another pool gives nothing of this one back.
                false => rig.allocator.empty_pool(GRAPHS).unwrap(),
            }
            rig.begin(OTHER, &[A]);
            for bytes in [30 * MIB, 2 * MIB] {
                let block = rig.allocate(bytes, A);
                assert_eq!(rig.allocator.block(block).unwrap().bytes, bytes);
                rig.free(block);
            }
            rig.end(OTHER);
            rig.release(OTHER);
            rig.finish();
        }
    }
}

#[test]
fn segments_of_a_source_go_back_there_whatever_pool_comes_next() {
    let rig = Rig::of(GIB);
    let source = Counted::new(rig.device(), 32 * MIB);
    let as_source: Arc<dyn SegmentSource> = source.clone();
    rig.allocator.create_or_incref_pool(GPU, OWN, Some(as_source)).unwrap();
    rig.begin(OWN, &[A]);
    let block = rig.allocate(5 * MIB, A);
    rig.free(block);
    rig.end(OWN);
    rig.release(OWN);
    rig.release(OWN);
    // That of another pool gives nothing of this one back.
    rig.allocator.empty_pool(GRAPHS).unwrap();
    rig.begin(OTHER, &[A]);
    let block = rig.allocate(5 * MIB, A);
    rig.free(block);
    rig.end(OTHER);
    rig.release(OTHER);
    rig.allocator.empty_cache().unwrap();
    assert!(source.live.lock().is_empty());
    rig.finish();
}

#[test]
fn pools_that_come_and_go_do_not_each_leave_a_heap_behind() {
    let rig = Rig::of(GIB);
    for number in 1..1000 {
        let pool = PoolId(0, number);
        rig.begin(pool, &[A]);
        let block = rig.allocate(5 * MIB, A);
        rig.free(block);
        rig.end(pool);
        rig.release(pool);
    }
    let shown = format!("{:?}", rig.allocator);
    let heaps = shown.split("streams: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    assert!(heaps.parse::<u32>().unwrap() < 100, "{heaps} heaps");
    rig.finish();
}

/// As in PyTorch, whose pools are emptied after they were released.
#[test]
fn a_pool_that_is_not_there_has_nothing() {
    let rig = Rig::of(64 * MIB);
    rig.free(rig.allocate(MIB, A));
    let used = rig.ledger().used;
    rig.allocator.empty_pool(PoolId(77, 7)).unwrap();
    assert!(rig.allocator.snapshot(Some(PoolId(77, 7)), false).unwrap().segments.is_empty());
    assert_eq!(rig.ledger().used, used, "nothing of others went");
    rig.finish();
}

/// A segment is made of what the device has: a handle that nobody uses goes back for it, also where
/// nothing is taken from other streams.
#[test]
fn a_pool_of_whole_segments_gets_what_a_failed_growth_left() {
    let rig = Rig::new(capacity(2 * MIB), config(|config| config.steal = false));
    let large = rig.allocate(2 * MIB, A);
    rig.free(large);
    // The handle is on its way to a small request, and stays where it is.
    rig.device().fail_nth(DriverCall::Map, 1);
    rig.try_allocate(1000, A).unwrap_err();
    rig.device().clear_faults();
    rig.allocator.create_or_incref_pool(GPU, OWN, None).unwrap();
    rig.allocator.set_no_split(GPU, OWN).unwrap();
    rig.begin(OWN, &[A]);
    let small = rig.allocate(1000, A);
    rig.free(small);
    rig.end(OWN);
    rig.release(OWN);
    rig.release(OWN);
    rig.finish();
}

/// What was lent keeps a handle in use; nothing lives in it any more.
#[test]
fn a_pool_of_whole_segments_gets_what_was_lent() {
    let rig = Rig::of(2 * MIB);
    let large = rig.allocate(MIB + MIB / 2, A);
    let small = rig.allocate(1000, B);
    assert_eq!(rig.ledger().calls(DriverCall::Map), 2, "the large block's handle, and its rest");
    rig.free(small);
    rig.free(large);
    rig.allocator.create_or_incref_pool(GPU, OWN, None).unwrap();
    rig.allocator.set_no_split(GPU, OWN).unwrap();
    rig.begin(OWN, &[A]);
    let own = rig.allocate(1000, A);
    rig.free(own);
    rig.end(OWN);
    rig.release(OWN);
    rig.release(OWN);
    rig.finish();
}
