//! Threads that allocate and free at the same time, on streams of their own and on shared ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{A, GPU, Random, Rig, capacity, config, plain};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::units::{Address, Bytes, GIB, KIB, MIB, StreamId};

const THREADS: u64 = 8;

/// A block on its way between threads, with the value in its first bytes.
#[derive(Clone, Copy)]
struct Parcel {
    address: Address,
    bytes: Bytes,
    value: u8,
}

impl Parcel {
    fn written(&self) -> Bytes {
        self.bytes.min(256)
    }
}

/// What the threads share.
struct Yard {
    rig: Rig,
    parcels: Mutex<Vec<Parcel>>,
    failures: AtomicU64,
}

impl Yard {
    fn new(options: SimOptions, config: Config) -> Yard {
        let rig = Rig::new(options, config);
        Yard { rig, parcels: Mutex::new(Vec::new()), failures: AtomicU64::new(0) }
    }

    /// Allocates, and leaves the block for anyone to free.
    fn send(&self, bytes: Bytes, value: u8, stream: StreamId) {
        match self.rig.try_allocate(bytes, stream) {
            Ok(address) => {
                let parcel = Parcel { address, bytes, value };
                self.rig.fill(address, value, parcel.written(), stream);
                self.parcels.lock().unwrap().push(parcel);
            }
            Err(error) => {
                assert!(error.is_out_of_memory(), "{error}");
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Frees a block of anyone.
    fn receive(&self, at: u64, user: Option<StreamId>) {
        let parcel = {
            let mut parcels = self.parcels.lock().unwrap();
            let at = at as usize % parcels.len().max(1);
            if parcels.is_empty() {
                return;
            }
            parcels.swap_remove(at)
        };
        self.rig.assert_filled(parcel.address, parcel.value, parcel.written());
        if let Some(user) = user {
            self.rig.allocator.record_stream(parcel.address, user).unwrap();
        }
        self.rig.free(parcel.address);
    }

    fn work(&self, thread: u64, seed: u64, steps: u64, largest: Bytes) {
        let mut random = Random::new(seed * THREADS + thread);
        for _ in 0..steps {
            // Its own stream, or one of two that all share.
            let stream = StreamId([100 + thread, 1, 2][random.below(3) as usize]);
            match random.below(100) {
                0..48 => self.send(random.size(largest), random.next() as u8, stream),
                48..80 => self.receive(random.next(), None),
                80..95 => self.receive(random.next(), Some(stream)),
                95 => self.rig.allocator.empty_cache().unwrap(),
                96 => self.rig.allocator.process_events().unwrap(),
                97 => self.rig.allocator.is_valid().unwrap(),
                98 => drop(self.rig.allocator.largest_free_block(GPU).unwrap()),
                _ => {
                    let found = self.rig.statistics();
                    let bytes = found.allocated_bytes.all;
                    assert_eq!(bytes.current, bytes.allocated - bytes.freed);
                    assert!(bytes.peak >= bytes.current);
                }
            }
        }
    }

    fn run(&self, seed: u64, steps: u64, largest: Bytes) {
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || self.work(thread, seed, steps, largest));
            }
        });
        self.rig.allocator.is_valid().unwrap();
    }

    fn finish(self) {
        for parcel in self.parcels.into_inner().unwrap() {
            self.rig.assert_filled(parcel.address, parcel.value, parcel.written());
            self.rig.free(parcel.address);
        }
        self.rig.finish();
    }
}

#[test]
fn blocks_pass_between_threads_and_streams() {
    let seed = Random::seed(21);
    for options in [capacity(8 * GIB), plain(8 * GIB)] {
        let yard = Yard::new(options, Config::default());
        yard.run(seed, 600, 8 * MIB);
        assert_eq!(yard.failures.load(Ordering::Relaxed), 0);
        yard.finish();
    }
}

#[test]
fn threads_share_a_device_that_is_too_small() {
    let seed = Random::seed(22);
    for options in [capacity(64 * MIB), plain(64 * MIB)] {
        let yard = Yard::new(options, Config::default());
        // How much is live at once depends on how the threads take turns.
        for round in 0..20 {
            yard.run(seed + round, 400, 16 * MIB);
            if yard.failures.load(Ordering::Relaxed) > 0 {
                break;
            }
        }
        assert!(yard.failures.load(Ordering::Relaxed) > 0);
        yard.finish();
    }
}

#[test]
fn threads_work_without_caching() {
    let yard = Yard::new(capacity(8 * GIB), config(|c| c.caching = false));
    yard.run(Random::seed(23), 200, MIB);
    yard.finish();
}

#[test]
fn caching_is_switched_while_threads_work() {
    let yard = Yard::new(capacity(8 * GIB), Config::default());
    thread::scope(|scope| {
        let working = scope.spawn(|| yard.run(24, 300, 2 * MIB));
        let mut caching = false;
        while !working.is_finished() {
            yard.rig.allocator.set_caching(caching);
            caching = !caching;
            thread::yield_now();
        }
    });
    yard.rig.allocator.set_caching(true);
    yard.finish();
}

#[test]
fn one_stream_serves_all_threads_without_overlap() {
    let rig = Rig::of(8 * GIB);
    thread::scope(|scope| {
        for value in 0..THREADS as u8 {
            let rig = &rig;
            scope.spawn(move || {
                for round in 0..60 {
                    let blocks: Vec<_> = (0..10).map(|_| rig.allocate(KIB + round, A)).collect();
                    blocks.iter().for_each(|&block| rig.fill(block, value, KIB, A));
                    blocks.iter().for_each(|&block| rig.assert_filled(block, value, KIB));
                    blocks.into_iter().for_each(|block| rig.free(block));
                }
            });
        }
    });
    assert_eq!(rig.statistics().allocation.all.allocated, 8 * 60 * 10);
    rig.finish();
}

#[test]
fn only_one_of_many_frees_of_a_block_succeeds() {
    let rig = Rig::of(GIB);
    for bytes in [KIB, 3 * MIB] {
        for round in 0..30 {
            let block = rig.allocate(bytes, A);
            if round % 2 == 0 {
                rig.allocator.record_stream(block, StreamId(1)).unwrap();
            }
            let freed = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| match rig.allocator.free(block) {
                        Ok(()) => drop(freed.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => assert!(error.is_invalid_pointer(), "{error}"),
                    });
                }
            });
            assert_eq!(freed.into_inner(), 1);
            rig.allocator.process_events().unwrap();
        }
    }
    rig.finish();
}

#[test]
fn streams_that_appear_on_many_threads_at_once_get_one_heap() {
    let rig = Rig::of(8 * GIB);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for stream in 0..200 {
                    let block = rig.allocate(512, StreamId(stream));
                    let found = rig.allocator.block(block).unwrap();
                    assert_eq!(found.stream, StreamId(stream));
                    rig.free(block);
                }
            });
        }
    });
    assert!(rig.ledger().used <= 400 * MIB, "at most one granule a stream");
    rig.finish();
}
