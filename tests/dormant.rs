//! Memory that moved away leaves its old mapping behind, to be woken for nothing; but not without
//! end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, C, Random, Rig, capacity, config};
use plugalloc::error::DriverCall;
use plugalloc::units::{Address, MIB, StreamId};

/// Blocks of random sizes on three streams, so many that memory moves with nearly each request.
fn churn(rig: &Rig, random: &mut Random, steps: u32) -> Vec<Address> {
    let mut live: Vec<Address> = Vec::new();
    for step in 0..steps {
        // There is time for everything.
        rig.allocator.clock().set_us(u64::from(step) * 1_000_000);
        if live.len() >= 7 {
            rig.free(live.swap_remove(random.below(7) as usize));
        }
        let stream: StreamId = [A, B, C][random.below(3) as usize];
        live.push(rig.allocate(2 * MIB + random.below(15 * MIB), stream));
    }
    live
}

#[test]
fn old_mappings_are_bounded() {
    let mut random = Random::new(Random::seed(5));
    let rig = Rig::new(capacity(256 * MIB), config(|config| config.max_handle = 2 * MIB));
    let live = churn(&rig, &mut random, 20_000);
    let ledger = rig.ledger();
    let mapped = ledger.calls(DriverCall::Map) - ledger.calls(DriverCall::Unmap);
    // Handles are 2 MiB long; one request may add some before the next look.
    let handles = ledger.used / (2 * MIB);
    assert!(ledger.calls(DriverCall::Map) > 8000, "memory moves: {ledger:?}");
    assert!(mapped <= 2048 + 9 * handles + 64, "{mapped} mappings of {handles} handles");
    live.into_iter().for_each(|block| rig.free(block));
    rig.finish();
}

#[test]
fn what_queued_work_may_use_stays_mapped() {
    let mut random = Random::new(Random::seed(6));
    let rig = Rig::new(capacity(128 * MIB), config(|config| config.max_handle = 2 * MIB));
    let block = rig.allocate(2 * MIB, A);
    for stream in [A, B, C] {
        rig.device().hold(stream).unwrap();
    }
    rig.fill(block, 7, 2 * MIB, A);
    rig.free(block);
    let live = churn(&rig, &mut random, 20_000);
    let ledger = rig.ledger();
    assert!(ledger.calls(DriverCall::Map) > 8000, "memory moves: {ledger:?}");
    assert_eq!(ledger.calls(DriverCall::Unmap), 0, "a stream may still use any of it");
    for stream in [A, B, C] {
        rig.device().resume(stream).unwrap();
    }
    live.into_iter().for_each(|block| rig.free(block));
    rig.finish();
}
