//! Histories and snapshots over user functions: what is recorded fits what there is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::Random;
use plugalloc::observe::{
    Action, BlockState, Context, HistoryOptions, RecordContext, TraceEntry, pop_compile_context,
    push_compile_context,
};
use plugalloc::units::MIB;
use plugalloc::{Address, Bytes, DeviceId, Error, PluggableAllocator, StreamId};

const A: StreamId = StreamId(0x10);
const GPU: DeviceId = DeviceId(0);

/// A source that never gives an address twice.
fn numbers() -> PluggableAllocator {
    let next = AtomicU64::new(0x1000);
    let give = move |bytes: Bytes, _: DeviceId, _: StreamId| {
        Ok(next.fetch_add(bytes.max(1), Ordering::Relaxed))
    };
    PluggableAllocator::new(give, |_, _, _, _| ())
}

fn record(allocator: &PluggableAllocator, max_entries: usize) {
    let options = HistoryOptions { max_entries, ..HistoryOptions::default() };
    allocator.record_history(&options).unwrap();
}

fn actions(entries: &[TraceEntry]) -> Vec<Action> {
    entries.iter().map(|entry| entry.action).collect()
}

/// Nothing is live, and nothing is said to be.
fn finish(allocator: &PluggableAllocator) {
    assert!(allocator.snapshot(false).unwrap().segments.is_empty());
    for device in 0..2 {
        let statistics = allocator.statistics(DeviceId(device)).unwrap();
        assert_eq!(statistics.allocated_bytes.all.current, 0);
    }
}

#[test]
fn an_allocation_is_a_segment_that_comes_and_goes() {
    let allocator = numbers();
    record(&allocator, 100);
    let block = allocator.allocate(GPU, 1000, A).unwrap();
    allocator.free(block).unwrap();
    let trace = allocator.snapshot(true).unwrap().device_traces.remove(0);
    let expected = [
        Action::SegmentAlloc,
        Action::Alloc,
        Action::FreeRequested,
        Action::FreeCompleted,
        Action::SegmentFree,
    ];
    assert_eq!(actions(&trace), expected);
    for entry in &trace {
        let place = (entry.device, entry.address, entry.bytes, entry.stream);
        assert_eq!(place, (GPU, block, 1000, A));
    }
    assert_eq!(
        actions(&allocator.snapshot(true).unwrap().device_traces[0]).last(),
        Some(&Action::Snapshot)
    );
    allocator.stop_history().unwrap();
    assert!(allocator.snapshot(true).unwrap().device_traces[0].is_empty());
    finish(&allocator);
}

#[test]
fn a_tracker_that_calls_the_allocator_is_refused() {
    let allocator = Arc::new(numbers());
    let block = allocator.allocate(GPU, 1000, A).unwrap();
    let itself = Arc::downgrade(&allocator);
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    allocator
        .track_events(move |_| {
            let allocator = itself.upgrade().unwrap();
            let answers =
                [allocator.allocate(DeviceId(1), 1000, A).map(drop), allocator.free(block)];
            log.lock().unwrap().extend(answers.map(|answer| answer.unwrap_err().to_string()));
        })
        .unwrap();
    allocator.free(block).unwrap();
    let texts = told.lock().unwrap().clone();
    assert!(!texts.is_empty());
    for text in texts {
        assert!(text.starts_with("calling the allocator is not supported by a trace tracker"));
    }
    finish(&allocator);
}

#[test]
fn a_free_is_recorded_before_the_function_has_the_memory() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let at_free = Arc::clone(&seen);
    let allocator = PluggableAllocator::new(
        |_, _, _| Ok(0x1000),
        move |_, _, _, _| {
            let last = at_free.lock().unwrap().last().copied();
            assert_eq!(last, Some(Action::SegmentFree));
        },
    );
    let events = Arc::clone(&seen);
    allocator.track_events(move |event| events.lock().unwrap().push(event.action)).unwrap();
    let block = allocator.allocate(GPU, 1000, A).unwrap();
    allocator.free(block).unwrap();
    assert_eq!(seen.lock().unwrap().len(), 5);
    finish(&allocator);
}

#[test]
fn a_snapshot_has_all_that_is_live_and_adds_up() {
    let allocator = numbers();
    let second = DeviceId(1);
    let late = allocator.allocate(second, 2 * MIB, A).unwrap();
    let blocks =
        [512, MIB, MIB + 1].map(|bytes| (allocator.allocate(GPU, bytes, A).unwrap(), bytes));
    let snapshot = allocator.snapshot(false).unwrap();
    let found: Vec<_> = snapshot
        .segments
        .iter()
        .map(|segment| (segment.device, segment.address, segment.total, segment.is_large))
        .collect();
    let on_first = blocks.map(|(at, bytes)| (GPU, at, bytes, bytes > MIB));
    assert_eq!(found[..3], on_first);
    assert_eq!(found[3], (second, late, 2 * MIB, true));
    for segment in &snapshot.segments {
        let [block] = &segment.blocks[..] else { panic!("{segment:?}") };
        assert_eq!(block.state, BlockState::ActiveAllocated);
        let sums = [segment.total, segment.allocated, segment.active, segment.requested];
        assert_eq!(sums, [block.bytes; 4]);
    }
    let reserved: Bytes = snapshot.segments[..3].iter().map(|segment| segment.total).sum();
    let statistics = allocator.statistics(GPU).unwrap();
    assert_eq!(statistics.reserved_bytes.all.current as Bytes, reserved);
    // The one on the other device is the oldest.
    let ages: Vec<_> = snapshot.segments.iter().map(|s| s.registration_counter).collect();
    assert_eq!(ages, [1, 2, 3, 0]);
    assert_eq!(snapshot.device_traces.len(), 2);
    assert!(String::from_utf8_lossy(&snapshot.to_pickle(None)).contains("segments"));
    blocks.iter().for_each(|(at, _)| allocator.free(*at).unwrap());
    allocator.free(late).unwrap();
    finish(&allocator);
}

#[test]
fn contexts_are_gathered_as_far_as_wanted() {
    let allocator = numbers();
    let source = |count: &Arc<AtomicUsize>| {
        let count = Arc::clone(count);
        let gather = move || -> Option<Context> {
            Some(Arc::new(count.fetch_add(1, Ordering::Relaxed) + 1))
        };
        Some(Arc::new(gather) as plugalloc::observe::ContextSource)
    };
    let number = |context: Option<Context>| {
        context.and_then(|context| context.downcast_ref::<usize>().copied())
    };
    for (when, kept) in [
        (RecordContext::State, [None, None]),
        (RecordContext::Alloc, [Some(1), Some(1)]),
        (RecordContext::All, [Some(1), Some(2)]),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let source = source(&count);
        let options = HistoryOptions { max_entries: 9, when, source, clear: true, skip: vec![] };
        allocator.record_history(&options).unwrap();
        push_compile_context("region");
        let block = allocator.allocate(GPU, 8, A).unwrap();
        pop_compile_context();
        assert_eq!(number(allocator.context_of(block).unwrap()), Some(1));
        let snapshot = allocator.snapshot(true).unwrap();
        assert_eq!(number(snapshot.segments[0].blocks[0].context.clone()), Some(1));
        allocator.free(block).unwrap();
        assert_eq!(number(allocator.context_of(block).unwrap()), None);
        let trace = allocator.snapshot(true).unwrap().device_traces.remove(0);
        let of = |action| trace.iter().find(|entry| entry.action == action).unwrap();
        let found = [Action::Alloc, Action::FreeRequested].map(|a| number(of(a).context.clone()));
        assert_eq!(found, kept, "{when:?}");
        assert_eq!(of(Action::Alloc).compile_context.as_deref(), Some("region"));
    }
    let none = HistoryOptions { when: RecordContext::All, ..HistoryOptions::default() };
    assert!(matches!(allocator.record_history(&none), Err(Error::InvalidArgument { .. })));
    finish(&allocator);
}

#[test]
fn trackers_are_told_of_devices_that_are_used_later_too() {
    let allocator = numbers();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    allocator
        .track_events(move |event| events.lock().unwrap().push((event.device, event.action)))
        .unwrap();
    let options =
        HistoryOptions { max_entries: 9, skip: vec![Action::Alloc], ..HistoryOptions::default() };
    allocator.record_history(&options).unwrap();
    assert!(allocator.is_history_enabled());
    let device = DeviceId(1);
    let block = allocator.allocate(device, 8, A).unwrap();
    allocator.record_annotation(device, &[("step".to_owned(), "7".to_owned())]).unwrap();
    let told = vec![(device, Action::SegmentAlloc), (device, Action::Alloc)];
    assert_eq!(*seen.lock().unwrap(), told);
    let snapshot = allocator.snapshot(true).unwrap();
    assert_eq!(actions(&snapshot.device_traces[1]), [Action::SegmentAlloc]);
    assert_eq!(snapshot.annotations[0].device, device);
    allocator.stop_history().unwrap();
    assert!(!allocator.is_history_enabled());
    allocator.free(block).unwrap();
    assert_eq!(seen.lock().unwrap().last(), Some(&(device, Action::SegmentFree)));
    assert!(allocator.record_annotation(DeviceId(-1), &[]).is_err());
    finish(&allocator);
}

#[test]
fn a_request_that_fails_is_told() {
    let allocator = PluggableAllocator::new(|_, _, _| Ok(0), |_, _, _, _| ());
    record(&allocator, 9);
    let told = Arc::new(Mutex::new(Vec::new()));
    let observed = Arc::clone(&told);
    allocator.observe_out_of_memory(move |event| {
        let report = event.report;
        observed.lock().unwrap().push((report.requested, report.device, event.at_limit));
    });
    assert!(matches!(allocator.allocate(GPU, 640, A), Err(Error::OutOfMemory(_))));
    assert_eq!(*told.lock().unwrap(), [(640, 0, false)]);
    let trace = allocator.snapshot(true).unwrap().device_traces.remove(0);
    assert_eq!(actions(&trace), [Action::OutOfMemory]);
    assert_eq!((trace[0].bytes, trace[0].stream), (640, A));
    // Nothing fails where nothing was asked for.
    assert_eq!(allocator.allocate(GPU, 0, A).unwrap(), 0);
    assert_eq!(told.lock().unwrap().len(), 1);
    finish(&allocator);
}

/// What is live after some events; each has to fit those before it.
fn after(entries: &[TraceEntry]) -> BTreeMap<Address, Bytes> {
    let mut live = BTreeMap::new();
    for entry in entries {
        match entry.action {
            Action::Alloc => assert_eq!(live.insert(entry.address, entry.bytes), None, "{entry:?}"),
            Action::FreeCompleted => {
                assert_eq!(live.remove(&entry.address), Some(entry.bytes), "{entry:?}");
            }
            _ => {}
        }
    }
    live
}

/// Several threads are given the same addresses again and again: what is recorded of each address
/// is in order all the same, and what is live is what the events say.
#[test]
fn events_are_in_order_however_many_threads_there_are() {
    let seed = Random::seed(7);
    let places: Arc<Mutex<Vec<Address>>> =
        Arc::new(Mutex::new((1..=16).map(|k| k * 0x1000).collect()));
    let (from, to) = (Arc::clone(&places), Arc::clone(&places));
    let allocator = Arc::new(PluggableAllocator::new(
        move |_, _, _| Ok(from.lock().unwrap().pop().unwrap_or(0)),
        move |address, _, _, _| to.lock().unwrap().push(address),
    ));
    record(&allocator, 1_000_000);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let allocator = Arc::clone(&allocator);
            scope.spawn(move || {
                let mut random = Random::new(seed + thread);
                let mut mine = Vec::new();
                for _ in 0..3000 {
                    if mine.len() < 4 && (mine.is_empty() || random.below(2) == 0) {
                        mine.push(allocator.allocate(GPU, 1 + random.below(4096), A).unwrap());
                    } else {
                        let one = mine.swap_remove(random.below(mine.len() as u64) as usize);
                        allocator.free(one).unwrap();
                    }
                    if random.below(500) == 0 {
                        let snapshot = allocator.snapshot(true).unwrap();
                        let live: BTreeMap<_, _> =
                            snapshot.segments.iter().map(|s| (s.address, s.total)).collect();
                        assert_eq!(after(&snapshot.device_traces[0]), live);
                    }
                }
                mine.into_iter().for_each(|one| allocator.free(one).unwrap());
            });
        }
    });
    assert!(after(&allocator.snapshot(true).unwrap().device_traces[0]).is_empty());
    finish(&allocator);
}
