//! Several threads, each with streams, a pool and captures of its own, do everything at once: their
//! streams end under names that come back, others free what they allocate, the cache is emptied,
//! limits change, memory runs out, and snapshots are taken meanwhile.
//!
//! `PLUGALLOC_SEED` names the first round and `STORM_ROUNDS` how many there are.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/mapping_books.rs"]
mod mapping_books;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use common::{GPU, Random, Rig, capacity, plain};
use plugalloc::Config;
use plugalloc::device::Device;
use plugalloc::device::sim::SimOptions;
use plugalloc::units::{Address, Bytes, MIB, PoolId, StreamId};

const THREADS: u64 = 4;
/// So many bytes at the start of a block are written and read.
const WRITTEN: Bytes = 64;

/// A live block that any thread may free.
struct Parcel {
    at: Address,
    bytes: Bytes,
    value: u8,
    stream: StreamId,
}

/// What work reads, and what it should.
type Cells = Vec<(Box<[u8]>, u8)>;

struct Yard {
    rig: Rig,
    books: Option<Arc<parking_lot::Mutex<mapping_books::Seen>>>,
    parcels: Mutex<Vec<Parcel>>,
    refused: AtomicU64,
    working: AtomicU64,
}

/// Counts a thread out when it ends, also by panicking.
struct AtWork<'a>(&'a AtomicU64);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// One thread's part.
struct Worker<'a> {
    yard: &'a Yard,
    random: Random,
    stream: StreamId,
    pool: PoolId,
    cells: Cells,
}

impl Worker<'_> {
    fn read(&mut self, at: Address, bytes: Bytes, value: u8) {
        let bytes = bytes.min(WRITTEN);
        let mut cell = vec![!value; bytes as usize].into_boxed_slice();
        let to = cell.as_mut_ptr() as Address;
        // SAFETY: what is read lies in the cell, which is kept until its stream has run the copy.
        unsafe { self.yard.rig.device().copy_async(to, at, bytes, self.stream) }.unwrap();
        self.cells.push((cell, value));
    }

    fn try_allocate(&mut self, most: Bytes) -> Option<Parcel> {
        let bytes = self.random.size(most);
        let at = match self.yard.rig.try_allocate(bytes, self.stream) {
            Ok(at) => at,
            Err(error) => {
                assert!(error.is_out_of_memory(), "{error}");
                self.yard.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        if let Some(books) = &self.yard.books {
            assert!(books.lock().covers(at, bytes), "nobody was told of {at:#x}");
        }
        let value = self.random.below(256) as u8;
        self.yard.rig.fill(at, value, bytes.min(WRITTEN), self.stream);
        Some(Parcel { at, bytes, value, stream: self.stream })
    }

    /// Allocates, and leaves the block for anyone to free.
    fn send(&mut self) {
        if let Some(parcel) = self.try_allocate(12 * MIB) {
            self.read(parcel.at, parcel.bytes, parcel.value);
            self.yard.parcels.lock().unwrap().push(parcel);
        }
    }

    /// Takes a block of anyone, and frees it after this stream has used it.
    fn receive(&mut self) {
        let parcel = {
            let mut parcels = self.yard.parcels.lock().unwrap();
            if parcels.is_empty() {
                return;
            }
            let at = self.random.below(parcels.len() as u64) as usize;
            parcels.swap_remove(at)
        };
        // Only its own thread knows whether another's stream is still there to be waited for: what
        // was written there is not read here.
        if parcel.stream == self.stream {
            self.read(parcel.at, parcel.bytes, parcel.value);
        } else {
            self.yard.rig.allocator.record_stream(parcel.at, self.stream).unwrap();
        }
        if self.random.below(8) == 0 {
            drop(self.yard.rig.allocator.pin(parcel.at).unwrap());
        }
        self.yard.rig.free(parcel.at);
    }

    /// The stream ends; the next one may have its name.
    fn retire(&mut self) {
        let allocator = &self.yard.rig.allocator;
        let mut parcels = self.yard.parcels.lock().unwrap();
        // Nobody frees what this stream has left as if it were its own.
        parcels.iter_mut().filter(|p| p.stream == self.stream).for_each(|p| p.stream.0 = 0);
        drop(parcels);
        allocator.retire_stream(GPU, self.stream).unwrap();
        if self.random.below(2) == 0 {
            self.yard.rig.device().stream_destroy(self.stream).unwrap();
            self.stream = self.yard.rig.device().stream_create().unwrap();
        }
    }

    /// Captures work in the pool, and launches it twice.
    fn capture(&mut self) {
        let (allocator, device) = (&self.yard.rig.allocator, self.yard.rig.device());
        let stream = self.stream;
        // A stream that is being captured cannot wait for what the last one of its name has left.
        if let Some(parcel) = self.try_allocate(1000) {
            self.yard.rig.free(parcel.at);
        }
        allocator.mark_capture_begin(GPU).unwrap();
        allocator.begin_allocate_to_pool(GPU, self.pool, move |on| on == stream).unwrap();
        device.capture_begin(stream).unwrap();
        let mut inside = Vec::new();
        for _ in 0..self.random.below(5) {
            if let Some(parcel) = self.try_allocate(3 * MIB) {
                self.read(parcel.at, parcel.bytes, parcel.value);
                match self.random.below(2) {
                    0 => self.yard.rig.free(parcel.at),
                    _ => inside.push(parcel),
                }
            }
        }
        let graph = device.capture_end(stream).unwrap();
        let allocator = &self.yard.rig.allocator;
        allocator.end_allocate_to_pool(GPU, self.pool).unwrap();
        allocator.mark_capture_end(GPU).unwrap();
        (0..2).for_each(|_| device.graph_launch(graph, stream).unwrap());
        device.graph_destroy(graph).unwrap();
        let checkpoint = allocator.checkpoint_pool(GPU, self.pool).unwrap();
        inside.into_iter().for_each(|parcel| self.yard.rig.free(parcel.at));
        let delta = allocator.restore_pool(GPU, &checkpoint).unwrap();
        assert!(delta.freed.is_empty());
        delta.allocated.iter().for_each(|block| self.yard.rig.free(block.address));
        allocator.release_pool(GPU, self.pool).unwrap();
    }

    fn step(&mut self) {
        let allocator = &self.yard.rig.allocator;
        match self.random.below(100) {
            0..50 => self.send(),
            50..88 => self.receive(),
            88..91 => self.retire(),
            91..94 => self.capture(),
            94 => allocator.empty_cache().unwrap(),
            95 => allocator.process_events().unwrap(),
            96 => {
                let fraction = [0.5, 0.8, 1.0][self.random.below(3) as usize];
                allocator.set_memory_fraction(GPU, fraction).unwrap();
            }
            97 => {
                let snapshot = allocator.snapshot(None, false).unwrap();
                assert!(snapshot.segments.iter().all(|segment| segment.active <= segment.total));
            }
            _ => allocator.is_valid().unwrap(),
        }
    }
}

impl Yard {
    /// Holds the streams of others back, one at a time, until no thread works any more.
    fn hold_and_resume(&self, mut random: Random) {
        while self.working.load(Ordering::Acquire) > 0 {
            let parcels = self.parcels.lock().unwrap_or_else(PoisonError::into_inner);
            let name = parcels.first().map_or(StreamId(0x77), |parcel| parcel.stream);
            drop(parcels);
            // The stream may have ended in between.
            if self.rig.device().hold(name).is_ok() {
                (0..random.below(50)).for_each(|_| thread::yield_now());
                let _ = self.rig.device().resume(name);
            }
            thread::yield_now();
        }
    }
}

/// One round; gives how many requests were refused.
fn round(options: SimOptions, seed: u64, watched: bool) -> u64 {
    let rig = Rig::new(SimOptions { wait_for_release: true, ..options }, Config::default());
    let books = watched.then(|| mapping_books::observe(&rig.allocator, &rig.device()));
    let (refused, working) = (AtomicU64::new(0), AtomicU64::new(THREADS));
    let yard = Yard { rig, books, parcels: Mutex::default(), refused, working };
    let cells: Vec<Cells> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|k| {
                let stream = yard.rig.device().stream_create().unwrap();
                let (random, yard) = (Random::new(seed * 100 + k), &yard);
                scope.spawn(move || {
                    let _at_work = AtWork(&yard.working);
                    let (pool, cells) = (PoolId(1 + k, 0), Vec::new());
                    let mut worker = Worker { yard, random, stream, pool, cells };
                    (0..250).for_each(|_| worker.step());
                    worker.cells
                })
            })
            .collect();
        yard.hold_and_resume(Random::new(seed));
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    yard.rig.device().synchronize().unwrap();
    for (cell, value) in cells.iter().flatten() {
        assert!(cell.iter().all(|byte| byte == value), "{cell:x?} instead of {value:#x}");
    }
    let parcels = yard.parcels.into_inner().unwrap();
    let live = yard.rig.statistics().allocation.all.current;
    assert_eq!(live, parcels.len() as i64);
    parcels.into_iter().for_each(|parcel| yard.rig.free(parcel.at));
    let books = yard.books;
    yard.rig.finish();
    assert!(books.is_none_or(|books| books.lock().spans.is_empty()));
    yard.refused.into_inner()
}

#[test]
fn threads_do_everything_at_once_on_streams_and_pools_of_their_own() {
    let rounds = std::env::var("STORM_ROUNDS").ok().and_then(|text| text.parse().ok());
    let seed = Random::seed(500);
    let mut refused = 0;
    for seed in seed..seed + rounds.unwrap_or(6) {
        let options = [capacity(96 * MIB), plain(160 * MIB)][seed as usize % 2].clone();
        refused += round(options, seed, seed % 3 == 0);
    }
    println!("{refused} requests refused");
}
