//! Threads on one stream: what each has cached is there for all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Barrier;
use std::thread;

use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{KIB, MIB};
use plugalloc::{Allocator, Config, DeviceId, StreamId};

const GPU: DeviceId = DeviceId(0);
const STREAM: StreamId = StreamId(64);
const CAPACITY: u64 = 512 * MIB;

/// Allocates and frees all the time, of sizes that differ from thread to thread.
fn churn(allocator: &Allocator, thread: u64) {
    for round in 0..400 {
        let size = |k: u64| (1 + (thread * 7 + round * 3 + k * 5) % 40) * 48 * KIB;
        let blocks: Vec<u64> =
            (0..6).map(|k| allocator.allocate(GPU, size(k), STREAM).unwrap()).collect();
        blocks.into_iter().for_each(|block| allocator.free(block).unwrap());
    }
}

/// After many threads have cached memory on one stream, each of these streams gets all of it.
fn take_what_sleeping_threads_cached(config: Config, streams: &[StreamId]) {
    let options = SimOptions { capacity: CAPACITY, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let allocator = Allocator::new(machine.as_devices(), config).unwrap();
    let (cached, done) = (Barrier::new(17), Barrier::new(17));
    thread::scope(|scope| {
        for thread in 0..16 {
            let (allocator, cached, done) = (&allocator, &cached, &done);
            scope.spawn(move || {
                churn(allocator, thread);
                cached.wait();
                done.wait();
            });
        }
        cached.wait();
        // The sixteen have freed everything and sleep. All of the device is there for one request,
        // on their stream as well as on another.
        assert!(machine.device(0).ledger().used > 0, "something was cached");
        for &stream in streams {
            let all = allocator.allocate(GPU, CAPACITY, stream).unwrap();
            allocator.free(all).unwrap();
        }
        done.wait();
    });
    allocator.is_quiescent().unwrap();
    allocator.empty_cache().unwrap();
    assert_eq!(machine.device(0).ledger().used, 0);
}

#[test]
fn sleeping_threads_hide_no_memory_from_another() {
    take_what_sleeping_threads_cached(Config::default(), &[STREAM, StreamId(128)]);
}

#[test]
fn lanes_of_one_stream_share_memory_also_where_stealing_is_off() {
    let mut config = Config::default();
    config.steal = false;
    take_what_sleeping_threads_cached(config, &[STREAM]);
}
