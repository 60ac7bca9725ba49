//! Checkpoints of private pools whose memory comes from a source of the program's own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/pool_rig.rs"]
mod pool_rig;
#[path = "common/segment_source.rs"]
mod segment_source;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{A, B, GPU, Rig, capacity, plain};
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{CheckpointFault, Error};
use plugalloc::units::{Bytes, GIB, MIB, PoolId};
use plugalloc::{Checkpoint, Config, SegmentSource};
use pool_rig::{POOL, addresses, sorted};
use segment_source::Counted;

/// A pool on two streams, for graphs or not, over a source that has segments up to this length.
fn open(options: SimOptions, pool: PoolId, longest: Bytes) -> (Rig, Arc<Counted>) {
    let rig = Rig::new(options, Config::default());
    let source = Counted::new(rig.device(), longest);
    give(&rig, pool, &source);
    (rig, source)
}

fn give(rig: &Rig, pool: PoolId, source: &Arc<Counted>) {
    let given = Arc::clone(source) as Arc<dyn SegmentSource>;
    rig.allocator.create_or_incref_pool(GPU, pool, Some(given)).unwrap();
    rig.begin(pool, &[A, B]);
}

/// Ends the pool, whose source has everything back after that.
fn end(rig: Rig, pool: PoolId, source: &Arc<Counted>) {
    rig.end(pool);
    rig.allocator.release_pool(GPU, pool).unwrap();
    rig.allocator.empty_cache().unwrap();
    assert!(source.live.lock().is_empty());
    rig.finish();
}

#[track_caller]
fn fault(rig: &Rig, checkpoint: &Checkpoint) -> CheckpointFault {
    let seen = || format!("{:?}", rig.allocator.snapshot(None, false).unwrap().segments);
    let before = seen();
    let result = rig.allocator.restore_pool(GPU, checkpoint);
    assert_eq!(seen(), before, "nothing has changed");
    rig.allocator.is_valid().unwrap();
    match result {
        Err(Error::Checkpoint(error)) => error.fault,
        other => panic!("not an error about a checkpoint: {other:?}"),
    }
}

#[test]
fn what_was_live_in_memory_of_a_source_is_live_again_and_the_source_is_not_asked() {
    for (options, pool) in [capacity(GIB), plain(GIB)].into_iter().zip([POOL, PoolId(0, 7)]) {
        let (rig, source) = open(options, pool, 64 * MIB);
        // In segments that are shared, and in one of its own.
        let kept = rig.allocate(3 * MIB, A);
        let gap = rig.allocate(2 * MIB, A);
        let ended = [500, 100_000, 5 * MIB, 30 * MIB].map(|bytes| rig.allocate(bytes, A));
        let on_b = rig.allocate(2 * MIB, B);
        let before = sorted([kept, on_b].into_iter().chain(ended));
        rig.free(gap);
        let checkpoint = rig.allocator.checkpoint_pool(GPU, pool).unwrap();
        ended.iter().chain(&[on_b]).for_each(|&at| rig.free(at));
        // In other pieces of the same memory, and in more of it.
        let later = [9 * MIB, 700, 20 * MIB, 50 * MIB].map(|bytes| rig.allocate(bytes, A));
        rig.fill(kept, 7, 3 * MIB, A);
        let segments = source.live.lock().clone();
        let calls = source.calls.load(Ordering::Relaxed);
        rig.allocator.empty_cache().unwrap();
        rig.allocator.empty_pool(pool).unwrap();
        let delta = rig.allocator.restore_pool(GPU, &checkpoint).unwrap();
        assert_eq!(sorted(delta.freed), sorted(later.into_iter().chain([kept])));
        assert_eq!(addresses(&delta.allocated), before);
        assert!(rig.holds(pool, &before));
        assert_eq!(
            (&*source.live.lock(), source.calls.load(Ordering::Relaxed)),
            (&segments, calls)
        );
        rig.assert_filled(kept, 7, 3 * MIB);
        for (value, block) in (10..).zip(&delta.allocated) {
            rig.fill(block.address, value, block.requested, block.stream);
        }
        for (value, block) in (10..).zip(&delta.allocated) {
            rig.assert_filled(block.address, value, block.requested);
        }
        rig.allocator.is_valid().unwrap();
        before.iter().for_each(|&at| rig.free(at));
        end(rig, pool, &source);
    }
}

#[test]
fn a_source_that_has_no_more_is_in_nobodys_way() {
    let (rig, source) = open(capacity(GIB), POOL, 64 * MIB);
    let blocks = [30 * MIB, 40 * MIB].map(|bytes| rig.allocate(bytes, A));
    let checkpoint = rig.save();
    blocks.iter().for_each(|&at| rig.free(at));
    source.longest.store(0, Ordering::Relaxed);
    let later = rig.allocate(40 * MIB, A);
    rig.out_of_memory(40 * MIB, A);
    assert_eq!(later, blocks[1]);
    let delta = rig.allocator.restore_pool(GPU, &checkpoint).unwrap();
    assert_eq!((delta.freed, addresses(&delta.allocated)), (vec![later], sorted(blocks)));
    blocks.iter().for_each(|&at| rig.free(at));
    end(rig, POOL, &source);
}

#[test]
fn memory_that_went_back_to_the_source_is_gone_with_its_pool() {
    let (rig, source) = open(plain(GIB), POOL, 64 * MIB);
    let block = rig.allocate(30 * MIB, A);
    let checkpoint = rig.save();
    rig.free(block);
    rig.end(POOL);
    rig.allocator.release_pool(GPU, POOL).unwrap();
    assert_eq!(fault(&rig, &checkpoint), CheckpointFault::PoolEnded);
    rig.allocator.empty_cache().unwrap();
    assert!(source.live.lock().is_empty());
    assert_eq!(fault(&rig, &checkpoint), CheckpointFault::PoolEnded);
    // Also where another pool of that id has a segment of the same source there.
    give(&rig, POOL, &source);
    let again = rig.allocate(30 * MIB, A);
    assert_eq!(fault(&rig, &checkpoint), CheckpointFault::PoolEnded);
    rig.free(again);
    end(rig, POOL, &source);
}

#[test]
fn blocks_that_are_whole_segments_of_a_source_come_back_whole() {
    let (rig, source) = open(capacity(GIB), POOL, 64 * MIB);
    rig.allocator.set_no_split(GPU, POOL).unwrap();
    let blocks = [1000, 3 * MIB, 30 * MIB].map(|bytes| rig.allocate(bytes, A));
    let infos = blocks.map(|at| rig.allocator.block(at).unwrap());
    let checkpoint = rig.save();
    blocks.iter().for_each(|&at| rig.free(at));
    // The long one serves what is shorter; a new one comes beside it.
    let later = [25 * MIB, 30 * MIB, 700].map(|bytes| rig.allocate(bytes, A));
    let delta = rig.allocator.restore_pool(GPU, &checkpoint).unwrap();
    assert_eq!(sorted(delta.freed), sorted(later));
    assert_eq!(blocks.map(|at| rig.allocator.block(at).unwrap()), infos);
    rig.allocator.is_valid().unwrap();
    blocks.iter().for_each(|&at| rig.free(at));
    end(rig, POOL, &source);
}

#[test]
fn blocks_come_back_out_of_segments_that_are_not_split_any_more() {
    let (rig, source) = open(capacity(GIB), POOL, 64 * MIB);
    let blocks = [700, 3 * MIB, 5 * MIB, 2 * MIB].map(|bytes| rig.allocate(bytes, A));
    let infos = blocks.map(|at| rig.allocator.block(at).unwrap());
    let checkpoint = rig.save();
    blocks.iter().for_each(|&at| rig.free(at));
    rig.allocator.set_no_split(GPU, POOL).unwrap();
    let whole = rig.allocate(4 * MIB, A);
    assert_eq!(rig.allocator.block(whole).unwrap().bytes, 20 * MIB);
    assert_eq!(rig.allocator.restore_pool(GPU, &checkpoint).unwrap().freed, [whole]);
    assert_eq!(blocks.map(|at| rig.allocator.block(at).unwrap()), infos);
    rig.allocator.is_valid().unwrap();
    let beside = rig.allocate(20 * MIB, A);
    assert!(blocks.iter().all(|&at| at < beside || beside + 20 * MIB <= at));
    blocks.iter().chain(&[beside]).for_each(|&at| rig.free(at));
    end(rig, POOL, &source);
}
