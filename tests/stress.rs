//! Everything at once: sixteen threads on streams of their own and on shared ones, whose work is
//! held back at random, free each other's memory while the cache is emptied and statistics read.
//!
//! Nothing here waits before it frees or reuses memory. Work is queued, as a program would do it,
//! that fills a block, reads it on its stream or on a recorded one, and leaves what it read in a
//! journal. Had memory been handed on too early, or to two at once, a journal would show it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Random, capacity, plain};
use plugalloc::cpp::{self, CachingAllocator};
use plugalloc::device::Device;
use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::units::{Address, Bytes, GIB, MIB, StreamId};
use plugalloc::{Allocator, Config, Error};

const THREADS: u64 = 16;
/// Streams that all threads use, and that may be held.
const SHARED: [u64; 4] = [0x10, 0x20, 0x30, 0x40];
/// So many bytes at each end of a block are written and read.
const ENDS: Bytes = 64;
/// With so many blocks live, more are freed than allocated.
const PLENTY: usize = 200;

/// A live block, which any thread may free.
struct Parcel {
    address: Address,
    bytes: Bytes,
    value: u8,
    stream: StreamId,
}

/// What queued work read, and what it should have read. The bytes are written when that work runs.
struct Journal {
    pages: Vec<u8>,
    expected: Vec<u8>,
}

impl Journal {
    fn new(entries: u64) -> Journal {
        Journal { pages: vec![0; (entries * ENDS) as usize], expected: Vec::new() }
    }

    /// Where the next entry goes.
    fn expect(&mut self, value: u8) -> Address {
        let at = self.expected.len() * ENDS as usize;
        self.expected.push(value);
        self.pages[at..at + ENDS as usize].as_mut_ptr() as Address
    }

    fn check(&self) {
        for (entry, &value) in self.expected.iter().enumerate() {
            let found = &self.pages[entry * ENDS as usize..][..ENDS as usize];
            assert!(
                found.iter().all(|&byte| byte == value),
                "entry {entry}: work read {found:x?} where it had written {value:#x}"
            );
        }
    }
}

/// Counts a thread out when it ends, also by panicking.
struct AtWork<'a>(&'a AtomicU64);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What the threads share.
struct Yard {
    machine: SimMachine,
    engine: Arc<Allocator>,
    cpp: CachingAllocator,
    parcels: Mutex<Vec<Parcel>>,
    working: AtomicU64,
    failures: AtomicU64,
}

impl Yard {
    fn new(options: SimOptions) -> Yard {
        let machine = SimMachine::new(SimOptions { wait_for_release: true, ..options }).unwrap();
        let engine = Arc::new(Allocator::new(machine.as_devices(), Config::default()).unwrap());
        let cpp = CachingAllocator::new(Arc::clone(&engine)).unwrap();
        let (working, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        Yard { machine, engine, cpp, parcels: Mutex::default(), working, failures }
    }

    fn device(&self) -> Arc<SimDevice> {
        self.machine.device(0)
    }

    /// Makes later work of `user` wait for the work that `stream` has now.
    fn order(&self, stream: StreamId, user: StreamId) {
        let device = self.device();
        let event = device.event_create().unwrap();
        device.event_record(event, stream).unwrap();
        device.stream_wait_event(user, event).unwrap();
        device.event_destroy(event).unwrap();
    }

    /// Queues reading both ends of a block into a journal.
    fn read(&self, parcel: &Parcel, journal: &mut Journal, stream: StreamId) {
        let last = parcel.address + parcel.bytes - ENDS;
        for end in [parcel.address, last] {
            // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
            unsafe { self.device().copy_async(journal.expect(parcel.value), end, ENDS, stream) }
                .unwrap();
        }
    }

    /// Allocates, fills, lets a second stream read, and leaves the block for anyone to free.
    fn send(&self, bytes: Bytes, value: u8, streams: [StreamId; 2], journal: &mut Journal) {
        let [stream, user] = streams;
        cpp::set_current_stream(stream.0, 0).unwrap();
        let data = match self.cpp.allocate(bytes as usize) {
            Ok(data) => data,
            Err(Error::OutOfMemory(_)) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let parcel = Parcel { address: data.address(), bytes, value, stream };
        for end in [parcel.address, parcel.address + bytes - ENDS] {
            self.device().fill_async(end, value, ENDS, stream).unwrap();
        }
        if user != stream {
            self.order(stream, user);
            self.cpp.record_stream(&data, user.0).unwrap();
            self.read(&parcel, journal, user);
        }
        assert_eq!(data.release_context(), parcel.address);
        self.parcels.lock().unwrap().push(parcel);
    }

    /// Frees a block of anyone, after it was read once more on its own stream.
    fn receive(&self, at: u64, journal: &mut Journal) {
        let parcel = {
            let mut parcels = self.parcels.lock().unwrap();
            if parcels.is_empty() {
                return;
            }
            let at = at as usize % parcels.len();
            parcels.swap_remove(at)
        };
        self.read(&parcel, journal, parcel.stream);
        self.cpp.raw_delete(parcel.address).unwrap();
    }

    /// Looks at everything there is to see.
    fn look(&self) {
        let found = self.cpp.statistics(0).unwrap();
        for counted in [found.allocated_bytes.all, found.allocation.all, found.reserved_bytes.all] {
            assert_eq!(counted.current, counted.allocated - counted.freed);
            assert!(counted.current >= 0 && counted.peak >= counted.current);
        }
        self.engine.is_valid().unwrap();
        self.cpp.cache_info(0, 0).unwrap();
    }

    fn work(&self, mut random: Random, own: StreamId, steps: u64, largest: Bytes) -> Journal {
        let _at_work = AtWork(&self.working);
        let mut journal = Journal::new(steps * 2);
        for _ in 0..steps {
            let mut stream = || match random.below(2) {
                0 => own,
                _ => StreamId(SHARED[random.below(SHARED.len() as u64) as usize]),
            };
            let streams = [stream(), stream()];
            let full = self.parcels.lock().unwrap().len() >= PLENTY;
            match random.below(100) {
                0..55 if !full => {
                    let bytes = random.size(largest).max(ENDS);
                    self.send(bytes, 1 + random.below(255) as u8, streams, &mut journal);
                }
                95 => self.cpp.empty_cache().unwrap(),
                96 => self.engine.process_events().unwrap(),
                97 => self.cpp.reset_peak_statistics(0).unwrap(),
                98..100 => self.look(),
                _ => self.receive(random.next(), &mut journal),
            }
        }
        journal
    }

    /// Holds the work of shared streams back, one or two at a time, until no thread works any more.
    fn hold_and_release(&self, mut random: Random, held_once: &AtomicBool) {
        let device = self.device();
        while self.working.load(Ordering::Acquire) > 0 {
            let at = random.below(SHARED.len() as u64) as usize;
            let streams = [SHARED[at], SHARED[(at + 1) % SHARED.len()]].map(StreamId);
            streams.iter().for_each(|&stream| device.hold(stream).unwrap());
            held_once.store(true, Ordering::Relaxed);
            (0..random.below(200)).for_each(|_| thread::yield_now());
            streams.iter().for_each(|&stream| device.resume(stream).unwrap());
            thread::yield_now();
        }
    }

    /// Lets the threads work, and checks what their work has read.
    fn run(&self, seed: u64, steps: u64, largest: Bytes) {
        let held_once = AtomicBool::new(false);
        self.working.store(THREADS, Ordering::Relaxed);
        let mut journals: Vec<Journal> = thread::scope(|scope| {
            let random = |thread| Random::new(seed.wrapping_mul(1000) + thread);
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let own = StreamId(0x1000 + thread * 64);
                    scope.spawn(move || self.work(random(thread), own, steps, largest))
                })
                .collect();
            self.hold_and_release(random(THREADS), &held_once);
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert!(held_once.into_inner());
        let mut last = Journal::new(2 * (PLENTY as u64 + THREADS));
        while !self.parcels.lock().unwrap().is_empty() {
            self.receive(0, &mut last);
        }
        self.device().synchronize().unwrap();
        journals.push(last);
        journals.iter().for_each(Journal::check);
        assert!(journals.iter().map(|journal| journal.expected.len()).sum::<usize>() > 1000);
    }

    /// Nothing is live or pending, and nothing stays on the device.
    fn finish(self) {
        self.engine.process_events().unwrap();
        self.engine.is_quiescent().unwrap();
        self.engine.is_valid().unwrap();
        self.cpp.empty_cache().unwrap();
        self.engine.is_quiescent().unwrap();
        assert_eq!(self.device().ledger().used, 0);
    }
}

#[test]
fn sixteen_threads_do_everything_at_once() {
    let seed = Random::seed(31);
    for options in [capacity(8 * GIB), plain(8 * GIB)] {
        let yard = Yard::new(options);
        yard.run(seed, 500, 4 * MIB);
        assert_eq!(yard.failures.load(Ordering::Relaxed), 0, "the device has plenty");
        yard.finish();
    }
}

#[test]
fn sixteen_threads_do_everything_where_memory_is_short() {
    let seed = Random::seed(32);
    for options in [capacity(64 * MIB), plain(96 * MIB)] {
        let yard = Yard::new(options);
        // How much is live at once depends on how the threads take turns.
        for round in 0..20 {
            yard.run(seed + round, 250, 16 * MIB);
            if yard.failures.load(Ordering::Relaxed) > 0 {
                break;
            }
        }
        assert!(yard.failures.load(Ordering::Relaxed) > 0, "the device was to be too small");
        yard.finish();
    }
}
