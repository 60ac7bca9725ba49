//! Room in place, the last way before a request fails: it begins in what a live block leaves of its
//! last page, and goes on at addresses that are set free for it. The block is pinned in each test,
//! since what it leaves would else be lent to the request at other addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/mapping_books.rs"]
mod mapping_books;

use common::{A, B, C, GPU, Rig, capacity, config};
use plugalloc::device::Device;
use plugalloc::error::DriverCall;
use plugalloc::units::{Address, Bytes, GRANULE, KIB, MIB};
use plugalloc::{Config, Pin};

/// What the pinned block has; it leaves half a MiB of its last page.
const KEPT: Bytes = 3 * MIB + 512 * KIB;

fn rig(bytes: Bytes, change: impl FnOnce(&mut Config)) -> Rig {
    let short = config(|c| {
        c.max_handle = GRANULE;
        change(c);
    });
    Rig::new(capacity(bytes), short)
}

/// Fails unless the request is served right behind the block, and neither hurts the other.
#[track_caller]
fn goes_on(rig: &Rig, kept: Address, bytes: Bytes) -> Address {
    let length = rig.allocator.block(kept).unwrap().bytes;
    let block = rig.allocate(bytes, A);
    assert_eq!(block, kept + length);
    rig.allocator.is_valid().unwrap();
    rig.fill(kept, 0xaa, length, A);
    rig.fill(block, 0xbb, bytes, A);
    rig.assert_filled(kept, 0xaa, length);
    rig.assert_filled(block, 0xbb, bytes);
    block
}

#[track_caller]
fn finish(rig: Rig, pin: Pin, blocks: impl IntoIterator<Item = Address>) {
    blocks.into_iter().for_each(|block| rig.free(block));
    drop(pin);
    rig.finish();
}

/// A device of 14 MiB, where A has a block up to half a MiB before the tail of its range, and 2 MiB
/// are left.
fn at_the_tail() -> (Rig, [Address; 2], Pin) {
    let rig = rig(14 * MIB, |_| {});
    // Of 70, 36 and 18 MiB of addresses; 10 MiB are had, of which 2 MiB are the tail.
    (1..=3).for_each(|nth| rig.device().fail_nth(DriverCall::Reserve, nth));
    let kept = rig.allocate(7 * MIB + 512 * KIB, A);
    let other = rig.allocate(4 * MIB, B);
    let pin = rig.allocator.pin(kept).unwrap();
    (rig, [kept, other], pin)
}

#[test]
fn a_request_that_would_fail_goes_on_in_the_tail_of_a_range() {
    let (rig, [kept, other], pin) = at_the_tail();
    let block = goes_on(&rig, kept, 2 * MIB + 512 * KIB);
    assert_eq!(rig.ledger().used, 14 * MIB);
    finish(rig, pin, [kept, other, block]);
}

#[test]
fn the_tail_is_left_alone_while_there_is_another_way() {
    let (rig, [kept, other], pin) = at_the_tail();
    let block = rig.allocate(2 * MIB, A);
    assert!(!(kept..kept + 10 * MIB).contains(&block), "in other addresses");
    rig.free(block);
    // Its memory goes where the tail is once nothing else will do.
    let block = goes_on(&rig, kept, 2 * MIB + 256 * KIB);
    finish(rig, pin, [kept, other, block]);
}

#[test]
fn the_tail_of_a_range_is_no_longer_than_it_is() {
    let (rig, [kept, other], pin) = at_the_tail();
    rig.free(other);
    rig.allocator.empty_cache().unwrap();
    // 0.5, 2 and, at other addresses, 4 MiB.
    rig.out_of_memory(6 * MIB + 256 * KIB, A);
    let block = goes_on(&rig, kept, 2 * MIB + 512 * KIB);
    finish(rig, pin, [kept, block]);
}

/// A block of A with 4 MiB behind it that is no memory, at addresses of B; 4 MiB of the device are
/// left.
fn before_a_hole_of_another_heap() -> (Rig, Address, Pin) {
    let rig = rig(8 * MIB, |_| {});
    let (kept, freed) = (rig.allocate(KEPT, A), rig.allocate(4 * MIB + 512 * KIB, A));
    assert_eq!(freed, kept + KEPT);
    let pin = rig.allocator.pin(kept).unwrap();
    rig.free(freed);
    let moved = rig.allocate(4 * MIB, B);
    assert_eq!(moved, kept + 4 * MIB, "B has taken the addresses over");
    rig.free(moved);
    rig.allocator.empty_cache().unwrap();
    assert_eq!(rig.ledger().used, 4 * MIB);
    (rig, kept, pin)
}

#[test]
fn holes_of_other_heaps_change_hands() {
    let (rig, kept, pin) = before_a_hole_of_another_heap();
    let block = goes_on(&rig, kept, 4 * MIB + 512 * KIB);
    rig.free(block);
    // And back again, since nothing lives there.
    let again = rig.allocate(4 * MIB, B);
    rig.fill(again, 0xcc, 4 * MIB, B);
    rig.assert_filled(again, 0xcc, 4 * MIB);
    finish(rig, pin, [kept, again]);
}

/// A block of A with two dormant views behind it, whose handles B has in use; the other 4 MiB of
/// the device are idle on C.
fn before_dormant_views() -> (Rig, [Address; 2], Pin) {
    let rig = rig(16 * MIB, |_| {});
    let (kept, freed) = (rig.allocate(KEPT, A), rig.allocate(4 * MIB + 512 * KIB, A));
    let idle = rig.allocate(4 * MIB, C);
    let pin = rig.allocator.pin(kept).unwrap();
    rig.free(freed);
    let taken = rig.allocate(8 * MIB, B);
    rig.fill(taken, 0xdd, 8 * MIB, B);
    rig.free(idle);
    assert_eq!((rig.ledger().used, rig.ledger().calls(DriverCall::Unmap)), (16 * MIB, 0));
    (rig, [kept, taken], pin)
}

#[test]
fn dormant_views_make_room() {
    let (rig, [kept, taken], pin) = before_dormant_views();
    let block = goes_on(&rig, kept, 4 * MIB + 512 * KIB);
    assert!(rig.ledger().calls(DriverCall::Unmap) >= 2);
    rig.assert_filled(taken, 0xdd, 8 * MIB);
    finish(rig, pin, [kept, taken, block]);
}

#[test]
fn work_that_may_use_dormant_views_is_waited_for() {
    let (rig, [kept, taken], pin) = before_dormant_views();
    rig.device().hold(A).unwrap();
    rig.fill(kept, 0x11, KEPT, A);
    let error = rig.try_allocate(4 * MIB + 512 * KIB, A).unwrap_err().to_string();
    assert!(error.contains("would wait for ever"), "{error}");
    assert_eq!(rig.ledger().calls(DriverCall::Unmap), 0);
    rig.device().resume(A).unwrap();
    let block = goes_on(&rig, kept, 4 * MIB + 512 * KIB);
    finish(rig, pin, [kept, taken, block]);
}

#[test]
fn no_dormant_view_is_unmapped_in_a_capture() {
    let (rig, [kept, taken], pin) = before_dormant_views();
    rig.allocator.mark_capture_begin(GPU).unwrap();
    rig.out_of_memory(4 * MIB + 512 * KIB, A);
    assert_eq!(rig.ledger().calls(DriverCall::Unmap), 0);
    rig.allocator.mark_capture_end(GPU).unwrap();
    // One stream that is captured keeps its own, though its work is not known to be a capture's.
    rig.device().capture_begin(A).unwrap();
    rig.out_of_memory(4 * MIB + 512 * KIB, A);
    rig.device().capture_end(A).unwrap();
    let block = goes_on(&rig, kept, 4 * MIB + 512 * KIB);
    finish(rig, pin, [kept, taken, block]);
}

#[test]
fn observers_are_told_before_dormant_views_make_room() {
    let (rig, [kept, taken], pin) = before_dormant_views();
    let seen = mapping_books::observe(&rig.allocator, &rig.device());
    let block = goes_on(&rig, kept, 4 * MIB + 512 * KIB);
    assert!(seen.lock().unmapped >= 2 && seen.lock().covers(block, 4 * MIB + 512 * KIB));
    finish(rig, pin, [kept, taken, block]);
    assert!(seen.lock().spans.is_empty());
}

#[test]
fn nothing_is_unmapped_for_what_cannot_be_served() {
    let (rig, [kept, taken], pin) = before_dormant_views();
    let before = rig.ledger();
    rig.out_of_memory(6 * MIB, A);
    let calls = |call| rig.ledger().calls(call) - before.calls(call);
    assert_eq!((calls(DriverCall::Unmap), calls(DriverCall::Release)), (0, 0));
    finish(rig, pin, [kept, taken]);
}

#[test]
fn idle_memory_that_cannot_change_streams_goes_back_to_the_device_first() {
    let rig = rig(8 * MIB, |_| {});
    let (kept, idle) = (rig.allocate(KEPT, A), rig.allocate(4 * MIB, C));
    let pin = rig.allocator.pin(kept).unwrap();
    rig.free(idle);
    rig.device().capture_begin(A).unwrap();
    let block = rig.allocate(4 * MIB + 512 * KIB, A);
    assert_eq!(block, kept + KEPT);
    assert_eq!(rig.ledger().calls(DriverCall::Release), 2);
    rig.device().capture_end(A).unwrap();
    finish(rig, pin, [kept, block]);
}

#[test]
fn without_steal_what_is_idle_on_other_streams_stays_theirs() {
    let rig = rig(16 * MIB, |c| c.steal = false);
    let blocks = [23, 9, 23, 9, 23, 9].map(|parts| rig.allocate(parts * 128 * KIB, A));
    let pins = blocks.map(|block| rig.allocator.pin(block).unwrap());
    [blocks[1], blocks[5]].into_iter().for_each(|block| rig.free(block));
    let idle = rig.allocate(4 * MIB, C);
    rig.free(idle);
    // A has as much, in two places.
    rig.out_of_memory(2 * MIB, A);
    assert_eq!(rig.ledger().used, 16 * MIB, "C keeps what it has");
    assert_eq!(rig.allocate(4 * MIB, C), idle);
    [0, 2, 3, 4].into_iter().for_each(|at| rig.free(blocks[at]));
    rig.free(idle);
    drop(pins);
    rig.finish();
}
