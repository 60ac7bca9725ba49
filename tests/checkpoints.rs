//! Checkpoints of private pools: exactly what was live is live again where it was, everything else
//! stays as it is, and what cannot be done changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;
#[path = "common/pool_rig.rs"]
mod pool_rig;

use std::sync::Arc;

use common::{A, B, C, GPU, Rig, capacity, plain};
use plugalloc::device::Device;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{CheckpointFault, Error, Result};
use plugalloc::observe::{Action, Context, HistoryOptions, RecordContext};
use plugalloc::units::{Address, Bytes, DeviceId, GIB, MIB, PoolId};
use plugalloc::{Checkpoint, CheckpointDelta, Config};
use pool_rig::{POOL, addresses, sorted};

const OTHER: PoolId = PoolId(1, 1);

impl Rig {
    #[track_caller]
    fn restore(&self, checkpoint: &Checkpoint) -> CheckpointDelta {
        match self.allocator.restore_pool(GPU, checkpoint) {
            Ok(delta) => delta,
            Err(error) => panic!("{error}"),
        }
    }

    /// All that can be seen of memory and of what is counted.
    fn seen(&self) -> String {
        let segments = self.allocator.snapshot(None, false).unwrap().segments;
        format!("{segments:?} {:?}", self.statistics())
    }

    /// Fails unless the checkpoint is refused for this reason, and nothing has changed.
    #[track_caller]
    fn refuses(&self, checkpoint: &Checkpoint, expected: CheckpointFault) -> (Address, Bytes) {
        let before = self.seen();
        let found = fault(self.allocator.restore_pool(GPU, checkpoint));
        assert_eq!(found.0, expected);
        assert_eq!(self.seen(), before);
        self.allocator.is_valid().unwrap();
        (found.1, found.2)
    }
}

#[track_caller]
fn fault(result: Result<CheckpointDelta>) -> (CheckpointFault, Address, Bytes) {
    match result {
        Err(Error::Checkpoint(error)) => (error.fault, error.address, error.bytes),
        other => panic!("not an error about a checkpoint: {other:?}"),
    }
}

#[test]
fn what_was_live_is_live_again_and_nothing_else() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, Config::default());
        rig.begin(POOL, &[A, B]);
        let outside = rig.allocate(MIB, C);
        let kept = rig.allocate(5 * MIB, A);
        let ended = [100, 100_000, MIB + 1].map(|bytes| rig.allocate(bytes, A));
        let on_b = rig.allocate(3 * MIB, B);
        let before = sorted([kept, ended[0], ended[1], ended[2], on_b]);
        let infos = before.iter().map(|&at| rig.allocator.block(at).unwrap());
        let infos: Vec<_> = infos.collect();
        let checkpoint = rig.save();
        assert_eq!((checkpoint.device(), checkpoint.pool()), (GPU, POOL));
        assert_eq!(addresses(&checkpoint.blocks().collect::<Vec<_>>()), before);
        ended.iter().chain(&[on_b]).for_each(|&at| rig.free(at));
        // Longer and shorter blocks in the same places, and more of them.
        let later = [3 * MIB, 700, 512, 2 * MIB, 50_000].map(|bytes| rig.allocate(bytes, A));
        let later_on_b = rig.allocate(2 * MIB, B);
        rig.fill(kept, 7, 5 * MIB, A);
        let delta = rig.restore(&checkpoint);
        let freed = sorted(later.into_iter().chain([kept, later_on_b]));
        assert_eq!(sorted(delta.freed), freed);
        let mut allocated = delta.allocated.clone();
        allocated.sort_unstable_by_key(|block| block.address);
        assert_eq!(allocated, infos);
        assert!(rig.holds(POOL, &before));
        for info in &infos {
            assert_eq!(rig.allocator.block(info.address).unwrap(), *info);
        }
        rig.assert_filled(kept, 7, 5 * MIB);
        assert_eq!(rig.allocator.block(outside).unwrap().requested, MIB, "no block of the pool");
        // What is free between them is found.
        let between = rig.allocate(4000, A);
        rig.free(between);
        before.iter().chain(&[outside]).for_each(|&at| rig.free(at));
        rig.end(POOL);
        rig.finish();
    }
}

#[test]
fn an_empty_pool_and_heaps_that_came_later_are_emptied() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A, B]);
    let empty = rig.save();
    assert_eq!(empty.blocks().count(), 0);
    let blocks = [(MIB, A), (100, B), (9 * MIB, B)].map(|(bytes, on)| rig.allocate(bytes, on));
    let delta = rig.restore(&empty);
    assert_eq!(sorted(delta.freed), sorted(blocks));
    assert!(delta.allocated.is_empty() && rig.holds(POOL, &[]));
    assert_eq!(rig.allocate(100, B), blocks[1]);
    rig.restore(&empty);
    rig.end(POOL);
    rig.finish();
}

#[test]
fn other_pools_stay_as_they_are() {
    let rig = Rig::of(GIB);
    rig.begin(OTHER, &[B]);
    rig.begin(POOL, &[A]);
    let checkpoint = rig.save();
    let (inside, other) = (rig.allocate(2 * MIB, A), rig.allocate(2 * MIB, B));
    rig.fill(other, 9, 2 * MIB, B);
    assert_eq!(rig.restore(&checkpoint).freed, [inside]);
    assert!(rig.holds(OTHER, &[other]));
    rig.assert_filled(other, 9, 2 * MIB);
    rig.free(other);
    rig.end(POOL);
    rig.end(OTHER);
    rig.finish();
}

#[test]
fn the_memory_of_a_checkpoint_stays_while_others_need_all_they_can_get() {
    for options in [capacity(96 * MIB), plain(96 * MIB)] {
        let rig = Rig::new(options, Config::default());
        rig.begin(POOL, &[A]);
        let blocks = [1, 2, 3].map(|turn| rig.allocate(turn * 5 * MIB + 1000, A));
        let checkpoint = rig.save();
        blocks.iter().for_each(|&at| rig.free(at));
        rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
        let mut taken = Vec::new();
        while let Ok(at) = rig.try_allocate(4 * MIB, if taken.len() % 2 == 0 { A } else { C }) {
            rig.fill(at, 3, 4 * MIB, C);
            taken.push(at);
        }
        rig.allocator.empty_cache().unwrap();
        rig.allocator.empty_pool(POOL).unwrap();
        let again = rig.restore(&checkpoint).allocated;
        assert_eq!(addresses(&again), sorted(blocks));
        again.iter().for_each(|block| rig.fill(block.address, 5, block.requested, A));
        taken.iter().for_each(|&at| rig.assert_filled(at, 3, 4 * MIB));
        taken.iter().chain(&blocks).for_each(|&at| rig.free(at));
        rig.allocator.release_pool(GPU, POOL).unwrap();
        rig.finish();
    }
}

#[test]
fn pools_that_are_none_and_checkpoints_of_others_are_refused() {
    let rig = Rig::new(SimOptions { devices: 2, ..capacity(GIB) }, Config::default());
    for pool in [POOL, PoolId::DEFAULT] {
        let error = rig.allocator.checkpoint_pool(GPU, pool).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { argument: "pool", .. }), "{error}");
    }
    assert!(matches!(
        rig.allocator.checkpoint_pool(DeviceId(5), POOL),
        Err(Error::InvalidDevice { .. })
    ));
    rig.begin(POOL, &[A]);
    let block = rig.allocate(MIB, A);
    let checkpoint = rig.save();
    rig.allocator.create_or_incref_pool(DeviceId(1), POOL, None).unwrap();
    let elsewhere = rig.allocator.restore_pool(DeviceId(1), &checkpoint);
    assert_eq!(fault(elsewhere), (CheckpointFault::OtherDevice, 0, 0));
    rig.allocator.release_pool(DeviceId(1), POOL).unwrap();
    let others = Rig::of(GIB);
    others.begin(POOL, &[A]);
    others.refuses(&checkpoint, CheckpointFault::OtherAllocator);
    others.end(POOL);
    others.finish();
    rig.end(POOL);
    rig.refuses(&checkpoint, CheckpointFault::PoolEnded);
    rig.begin(POOL, &[A]);
    rig.refuses(&checkpoint, CheckpointFault::PoolEnded);
    let error = rig.allocator.restore_pool(GPU, &checkpoint).unwrap_err().to_string();
    assert!(error.contains("pool (1, 0) of device 0") && error.contains("released"), "{error}");
    rig.end(POOL);
    rig.free(block);
    rig.finish();
}

#[test]
fn what_other_streams_may_still_use_is_in_the_way_until_they_have_passed() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A]);
    let far = rig.allocate(20 * MIB, A);
    let first = rig.allocate(3 * MIB, A);
    let checkpoint = rig.save();
    rig.free(first);
    let inside = rig.allocate(2 * MIB, A);
    assert_eq!(inside, first, "in the place of another");
    rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    rig.device().hold(B).unwrap();
    rig.fill(inside, 1, 2 * MIB, B);
    rig.allocator.record_stream(inside, B).unwrap();
    let expected = (inside, 2 * MIB);
    assert_eq!(rig.refuses(&checkpoint, CheckpointFault::InUseByStreams), expected);
    rig.free(inside);
    assert_eq!(rig.refuses(&checkpoint, CheckpointFault::InUseByStreams), expected);
    rig.device().resume(B).unwrap();
    assert_eq!(addresses(&rig.restore(&checkpoint).allocated), sorted([far, first]));
    [far, first].iter().for_each(|&at| rig.free(at));
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}

#[test]
fn what_is_in_nobodys_way_waits_for_its_streams_like_any_free() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A]);
    let checkpoint = rig.save();
    let block = rig.allocate(2 * MIB, A);
    rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    rig.device().hold(B).unwrap();
    rig.fill(block, 1, 2 * MIB, B);
    rig.allocator.record_stream(block, B).unwrap();
    assert_eq!(rig.restore(&checkpoint).freed, [block]);
    assert!(rig.holds(POOL, &[]));
    let active = || rig.statistics().active.all.current;
    assert_eq!((rig.statistics().allocation.all.current, active()), (0, 1));
    rig.allocator.process_events().unwrap();
    assert_eq!(active(), 1);
    rig.device().resume(B).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(active(), 0);
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}

#[test]
fn streams_that_were_recorded_by_then_are_recorded_again() {
    let rig = Rig::of(GIB);
    let gone = rig.device().stream_create().unwrap();
    rig.begin(POOL, &[A]);
    let blocks = [(); 2].map(|()| rig.allocate(2 * MIB, A));
    rig.allocator.record_stream(blocks[0], B).unwrap();
    rig.allocator.record_stream(blocks[1], gone).unwrap();
    let checkpoint = rig.save();
    blocks.iter().for_each(|&at| rig.free(at));
    rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    rig.allocator.process_events().unwrap();
    rig.allocator.retire_stream(GPU, gone).unwrap();
    rig.device().stream_destroy(gone).unwrap();
    rig.restore(&checkpoint);
    rig.device().hold(B).unwrap();
    rig.fill(blocks[0], 1, 2 * MIB, B);
    blocks.iter().for_each(|&at| rig.free(at));
    rig.allocator.process_events().unwrap();
    let waiting = rig.statistics().active.all.current;
    assert_eq!(waiting, 1, "the first, since the stream of the second has ended");
    assert_eq!(rig.ledger().calls_of_no_stream, 0);
    rig.device().resume(B).unwrap();
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}

#[test]
fn what_stays_keeps_its_streams_and_what_goes_leaves_none_behind() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A]);
    let block = rig.allocate(2 * MIB, A);
    let checkpoint = rig.save();
    rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    rig.device().hold(B).unwrap();
    rig.fill(block, 1, 2 * MIB, B);
    rig.allocator.record_stream(block, B).unwrap();
    let delta = rig.restore(&checkpoint);
    assert_eq!((delta.freed, addresses(&delta.allocated)), (vec![block], vec![block]));
    rig.free(block);
    rig.allocator.process_events().unwrap();
    assert_eq!(rig.statistics().active.all.current, 1);
    rig.device().resume(B).unwrap();
    rig.allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}

#[test]
fn a_stream_of_another_device_that_has_ended_is_waited_for_no_more() {
    let rig = Rig::new(SimOptions { devices: 2, ..capacity(GIB) }, Config::default());
    let guest = rig.machine.device(1).stream_create().unwrap();
    rig.begin(POOL, &[A]);
    let checkpoint = rig.save();
    let blocks = [(); 2].map(|()| rig.allocate(2 * MIB, A));
    rig.allocator.record_stream(blocks[0], guest).unwrap();
    rig.allocator.retire_stream(DeviceId(1), guest).unwrap();
    rig.machine.device(1).stream_destroy(guest).unwrap();
    let both = rig.save();
    assert_eq!(sorted(rig.restore(&checkpoint).freed), sorted(blocks));
    assert_eq!(rig.statistics().active.all.current, 0);
    rig.restore(&both);
    blocks.iter().for_each(|&at| rig.free(at));
    rig.end(POOL);
    rig.finish();
}

#[test]
fn what_is_pinned_or_shared_does_not_end_and_may_stay() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, Config::default());
        let allocator = &rig.allocator;
        allocator.begin_allocate_to_pool(GPU, POOL, |_| true).unwrap();
        let empty = allocator.checkpoint_pool(GPU, POOL).unwrap();
        let block = allocator.allocate(GPU, 3 * MIB, A).unwrap();
        let with_it = allocator.checkpoint_pool(GPU, POOL).unwrap();
        let stays = || {
            let delta = allocator.restore_pool(GPU, &with_it).unwrap();
            assert_eq!(delta.freed, [block]);
        };
        let pin = allocator.pin(block).unwrap();
        let refused = fault(allocator.restore_pool(GPU, &empty));
        assert_eq!(refused, (CheckpointFault::Pinned, block, 3 * MIB));
        stays();
        drop(pin);
        let shared = allocator.share(block).unwrap();
        let refused = fault(allocator.restore_pool(GPU, &empty));
        assert_eq!(refused, (CheckpointFault::Exported, block, 3 * MIB));
        stays();
        assert_eq!(allocator.share(block).unwrap(), shared, "it is shared still");
        allocator.is_valid().unwrap();
        allocator.free(block).unwrap();
        // The export has ended with it.
        let block = allocator.allocate(GPU, 3 * MIB, A).unwrap();
        assert_eq!(allocator.restore_pool(GPU, &empty).unwrap().freed, [block]);
        allocator.end_allocate_to_pool(GPU, POOL).unwrap();
        allocator.release_pool(GPU, POOL).unwrap();
        rig.finish();
    }
}

#[test]
fn events_are_all_frees_and_then_all_allocations() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A]);
    let kept = rig.allocate(2 * MIB, A);
    let ended = rig.allocate(1000, A);
    let checkpoint = rig.save();
    rig.free(ended);
    let later = rig.allocate(5 * MIB, A);
    let source = || Some(Arc::new(7u32) as Context);
    let options = HistoryOptions {
        max_entries: 100,
        when: RecordContext::All,
        source: Some(Arc::new(source)),
        ..HistoryOptions::default()
    };
    rig.allocator.record_history(&options).unwrap();
    rig.restore(&checkpoint);
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    let event = |at: usize| (trace[at].action, trace[at].address, trace[at].bytes);
    let sizes = [(kept, 2 * MIB), (later, 5 * MIB)];
    let freed = sorted([event(0), event(2)].map(|(_, at, bytes)| (at, bytes)));
    assert_eq!(freed, sorted(sizes));
    for at in [0, 2] {
        assert_eq!((event(at).0, event(at + 1).0), (Action::FreeRequested, Action::FreeCompleted));
        assert_eq!(event(at).1, event(at + 1).1);
    }
    let allocated = sorted([event(4), event(5)].map(|(_, at, bytes)| (at, bytes)));
    assert_eq!(allocated, sorted([(kept, 2 * MIB), (ended, 1000)]));
    assert!(trace[..6].iter().all(|entry| entry.pool == POOL && entry.stream == A));
    assert!(trace[4..6].iter().all(|entry| entry.action == Action::Alloc));
    assert!(trace[..6].iter().all(|entry| entry.context.is_some()));
    assert!(
        rig.allocator.context_of(ended).unwrap().is_some()
            && rig.allocator.context_of(later).unwrap().is_none()
    );
    [kept, ended].iter().for_each(|&at| rig.free(at));
    rig.end(POOL);
    rig.finish();
}

#[test]
fn peaks_do_not_see_what_was_live_before_and_afterwards_at_once() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A, B]);
    // Each of two heaps has what the other one had.
    let first = [(A, 30), (B, 10)].map(|(stream, mib)| rig.allocate(mib * MIB, stream));
    let checkpoint = rig.save();
    first.iter().for_each(|&at| rig.free(at));
    let second = [(A, 9), (B, 30)].map(|(stream, mib)| rig.allocate(mib * MIB, stream));
    rig.allocator.reset_peak_statistics(GPU).unwrap();
    let freed_before = rig.statistics().allocation.all.freed;
    let delta = rig.restore(&checkpoint);
    assert_eq!(sorted(delta.freed), sorted(second));
    let now = rig.statistics();
    assert_eq!(now.allocated_bytes.all.peak, (40 * MIB) as i64);
    assert_eq!(now.allocation.all.peak, 2);
    assert_eq!(now.allocation.all.freed - freed_before, 2);
    assert_eq!(now.allocation.all.allocated, 6);
    first.iter().for_each(|&at| rig.free(at));
    rig.end(POOL);
    rig.finish();
}

#[test]
fn threads_go_back_while_others_allocate_in_the_pool_and_elsewhere() {
    let rig = Rig::of(GIB);
    rig.begin(POOL, &[A, B]);
    let base = [rig.allocate(3 * MIB, A), rig.allocate(700, B)];
    let checkpoint = rig.save();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let delta = rig.restore(&checkpoint);
                    assert_eq!(addresses(&delta.allocated), sorted(base));
                }
            });
        }
        for stream in [A, B] {
            let rig = &rig;
            // Claims to these end whenever another thread goes back, so that nobody frees them.
            scope.spawn(move || (0..300).for_each(|k| _ = rig.allocate(1 + k * 3000, stream)));
        }
        scope.spawn(|| {
            for round in 0..600 {
                let block = rig.allocate(1 + round * 9000, C);
                rig.free(block);
                rig.statistics();
            }
        });
    });
    rig.allocator.is_valid().unwrap();
    rig.restore(&checkpoint);
    assert!(rig.holds(POOL, &base));
    base.iter().for_each(|&at| rig.free(at));
    rig.end(POOL);
    rig.finish();
}

#[test]
fn sizes_that_are_rounded_in_steps_come_back_as_they_were_served() {
    let config = Config::parse("roundup_power2_divisions:4").unwrap();
    let rig = Rig::new(capacity(GIB), config);
    let allocator = &rig.allocator;
    allocator.begin_allocate_to_pool(GPU, POOL, |_| true).unwrap();
    let sizes = [300, 70_000, 2 * MIB + 3];
    let blocks = sizes.map(|bytes| allocator.allocate(GPU, bytes, A).unwrap());
    let served = blocks.map(|at| allocator.block(at).unwrap().bytes);
    let checkpoint = allocator.checkpoint_pool(GPU, POOL).unwrap();
    blocks.iter().for_each(|&at| allocator.free(at).unwrap());
    allocator.allocate(GPU, MIB, A).unwrap();
    allocator.restore_pool(GPU, &checkpoint).unwrap();
    assert_eq!(blocks.map(|at| allocator.block(at).unwrap().bytes), served);
    blocks.iter().for_each(|&at| allocator.free(at).unwrap());
    allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    allocator.release_pool(GPU, POOL).unwrap();
    rig.finish();
}
