//! Idle memory that queued work may still use stays with its stream while anything else will do;
//! what has been idle for longer passes to other streams, which wait for nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, Rig};
use plugalloc::units::MIB;

#[test]
fn what_queued_work_uses_is_left_to_its_stream() {
    let rig = Rig::of(1024 * MIB);
    let [rest, first] = [(B, 600), (A, 20)].map(|(on, mib)| rig.allocate(mib * MIB, on));
    rig.device().hold(A).unwrap();
    rig.fill(first, 1, 20 * MIB, A);
    rig.free(first);
    let second = rig.allocate(20 * MIB, B);
    rig.fill(second, 2, 20 * MIB, B);
    rig.assert_filled(second, 2, 20 * MIB);
    assert_eq!(rig.statistics().reserved_bytes.all.current as u64, 640 * MIB);
    // Another 20 MiB would be more than a twentieth above what was ever live: this waits.
    rig.free(second);
    let third = rig.allocate(38 * MIB, B);
    rig.fill(third, 3, 38 * MIB, B);
    rig.device().resume(A).unwrap();
    rig.assert_filled(third, 3, 38 * MIB);
    assert_eq!(rig.statistics().reserved_bytes.all.current as u64, 640 * MIB);
    [rest, third].into_iter().for_each(|block| rig.free(block));
    rig.finish();
}

#[test]
fn it_is_taken_before_a_request_fails() {
    let rig = Rig::of(32 * MIB);
    let first = rig.allocate(20 * MIB, A);
    rig.device().hold(A).unwrap();
    rig.fill(first, 1, 20 * MIB, A);
    rig.free(first);
    let second = rig.allocate(20 * MIB, B);
    rig.fill(second, 2, 20 * MIB, B);
    rig.device().resume(A).unwrap();
    rig.assert_filled(second, 2, 20 * MIB);
    assert_eq!(rig.statistics().num_alloc_retries, 0, "nothing was waited for");
    rig.free(second);
    rig.finish();
}

#[test]
fn what_has_been_idle_for_longer_passes_without_waiting() {
    let rig = Rig::of(256 * MIB);
    let busy = rig.allocate(4 * MIB, A);
    let [first, last] = [20, 6].map(|mib| rig.allocate(mib * MIB, A));
    // The last one is kept aside, the first is not.
    rig.free(first);
    rig.free(last);
    // A look at what stream A has idle, which has run all of its work.
    let small = rig.allocate(3 * MIB, B);
    rig.device().hold(A).unwrap();
    rig.fill(busy, 1, 4 * MIB, A);
    let reserved = rig.statistics().reserved_bytes.all.current;
    let large = rig.allocate(12 * MIB, B);
    rig.fill(large, 2, 12 * MIB, B);
    rig.assert_filled(large, 2, 12 * MIB);
    assert_eq!(rig.statistics().reserved_bytes.all.current, reserved);
    rig.device().resume(A).unwrap();
    [busy, small, large].into_iter().for_each(|block| rig.free(block));
    rig.finish();
}
