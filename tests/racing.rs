//! Threads that take each other's idle memory all the time: who loses a race is not out of memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::thread;

use common::{Random, Rig};
use plugalloc::units::{Bytes, GIB, KIB, StreamId};

const THREADS: u64 = 4;

/// Replaces random blocks of a live set: the memory in use goes up and down, and with it what
/// others may take.
fn churn(rig: &Rig, random: &mut Random, stream: StreamId) {
    let size = |random: &mut Random| {
        let power: Bytes = KIB << random.below(10);
        power + random.below(power)
    };
    let mut live: Vec<u64> =
        (0..48).map(|_| rig.try_allocate(size(random), stream).unwrap()).collect();
    for _ in 0..60_000 {
        let place = random.below(48) as usize;
        rig.free(live[place]);
        live[place] = rig.try_allocate(size(random), stream).expect("the device has plenty");
    }
    live.into_iter().for_each(|block| rig.free(block));
}

#[test]
fn a_thread_that_loses_a_race_for_idle_memory_is_served_all_the_same() {
    for round in 0..2 {
        let rig = Rig::of(GIB);
        // So late that moving memory is always worth its time: nobody gets more instead.
        rig.allocator.clock().set_us(1 << 50);
        thread::scope(|scope| {
            for k in 0..THREADS {
                let rig = &rig;
                scope.spawn(move || {
                    let mut random = Random::new(1 + round * THREADS + k);
                    churn(rig, &mut random, StreamId(0x1000 + k * 64));
                });
            }
        });
        assert_eq!(rig.statistics().num_ooms, 0);
        rig.finish();
    }
}
