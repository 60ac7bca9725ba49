//! Histories and snapshots: what is recorded fits what there is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;
#[path = "common/history_model.rs"]
mod history_model;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{A, B, GPU, Random, Rig, SIZES, capacity, config, plain};
use history_model::Model;
use plugalloc::device::sim::SimOptions;
use plugalloc::observe::{
    Action, BlockState, Context, HistoryOptions, RecordContext, Snapshot, TraceEntry,
    pop_compile_context, push_compile_context, set_user_metadata,
};
use plugalloc::units::MIB;
use plugalloc::{Address, Bytes, Config, DeviceId, Error, PoolId, StreamId};

fn record(rig: &Rig, max_entries: usize) {
    let options = HistoryOptions { max_entries, ..HistoryOptions::default() };
    rig.allocator.record_history(&options).unwrap();
}

/// What happened to memory that is handed out, by address and bytes.
fn of_allocations(rig: &Rig) -> Vec<(Action, Address, Bytes)> {
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    let kept = trace.iter().filter(|entry| {
        matches!(entry.action, Action::Alloc | Action::FreeRequested | Action::FreeCompleted)
    });
    kept.map(|entry| (entry.action, entry.address, entry.bytes)).collect()
}

#[test]
fn an_allocation_and_its_free_are_three_events() {
    let rig = Rig::of(64 * MIB);
    record(&rig, 100);
    let block = rig.allocate(1000, A);
    rig.free(block);
    let expected = [Action::Alloc, Action::FreeRequested, Action::FreeCompleted];
    assert_eq!(of_allocations(&rig), expected.map(|action| (action, block, 1000)));
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    assert!(trace.windows(2).all(|pair| pair[0].time_us <= pair[1].time_us));
    let alloc = trace.iter().find(|entry| entry.action == Action::Alloc).unwrap();
    assert_eq!((alloc.device, alloc.stream, alloc.pool), (GPU, A, PoolId::DEFAULT));
    rig.finish();
}

/// It would wait for the locks that its own thread has.
#[test]
fn a_tracker_that_calls_the_allocator_is_refused() {
    let rig = Rig::of(64 * MIB);
    let other = Rig::of(64 * MIB);
    let block = rig.allocate(1000, A);
    let (allocator, beside) = (Arc::downgrade(&rig.allocator), Arc::clone(&other.allocator));
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    rig.allocator
        .track_events(move |_| {
            let allocator = allocator.upgrade().unwrap();
            let answers = [
                allocator.allocate(GPU, 1000, A).map(drop),
                allocator.free(block),
                allocator.record_stream(block, B),
                allocator.statistics(GPU).map(drop),
            ];
            log.lock().unwrap().extend(answers.map(|answer| answer.unwrap_err().to_string()));
            // Another allocator is none of its business.
            beside.free(beside.allocate(GPU, 1000, A).unwrap()).unwrap();
        })
        .unwrap();
    rig.free(block);
    let texts = told.lock().unwrap().clone();
    assert!(!texts.is_empty());
    for text in texts {
        assert!(text.starts_with("calling the allocator is not supported by a trace tracker"));
    }
    rig.finish();
    other.finish();
}

#[test]
fn a_tracker_that_panics_stops_nothing() {
    let rig = Rig::of(64 * MIB);
    let before = rig.allocate(1000, A);
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    rig.allocator
        .track_events(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            panic!("a tracker that panics");
        })
        .unwrap();
    rig.free(before);
    let block = rig.allocate(3 * MIB, B);
    rig.free(block);
    assert!(told.load(Ordering::Relaxed) > 3);
    rig.finish();
}

#[test]
fn a_free_is_completed_when_other_streams_are_done() {
    let rig = Rig::of(64 * MIB);
    record(&rig, 100);
    let block = rig.allocate(MIB, A);
    rig.device().hold(B).unwrap();
    rig.fill(block, 1, MIB, B);
    rig.allocator.record_stream(block, B).unwrap();
    rig.free(block);
    rig.allocator.process_events().unwrap();
    let events = || of_allocations(&rig).into_iter().map(|event| event.0).collect::<Vec<_>>();
    assert_eq!(events(), [Action::Alloc, Action::FreeRequested]);
    let states = |snapshot: &Snapshot| {
        let blocks = snapshot.segments.iter().flat_map(|segment| &segment.blocks);
        blocks.filter(|b| b.address == block).map(|b| b.state).collect::<Vec<_>>()
    };
    assert_eq!(
        states(&rig.allocator.snapshot(None, false).unwrap()),
        [BlockState::ActivePendingFree]
    );
    rig.device().resume(B).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(events(), [Action::Alloc, Action::FreeRequested, Action::FreeCompleted]);
    assert_eq!(states(&rig.allocator.snapshot(None, false).unwrap()), [BlockState::Inactive]);
    rig.finish();
}

#[test]
fn a_history_begins_and_ends_at_any_time() {
    let rig = Rig::of(64 * MIB);
    let early = rig.allocate(1000, A);
    let late = rig.allocate(2 * MIB, B);
    assert!(!rig.allocator.is_history_enabled());
    record(&rig, 100);
    assert!(rig.allocator.is_history_enabled());
    rig.free(early);
    let freed = [Action::FreeRequested, Action::FreeCompleted];
    assert_eq!(of_allocations(&rig), freed.map(|action| (action, early, 1000)));
    rig.allocator.stop_history().unwrap();
    assert!(of_allocations(&rig).is_empty());
    rig.free(late);
    assert!(of_allocations(&rig).is_empty());
    // A stream that comes while one is recorded is seen as well, and one that retired.
    record(&rig, 100);
    rig.free(rig.allocate(1000, common::C));
    rig.allocator.retire_stream(GPU, A).unwrap();
    rig.free(rig.allocate(1000, A));
    rig.free(rig.allocate(1000, A));
    assert_eq!(of_allocations(&rig).len(), 9);
    rig.finish();
}

#[test]
fn the_newest_events_are_kept() {
    let rig = Rig::of(64 * MIB);
    record(&rig, 4);
    (0..5).for_each(|k| rig.free(rig.allocate(1000 + k, A)));
    let sizes = |rig: &Rig| {
        let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
        trace.iter().map(|entry| entry.bytes).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&rig), [1003, 1004, 1004, 1004]);
    // The snapshot itself was one event.
    assert_eq!(sizes(&rig), [1004, 1004, 1004, 0]);
    record(&rig, 2);
    assert_eq!(sizes(&rig), [0, 0], "fewer from now on");
    let clear = HistoryOptions { max_entries: 9, clear: true, ..HistoryOptions::default() };
    rig.allocator.record_history(&clear).unwrap();
    assert!(sizes(&rig).is_empty());
    rig.finish();
}

#[test]
fn events_can_be_left_out() {
    let rig = Rig::of(64 * MIB);
    let skip = vec![Action::FreeRequested, Action::SegmentMap, Action::Snapshot];
    let options = HistoryOptions { max_entries: 9, skip, ..HistoryOptions::default() };
    rig.allocator.record_history(&options).unwrap();
    rig.free(rig.allocate(1000, A));
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    let actions: Vec<_> = trace.iter().map(|entry| entry.action).collect();
    assert_eq!(actions, [Action::Alloc, Action::FreeCompleted]);
    rig.finish();
}

/// A source of contexts that counts.
fn counting() -> (Arc<AtomicUsize>, HistoryOptions) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let source =
        move || -> Option<Context> { Some(Arc::new(counter.fetch_add(1, Ordering::Relaxed))) };
    let options = HistoryOptions {
        max_entries: 100,
        source: Some(Arc::new(source)),
        ..HistoryOptions::default()
    };
    (count, options)
}

fn number(context: Option<&Context>) -> Option<usize> {
    context.map(|context| *context.downcast_ref().unwrap())
}

#[test]
fn contexts_are_gathered_as_far_as_wanted() {
    for (when, gathered, in_trace) in [
        (RecordContext::Never, 0, [None, None, None]),
        (RecordContext::State, 1, [None, None, None]),
        (RecordContext::Alloc, 1, [Some(0), Some(0), Some(0)]),
        (RecordContext::All, 2, [Some(0), Some(1), Some(1)]),
    ] {
        let rig = Rig::of(64 * MIB);
        let (count, options) = counting();
        rig.allocator.record_history(&HistoryOptions { when, ..options }).unwrap();
        let block = rig.allocate(1000, A);
        let live = (when != RecordContext::Never).then_some(0);
        assert_eq!(number(rig.allocator.context_of(block).unwrap().as_ref()), live);
        let snapshot = rig.allocator.snapshot(None, false).unwrap();
        let blocks = snapshot.segments.iter().flat_map(|segment| &segment.blocks);
        let shown: Vec<_> = blocks.filter_map(|b| number(b.context.as_ref())).collect();
        assert_eq!(shown, Vec::from_iter(live));
        rig.free(block);
        assert!(rig.allocator.context_of(block).unwrap().is_none());
        assert_eq!(count.load(Ordering::Relaxed), gathered, "{when:?}");
        let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
        let handed_out = trace.iter().filter(|entry| entry.bytes == 1000);
        let found: Vec<_> = handed_out.map(|entry| number(entry.context.as_ref())).collect();
        assert_eq!(found, in_trace, "{when:?}");
        rig.finish();
    }
}

#[test]
fn contexts_need_a_source() {
    let rig = Rig::of(64 * MIB);
    let options = HistoryOptions { when: RecordContext::State, ..HistoryOptions::default() };
    let error = rig.allocator.record_history(&options).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { argument: "source of contexts", .. }));
    assert!(!rig.allocator.is_history_enabled());
    rig.finish();
}

#[test]
fn threads_name_what_they_do() {
    let rig = Rig::of(64 * MIB);
    record(&rig, 100);
    push_compile_context("outer");
    push_compile_context("inner");
    set_user_metadata("request 7");
    let block = rig.allocate(1000, A);
    pop_compile_context();
    std::thread::scope(|scope| {
        scope.spawn(|| rig.free(block));
    });
    set_user_metadata("");
    rig.free(rig.allocate(500, A));
    pop_compile_context();
    pop_compile_context();
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    let labels = |action, bytes| {
        let found = trace.iter().find(|entry| (entry.action, entry.bytes) == (action, bytes));
        let entry = found.unwrap();
        (entry.compile_context.as_deref(), entry.user_metadata.as_deref())
    };
    assert_eq!(labels(Action::Alloc, 1000), (Some("inner"), Some("request 7")));
    assert_eq!(labels(Action::FreeRequested, 1000), (None, None));
    assert_eq!(labels(Action::Alloc, 500), (Some("outer"), None));
    rig.finish();
}

#[test]
fn marks_are_kept_while_a_history_is() {
    let rig = Rig::new(SimOptions { devices: 2, ..capacity(64 * MIB) }, Config::default());
    let mark = |device, name: &str| {
        let pairs = [("name".to_owned(), name.to_owned())];
        rig.allocator.record_annotation(DeviceId(device), &pairs)
    };
    mark(0, "too early").unwrap();
    record(&rig, 2);
    for (device, name) in [(0, "first"), (1, "second"), (0, "third"), (0, "fourth")] {
        mark(device, name).unwrap();
        // They are told apart by the microsecond.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(matches!(mark(2, "nowhere"), Err(Error::InvalidDevice { .. })));
    let marks = rig.allocator.snapshot(None, false).unwrap().annotations;
    let found: Vec<_> = marks.iter().map(|m| (m.device.0, m.metadata[0].1.as_str())).collect();
    assert_eq!(found, [(1, "second"), (0, "third"), (0, "fourth")]);
    rig.finish();
}

#[test]
fn requests_that_fail_are_told() {
    let rig = Rig::of(64 * MIB);
    let told = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&told);
    rig.allocator.observe_out_of_memory(move |event| {
        let report = event.report;
        into.lock().unwrap().push((report.requested, event.segment, report.free, event.at_limit));
    });
    let live = rig.allocate(40 * MIB, A);
    assert!(rig.try_allocate(30 * MIB + 5, A).is_err());
    record(&rig, 100);
    rig.allocator.set_memory_fraction(GPU, 0.75).unwrap();
    assert!(rig.try_allocate(MIB / 2, B).is_ok_and(|block| {
        rig.free(block);
        true
    }));
    assert!(rig.try_allocate(20 * MIB, B).is_err());
    let expected =
        [(30 * MIB + 5, 32 * MIB, 24 * MIB, false), (20 * MIB, 20 * MIB, 22 * MIB, true)];
    assert_eq!(*told.lock().unwrap(), expected);
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    let of = |entry: &TraceEntry| (entry.address, entry.bytes, entry.stream);
    let failed: Vec<_> =
        trace.iter().filter(|entry| entry.action == Action::OutOfMemory).map(of).collect();
    assert_eq!(failed, [(22 * MIB, 20 * MIB, B)]);
    rig.free(live);
    rig.finish();
}

#[test]
fn trackers_see_everything_with_and_without_a_history() {
    let rig = Rig::new(plain(64 * MIB), Config::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    rig.allocator.track_events(move |entry| into.lock().unwrap().push(entry.action)).unwrap();
    rig.free(rig.allocate(1000, A));
    rig.allocator.empty_cache().unwrap();
    let expected = [
        Action::SegmentAlloc,
        Action::Alloc,
        Action::FreeRequested,
        Action::FreeCompleted,
        Action::SegmentFree,
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert!(rig.allocator.snapshot(None, true).unwrap().device_traces[0].is_empty());
    let skip = Action::ALL.to_vec();
    let options = HistoryOptions { max_entries: 9, skip, ..HistoryOptions::default() };
    rig.allocator.record_history(&options).unwrap();
    rig.allocator.stop_history().unwrap();
    rig.free(rig.allocate(1000, A));
    // The snapshot above is one.
    assert_eq!(seen.lock().unwrap().len(), 5 + 1 + 4);
    rig.finish();
}

#[test]
fn memory_without_caching_is_segments_of_its_own() {
    let rig = Rig::new(capacity(64 * MIB), config(|c| c.caching = false));
    record(&rig, 100);
    let block = rig.allocate(5000, A);
    let snapshot = rig.allocator.snapshot(None, true).unwrap();
    let [segment] = &snapshot.segments[..] else {
        panic!("{:?}", snapshot.segments);
    };
    assert_eq!((segment.address, segment.total, segment.requested), (block, 5120, 5000));
    assert_eq!((segment.stream, segment.is_large, segment.is_expandable), (A, false, false));
    rig.free(block);
    let trace = rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0);
    let actions: Vec<_> = trace.iter().map(|entry| (entry.action, entry.bytes)).collect();
    let expected = [
        (Action::SegmentAlloc, 5120),
        (Action::Alloc, 5000),
        (Action::Snapshot, 5120),
        (Action::FreeRequested, 5000),
        (Action::FreeCompleted, 5000),
        (Action::SegmentFree, 5120),
    ];
    assert_eq!(actions, expected);
    rig.finish();
}

/// Random work of all kinds, during which snapshots are taken: each must be what the events lead
/// to.
fn events_lead_to_every_snapshot(options: SimOptions, conf: &str, seed: u64) {
    let rig = Rig::new(options, Config::parse(conf).unwrap());
    record(&rig, usize::MAX);
    let mut random = Random::new(seed);
    let pool = PoolId(1, 0);
    rig.allocator.create_or_incref_pool(GPU, pool, None).unwrap();
    let streams: Vec<_> = (1..6).map(StreamId).collect();
    let mut live: Vec<Address> = Vec::new();
    let mut model = Model::default();
    for step in 0..3000 {
        let stream = streams[random.below(5) as usize];
        match random.below(100) {
            0..45 => live.extend(rig.try_allocate(random.size(12 * MIB), stream)),
            45..50 if !live.is_empty() => {
                let block = live[random.below(live.len() as u64) as usize];
                rig.allocator.record_stream(block, stream).unwrap();
            }
            50 => rig.allocator.empty_cache().unwrap(),
            51 => rig.allocator.retire_stream(GPU, stream).unwrap(),
            52 => {
                rig.allocator.begin_allocate_to_pool(GPU, pool, move |s| s == stream).unwrap();
                live.extend(rig.try_allocate(random.size(4 * MIB), stream));
                rig.allocator.end_allocate_to_pool(GPU, pool).unwrap();
                rig.allocator.release_pool(GPU, pool).unwrap();
            }
            53 => {
                // Longer than idle memory is kept where it is given back at all.
                std::thread::sleep(std::time::Duration::from_millis(2));
                rig.allocator.process_events().unwrap();
            }
            _ if !live.is_empty() => {
                rig.free(live.swap_remove(random.below(live.len() as u64) as usize));
            }
            _ => {}
        }
        if step % 100 == 99 {
            let snapshot = rig.allocator.snapshot(None, true).unwrap();
            model.follow(&snapshot.device_traces[0]);
            model.assert_shows(&snapshot);
            let total: Bytes = snapshot.segments.iter().map(|segment| segment.total).sum();
            assert_eq!(total as i64, rig.statistics().reserved_bytes.all.current);
            let active: Bytes = snapshot.segments.iter().map(|segment| segment.active).sum();
            assert_eq!(active as i64, rig.statistics().active_bytes.all.current);
            let of_pool = rig.allocator.snapshot(Some(pool), false).unwrap();
            assert!(of_pool.segments.iter().all(|segment| segment.pool == pool));
            let all = snapshot.segments.iter().filter(|segment| segment.pool == pool);
            assert_eq!(of_pool.segments.len(), all.count());
        }
    }
    live.into_iter().for_each(|block| rig.free(block));
    rig.allocator.release_pool(GPU, pool).unwrap();
    rig.finish();
}

#[test]
fn events_lead_to_every_snapshot_with_virtual_memory() {
    let seed = Random::seed(4711);
    events_lead_to_every_snapshot(capacity(256 * MIB), "", seed);
    events_lead_to_every_snapshot(capacity(1 << 36), "", seed + 1);
    events_lead_to_every_snapshot(capacity(1 << 36), "release_idle_ms:1", seed + 2);
}

#[test]
fn events_lead_to_every_snapshot_with_segments() {
    let seed = Random::seed(4712);
    events_lead_to_every_snapshot(plain(256 * MIB), "", seed);
    events_lead_to_every_snapshot(capacity(1 << 36), "expandable_segments:False", seed + 1);
}

#[test]
fn events_of_one_address_are_in_order_whatever_threads_do() {
    let rig = Rig::of(256 * MIB);
    record(&rig, usize::MAX);
    let (seed, exchange) = (Random::seed(4713), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (rig, exchange) = (&rig, &exchange);
            scope.spawn(move || {
                let mut random = Random::new(seed + thread);
                for _ in 0..2000 {
                    let stream = StreamId(1 + random.below(3));
                    let size = SIZES[random.below(SIZES.len() as u64) as usize].min(4 * MIB);
                    if let Ok(block) = rig.try_allocate(size, stream) {
                        exchange.lock().unwrap().push(block);
                    }
                    let mut shared = exchange.lock().unwrap();
                    let count = shared.len() as u64;
                    if count > 20 {
                        let block = shared.swap_remove(random.below(count) as usize);
                        drop(shared);
                        rig.free(block);
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                let snapshot = rig.allocator.snapshot(None, true).unwrap();
                let mut model = Model::default();
                model.follow(&snapshot.device_traces[0]);
                model.assert_within(&snapshot);
            }
        });
    });
    exchange.into_inner().unwrap().into_iter().for_each(|block| rig.free(block));
    let snapshot = rig.allocator.snapshot(None, true).unwrap();
    let mut model = Model::default();
    model.follow(&snapshot.device_traces[0]);
    model.assert_shows(&snapshot);
    rig.finish();
}
