//! Trackers that call the allocator whose locks are held meanwhile: every call is refused, none
//! waits, and nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use common::{A, B, GPU, Rig, capacity};
use plugalloc::device::sim::SimOptions;
use plugalloc::observe::HistoryOptions;
use plugalloc::units::MIB;
use plugalloc::{
    Address, Allocator, Checkpoint, Config, DeviceId, Error, ObserverId, PluggableAllocator,
    PoolId, Result,
};

const SECOND: DeviceId = DeviceId(1);
const POOL: PoolId = PoolId(1, 0);

/// What a tracker finds at hand.
struct Hand {
    block: Address,
    checkpoint: Checkpoint,
    observer: ObserverId,
    shared: Vec<u8>,
}

/// What a call came to, by its name.
type Answers = Vec<(&'static str, Result<()>)>;

fn calls_of_memory(allocator: &Arc<Allocator>, hand: &Hand) -> Answers {
    let block = hand.block;
    vec![
        ("allocate", allocator.allocate(GPU, 1000, A).map(drop)),
        ("allocate elsewhere", allocator.allocate(SECOND, 3 * MIB, A).map(drop)),
        ("alloc", allocator.alloc(GPU, 1000, A).map(drop)),
        ("adopt", allocator.adopt(block).map(drop)),
        ("free", allocator.free(block)),
        ("block", allocator.block(block).map(drop)),
        ("base_allocation", allocator.base_allocation(block).map(drop)),
        ("record_stream", allocator.record_stream(block, B)),
        ("retire_stream", allocator.retire_stream(GPU, B)),
        ("pin", allocator.pin(block).map(drop)),
        ("share", allocator.share(block).map(drop)),
        ("open_shared", allocator.open_shared(GPU, &hand.shared).map(drop)),
        ("empty_cache", allocator.empty_cache()),
        ("process_events", allocator.process_events()),
        ("set_memory_fraction", allocator.set_memory_fraction(GPU, 0.5)),
        ("memory_fraction", allocator.memory_fraction(GPU).map(drop)),
        ("largest_free_block", allocator.largest_free_block(SECOND).map(drop)),
        ("statistics", allocator.statistics(GPU).map(drop)),
        ("statistics elsewhere", allocator.statistics(SECOND).map(drop)),
        ("reset_peak_statistics", allocator.reset_peak_statistics(GPU)),
        ("reset_accumulated_statistics", allocator.reset_accumulated_statistics(GPU)),
        ("is_valid", allocator.is_valid()),
        ("is_quiescent", allocator.is_quiescent()),
    ]
}

fn calls_of_pools(allocator: &Arc<Allocator>, hand: &Hand) -> Answers {
    let none = HashSet::new();
    vec![
        ("create_or_incref_pool", allocator.create_or_incref_pool(GPU, POOL, None)),
        ("begin_allocate_to_pool", allocator.begin_allocate_to_pool(GPU, POOL, |_| true)),
        ("end_allocate_to_pool", allocator.end_allocate_to_pool(GPU, POOL)),
        ("release_pool", allocator.release_pool(GPU, POOL)),
        ("pool_use_count", allocator.pool_use_count(GPU, POOL).map(drop)),
        ("set_use_on_oom", allocator.set_use_on_oom(GPU, POOL, true)),
        ("set_no_split", allocator.set_no_split(GPU, POOL)),
        ("pool_holds_exactly", allocator.pool_holds_exactly(GPU, POOL, &none).map(drop)),
        ("empty_pool", allocator.empty_pool(POOL)),
        ("mark_capture_begin", allocator.mark_capture_begin(GPU)),
        ("mark_capture_end", allocator.mark_capture_end(GPU)),
        ("checkpoint_pool", allocator.checkpoint_pool(GPU, POOL).map(drop)),
        ("restore_pool", allocator.restore_pool(GPU, &hand.checkpoint).map(drop)),
    ]
}

fn calls_of_observers(allocator: &Arc<Allocator>, hand: &Hand) -> Answers {
    vec![
        ("record_history", allocator.record_history(&HistoryOptions::default())),
        ("stop_history", allocator.stop_history()),
        ("record_annotation", allocator.record_annotation(GPU, &[])),
        ("snapshot", allocator.snapshot(None, true).map(drop)),
        ("context_of", allocator.context_of(hand.block).map(drop)),
        ("track_events", allocator.track_events(|_| ())),
        ("observe_mappings", allocator.observe_mappings(|_| ()).map(drop)),
        ("unobserve_mappings", allocator.unobserve_mappings(hand.observer).map(drop)),
    ]
}

fn assert_refused(answers: &Answers) {
    assert!(!answers.is_empty());
    for (name, answer) in answers {
        match answer {
            Err(Error::Unsupported { by, .. }) if by == "a trace tracker" => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Has a tracker make calls at every event from now on; they are told.
fn call_at_events(
    allocator: &Arc<Allocator>,
    hand: Arc<OnceLock<Hand>>,
    calls: fn(&Arc<Allocator>, &Hand) -> Answers,
) -> Arc<Mutex<Answers>> {
    let (itself, told) = (Arc::downgrade(allocator), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&told);
    let tracker = move |_: &_| {
        if let (Some(allocator), Some(hand)) = (itself.upgrade(), hand.get()) {
            log.lock().unwrap().append(&mut calls(&allocator, hand));
        }
    };
    allocator.track_events(tracker).unwrap();
    told
}

#[test]
fn every_call_out_of_a_tracker_is_refused() {
    let options = SimOptions { devices: 2, ..capacity(256 * MIB) };
    let rig = Rig::new(options, Config::default());
    let allocator = &rig.allocator;
    let hand = Arc::new(OnceLock::new());
    let told = [calls_of_memory, calls_of_pools, calls_of_observers]
        .map(|calls| call_at_events(allocator, Arc::clone(&hand), calls));
    let shared = rig.allocate(1000, A);
    let block = rig.allocate(1000, A);
    allocator.begin_allocate_to_pool(GPU, POOL, |stream| stream == B).unwrap();
    let pooled = rig.allocate(3 * MIB, B);
    let checkpoint = allocator.checkpoint_pool(GPU, POOL).unwrap();
    let handle = allocator.share(shared).unwrap().handle;
    let observer = allocator.observe_mappings(|_| ()).unwrap();
    let hand = hand.get_or_init(|| Hand { block, checkpoint, observer, shared: handle });
    // Events of every kind, with other locks held at each.
    let other = rig.allocate(40 * MIB, A);
    allocator.record_stream(other, B).unwrap();
    rig.free(other);
    allocator.restore_pool(GPU, &hand.checkpoint).unwrap();
    let elsewhere = allocator.allocate(SECOND, 1000, A).unwrap();
    rig.free(elsewhere);
    allocator.snapshot(None, true).unwrap();
    allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    rig.free(pooled);
    allocator.release_pool(GPU, POOL).unwrap();
    rig.try_allocate(1 << 40, A).unwrap_err();
    allocator.set_caching(false);
    rig.free(rig.allocate(1000, A));
    allocator.set_caching(true);
    rig.free(shared);
    allocator.empty_cache().unwrap();
    for answers in told {
        assert_refused(&std::mem::take(&mut *answers.lock().unwrap()));
    }
    rig.free(block);
    rig.finish();
}

/// A tracker may call another allocator; but not its own by way of the other's tracker.
#[test]
fn trackers_inside_of_trackers_are_refused_as_well() {
    let (first, second) = (Rig::of(64 * MIB), Rig::of(64 * MIB));
    let (outer, told) = (Arc::downgrade(&first.allocator), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&told);
    second
        .allocator
        .track_events(move |_| {
            let allocator = outer.upgrade().unwrap();
            log.lock().unwrap().push(("statistics", allocator.statistics(GPU).map(drop)));
        })
        .unwrap();
    let inner = Arc::clone(&second.allocator);
    first
        .allocator
        .track_events(move |_| inner.free(inner.allocate(GPU, 1000, A).unwrap()).unwrap())
        .unwrap();
    first.free(first.allocate(1000, A));
    assert_refused(&told.lock().unwrap());
    told.lock().unwrap().clear();
    second.free(second.allocate(1000, A));
    assert!(told.lock().unwrap().iter().all(|(_, answer)| answer.is_ok()));
    first.finish();
    second.finish();
}

#[test]
fn user_functions_give_nothing_that_a_tracker_cannot_have() {
    let (given, returned) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (giving, returning) = (Arc::clone(&given), Arc::clone(&returned));
    let allocator = Arc::new(PluggableAllocator::new(
        move |_, _, _| Ok(0x1000 * (1 + giving.fetch_add(1, Ordering::Relaxed))),
        move |_, _, _, _| {
            returning.fetch_add(1, Ordering::Relaxed);
        },
    ));
    let block = allocator.allocate(GPU, 1000, A).unwrap();
    let (itself, told) = (Arc::downgrade(&allocator), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&told);
    allocator
        .track_events(move |_| {
            let allocator = itself.upgrade().unwrap();
            log.lock().unwrap().append(&mut vec![
                ("allocate", allocator.allocate(SECOND, 1000, A).map(drop)),
                ("free", allocator.free(block)),
                ("entry", allocator.entry(block).map(drop)),
                ("owns", allocator.owns(block).map(drop)),
                ("base_allocation", allocator.base_allocation(block).map(drop)),
                ("set_memory_fraction", allocator.set_memory_fraction(GPU, 0.5)),
                ("memory_fraction", allocator.memory_fraction(GPU).map(drop)),
                ("statistics", allocator.statistics(GPU).map(drop)),
                ("reset_peak_statistics", allocator.reset_peak_statistics(GPU)),
                ("reset_accumulated_statistics", allocator.reset_accumulated_statistics(SECOND)),
                ("record_history", allocator.record_history(&HistoryOptions::default())),
                ("stop_history", allocator.stop_history()),
                ("record_annotation", allocator.record_annotation(GPU, &[])),
                ("snapshot", allocator.snapshot(true).map(drop)),
                ("context_of", allocator.context_of(block).map(drop)),
                ("track_events", allocator.track_events(|_| ())),
            ]);
            panic!("it ends in the tracker");
        })
        .unwrap();
    let other = allocator.allocate(GPU, 1000, A).unwrap();
    allocator.free(other).unwrap();
    allocator.snapshot(true).unwrap();
    allocator.free(block).unwrap();
    assert_refused(&told.lock().unwrap());
    assert_eq!(given.load(Ordering::Relaxed), 2, "no function was called out of a tracker");
    assert_eq!(returned.load(Ordering::Relaxed), 2);
    assert_eq!(allocator.statistics(GPU).unwrap().allocation.all.current, 0);
}
