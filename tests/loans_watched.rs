//! Loans together with whoever looks at memory from outside: observers of mappings, pins, histories
//! and snapshots.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/history_model.rs"]
mod history_model;
#[path = "common/mapping_books.rs"]
mod mapping_books;

use std::sync::Arc;

use common::{A, B, C, Random, Rig, capacity, config, two_blocks};
use history_model::Model;
use mapping_books::{Seen, observe};
use parking_lot::Mutex;
use plugalloc::error::DriverCall;
use plugalloc::observe::{Action, HistoryOptions, TraceEntry};
use plugalloc::units::{Address, Bytes, GRANULE, KIB, MIB};

/// What a request for this takes in the 8 MiB of `two_blocks`: two handles and a part of another.
const BORROWED: Bytes = 5632 * KIB;

#[test]
fn observers_know_of_borrowed_memory_until_it_is_given_back() {
    let (rig, [kept, freed]) = two_blocks();
    let early = observe(&rig.allocator, &rig.device());
    rig.free(freed);
    let borrowed = rig.allocate(BORROWED, B);
    assert!(early.lock().covers(borrowed, BORROWED));
    let late = observe(&rig.allocator, &rig.device());
    for seen in [&early, &late] {
        let seen = seen.lock();
        assert!(seen.covers(borrowed, BORROWED) && seen.covers(kept, 2560 * KIB));
        // Four handles, one of which is mapped at two places.
        assert_eq!(seen.spans.len(), 5);
    }
    rig.free(borrowed);
    rig.allocator.empty_cache().unwrap();
    for seen in [&early, &late] {
        // Two handles, and the old mapping of one of them.
        assert_eq!(seen.lock().spans.len(), 3);
        assert!(seen.lock().covers(kept, 2560 * KIB));
    }
    // What was borrowed is the lender's again, and may be borrowed once more.
    let again = rig.allocate(1536 * KIB, A);
    rig.free(again);
    let borrowed = rig.allocate(BORROWED, B);
    assert!(early.lock().covers(borrowed, BORROWED) && late.lock().covers(borrowed, BORROWED));
    [kept, borrowed].into_iter().for_each(|block| rig.free(block));
    rig.finish();
    assert!(early.lock().spans.is_empty() && late.lock().spans.is_empty());
}

#[test]
fn what_lends_and_what_borrows_stays_in_place_while_it_is_pinned() {
    for pin_borrower in [false, true] {
        let (rig, [kept, freed]) = two_blocks();
        rig.free(freed);
        let borrowed = rig.allocate(BORROWED, B);
        let (pinned, bytes) = if pin_borrower { (borrowed, BORROWED) } else { (kept, 2560 * KIB) };
        let pin = rig.allocator.pin(pinned).unwrap();
        assert!(pin.address() <= pinned && pinned + bytes <= pin.address() + pin.bytes());
        [kept, borrowed].into_iter().for_each(|block| rig.free(block));
        rig.allocator.empty_cache().unwrap();
        rig.allocator.is_valid().unwrap();
        assert_eq!(rig.ledger().used, pin.bytes());
        // What a network card writes there now is seen in no memory of others.
        let others = rig.allocate(8 * MIB - pin.bytes(), C);
        rig.fill(others, 0xcc, 8 * MIB - pin.bytes(), C);
        rig.fill(pinned, 0x11, bytes, C);
        rig.assert_filled(others, 0xcc, 8 * MIB - pin.bytes());
        rig.assert_filled(pinned, 0x11, bytes);
        rig.free(others);
        drop(pin);
        let all = rig.allocate(8 * MIB, C);
        rig.free(all);
        rig.finish();
    }
}

#[test]
fn pinned_memory_lends_nothing_and_what_was_pinned_does() {
    let (rig, [kept, freed]) = two_blocks();
    rig.free(freed);
    let pin = rig.allocator.pin(kept).unwrap();
    rig.out_of_memory(BORROWED, B);
    rig.allocator.is_valid().unwrap();
    drop(pin);
    let borrowed = rig.allocate(BORROWED, B);
    [kept, borrowed].into_iter().for_each(|block| rig.free(block));
    rig.finish();
}

fn trace(rig: &Rig) -> Vec<TraceEntry> {
    rig.allocator.snapshot(None, true).unwrap().device_traces.remove(0)
}

fn record(rig: &Rig) {
    let options = HistoryOptions { max_entries: 1 << 20, ..HistoryOptions::default() };
    rig.allocator.record_history(&options).unwrap();
}

#[test]
fn a_loan_is_memory_that_goes_from_the_lender_to_the_borrower_and_back() {
    let rig = Rig::new(capacity(8 * MIB), config(|c| c.max_handle = GRANULE));
    record(&rig);
    let mut model = Model::default();
    let mut follow = |rig: &Rig| {
        model.follow(&trace(rig));
        model.assert_shows(&rig.allocator.snapshot(None, false).unwrap());
    };
    let [kept, freed] = [rig.allocate(2560 * KIB, A), rig.allocate(1536 * KIB, A)];
    rig.free(freed);
    let start = trace(&rig).len();
    let borrowed = rig.allocate(BORROWED, B);
    follow(&rig);
    let parts = |from: usize| {
        let parts = trace(&rig).into_iter().skip(from).filter(|entry| entry.bytes % GRANULE != 0);
        let moves =
            parts.filter(|entry| matches!(entry.action, Action::SegmentMap | Action::SegmentUnmap));
        moves.map(|e| (e.action, e.stream, e.address, e.bytes)).collect::<Vec<_>>()
    };
    let (length, lent) = (1536 * KIB, parts(start));
    assert_eq!(lent[0], (Action::SegmentUnmap, A, freed, length));
    assert_eq!((lent[1].0, lent[1].1, lent[1].3), (Action::SegmentMap, B, length));
    assert_eq!(lent.len(), 2);
    let at = lent[1].2;
    assert!(borrowed <= at && at + length <= borrowed + BORROWED);
    let start = trace(&rig).len();
    rig.free(borrowed);
    let all = rig.allocate(5632 * KIB, A);
    follow(&rig);
    let back = [(Action::SegmentUnmap, B, at, length), (Action::SegmentMap, A, freed, length)];
    assert_eq!(parts(start), back);
    [kept, all].into_iter().for_each(|block| rig.free(block));
    follow(&rig);
    rig.finish();
}

/// Faults of the driver, of which some leave a handle mapped that is of no use.
fn fail_something(rig: &Rig, random: &mut Random) {
    let device = rig.device();
    match random.below(6) {
        0 => device.fail_nth(DriverCall::Map, 1 + random.below(3)),
        1 => device.fail_nth(DriverCall::Unmap, 1 + random.below(3)),
        2 => {
            device.fail_nth(DriverCall::SetAccess, 1 + random.below(3));
            device.fail_nth(DriverCall::Unmap, 1);
        }
        _ => {}
    }
}

/// Random blocks of three streams in less memory than they would like, with observers that come
/// later, and with a history. Gives how many loans were made.
fn watched_load(seed: u64, faults: bool) -> usize {
    let mut random = Random::new(seed);
    let rig = Rig::new(capacity((12 + random.below(12)) * MIB), config(|c| c.max_handle = GRANULE));
    rig.allocator.clock().set_us(0);
    record(&rig);
    let (mut model, mut live) = (Model::default(), Vec::<(Address, Bytes)>::new());
    let mut observers = vec![observe(&rig.allocator, &rig.device())];
    for step in 0..300 {
        rig.allocator.clock().set_us(step * 10_000);
        if faults {
            fail_something(&rig, &mut random);
        }
        if random.below(5) < 3 {
            let (least, most) = [(0, MIB), (MIB, 6 * MIB)][random.below(2) as usize];
            let (bytes, stream) =
                (1 + least + random.below(most), [A, B, C][random.below(3) as usize]);
            match rig.try_allocate(bytes, stream) {
                Ok(block) => {
                    let told = |seen: &Arc<Mutex<Seen>>| seen.lock().covers(block, bytes);
                    assert!(observers.iter().all(told), "step {step}: {bytes} at {block:#x}");
                    live.push((block, bytes));
                }
                Err(error) => assert!(faults || error.is_out_of_memory(), "{error}"),
            }
        } else if !live.is_empty() {
            let (block, _) = live.swap_remove(random.below(live.len() as u64) as usize);
            rig.free(block);
        }
        if step % 50 == 49 {
            let emptied = rig.allocator.empty_cache();
            assert!(faults || emptied.is_ok(), "{emptied:?}");
            observers.push(observe(&rig.allocator, &rig.device()));
        }
        rig.device().clear_faults();
        if step % 10 == 0 {
            rig.allocator.is_valid().unwrap();
            model.follow(&trace(&rig));
            model.assert_shows(&rig.allocator.snapshot(None, false).unwrap());
        }
    }
    let events = trace(&rig);
    model.follow(&events);
    live.into_iter().for_each(|(block, _)| rig.free(block));
    rig.finish();
    for seen in observers {
        assert!(seen.lock().spans.is_empty(), "{:?}", seen.lock().spans);
    }
    let maps = events.iter().filter(|entry| entry.action == Action::SegmentMap);
    maps.filter(|entry| entry.bytes % GRANULE != 0).count()
}

#[test]
fn observers_and_histories_are_right_while_memory_is_lent() {
    let seed = Random::seed(61);
    let loans: usize = (0..16).map(|case| watched_load(seed + case, case % 2 == 1)).sum();
    assert!(loans > 40, "only {loans} loans were made");
    println!("{loans} loans");
}
