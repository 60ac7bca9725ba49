//! The heaps of one device, in a list that only grows: a heap's number is valid for the life of the
//! device's allocator, and finding a heap takes no lock.
//!
//! A stream has one heap, as long as its threads do not get into each other's way. When they do, it
//! gets more, its *lanes*, among which threads are spread: they are heaps of one stream, so that
//! memory moves between them with nothing to wait for.

mod directory;

use std::sync::Arc;

use parking_lot::RwLock;

use super::heap_lock::HeapLock;
use super::padded::Padded;
use super::pool_memory::Pool;
use crate::heap::{Heap, Whole};
use crate::lock;
use crate::sync::{AtomicU32, AtomicUsize, MODEL, Mutex, MutexGuard, OnceLock, Ordering};
use crate::units::{PoolId, StreamId};
use directory::Directory;

/// A heap with its lock, and whose it is. What every thread of a stream reads lies apart from what
/// a heap's own calls write.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Shard {
    pub(crate) stream: StreamId,
    /// Its device's place among the allocator's devices, and its own among the device's shards.
    pub(crate) device: u32,
    pub(crate) number: u32,
    /// How many lanes the stream has, a power of two; only its first heap knows.
    lanes: AtomicU32,
    /// How often a thread found the lock of a lane taken.
    collisions: AtomicU32,
    /// The number of the thread to which that happened last.
    last_collided: AtomicUsize,
    /// The numbers of the lanes; the first is the heap itself.
    lane_numbers: [AtomicU32; LANES],
    /// The private pool that it belongs to; the default pool's heaps have none.
    pool: RwLock<Option<Arc<Pool>>>,
    pub(crate) heap: Padded<HeapLock>,
}

/// The most lanes of a stream.
const LANES: usize = 16;
/// After so many collisions the lanes are doubled.
const COLLISIONS: u32 = if MODEL { 1 } else { 64 };

impl Shard {
    fn new(device: u32, number: u32, stream: StreamId, heap: Heap) -> Self {
        Shard {
            heap: Padded(HeapLock::new(heap)),
            stream,
            device,
            number,
            lanes: AtomicU32::new(1),
            collisions: AtomicU32::new(0),
            last_collided: AtomicUsize::new(0),
            lane_numbers: std::array::from_fn(|_| AtomicU32::new(number)),
            pool: RwLock::new(None),
        }
    }

    /// The private pool whose heap this is.
    pub(crate) fn pool(&self) -> Option<Arc<Pool>> {
        self.pool.read().clone()
    }

    /// The pool whose heap this is.
    pub(crate) fn pool_id(&self) -> PoolId {
        self.pool.read().as_ref().map_or(PoolId::DEFAULT, |pool| pool.id)
    }

    /// Makes it a private pool's heap.
    pub(crate) fn set_pool(&self, pool: Arc<Pool>) {
        *self.pool.write() = Some(pool);
    }

    /// Whether its memory comes as whole segments, whatever the device can do.
    pub(crate) fn takes_segments(&self) -> bool {
        self.pool.read().as_ref().is_some_and(|pool| pool.takes_segments())
    }

    /// Whether there is more than one lane.
    #[inline]
    pub(crate) fn is_spread(&self) -> bool {
        self.lanes.load(Ordering::Acquire) > 1
    }

    /// The numbers of all lanes.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = u32> + '_ {
        let lanes = self.lanes.load(Ordering::Acquire) as usize;
        self.lane_numbers[..lanes].iter().map(|number| number.load(Ordering::Relaxed))
    }
}

/// Every heap of a device, each locked.
pub(crate) struct AllHeaps<'a> {
    pub(crate) heaps: Vec<lock::MutexGuard<'a, Heap>>,
    _adding: MutexGuard<'a, bool>,
}

const CHUNK: usize = if MODEL { 2 } else { 256 };
/// Chunks of shards: 2^20 in all, fewer than the page map can name.
const CHUNKS: usize = if MODEL { 4 } else { 4096 };

type Chunk = Box<[OnceLock<Arc<Shard>>; CHUNK]>;

/// All heaps of one device.
#[derive(Debug)]
pub(crate) struct Shards {
    chunks: Box<[OnceLock<Chunk>]>,
    count: AtomicUsize,
    directory: Directory,
    /// Held to add one; tells whether what happens in the heaps is recorded.
    adding: Mutex<bool>,
    /// The device's place among the allocator's devices.
    device: u32,
    /// What heaps are told of blocks that are not to be split.
    whole: Option<Whole>,
}

impl Shards {
    pub(crate) fn new(device: u32, whole: Option<Whole>) -> Self {
        Shards {
            device,
            whole,
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            count: AtomicUsize::new(0),
            directory: Directory::new(),
            adding: Mutex::new(false),
        }
    }

    /// Every heap with its lock, by number; no heap is added as long as they are had. Whoever calls
    /// this has no heap's lock, and the one on growing wherever another thread may have two.
    pub(crate) fn lock_all(&self) -> AllHeaps<'_> {
        let adding = self.adding.lock();
        let heaps = self.iter().map(|(_, shard)| shard.heap.lock()).collect();
        AllHeaps { heaps, _adding: adding }
    }

    /// Sends the calls of every heap, those that are added later too, off the hot path, or lets
    /// them go there again. Whoever calls this has no heap's lock.
    pub(crate) fn set_recorded(&self, recorded: bool) {
        let mut adding = self.adding.lock();
        *adding = recorded;
        for (_, shard) in self.iter() {
            let mut heap = shard.heap.lock();
            heap.turn.set_recorded(recorded);
        }
    }

    /// The shard of that number.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Arc<Shard>> {
        let chunk = self.chunks.get(index as usize / CHUNK)?.get()?;
        chunk[index as usize % CHUNK].get()
    }

    /// How many there are; all lower numbers are valid.
    pub(crate) fn len(&self) -> u32 {
        self.count.load(Ordering::Acquire) as u32
    }

    /// Every shard with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Shard)> {
        (0..self.len()).filter_map(|index| self.get(index).map(|shard| (index, shard.as_ref())))
    }

    /// The heap of `stream`, if it has one lane and is found at the first look: nearly always,
    /// where a program has no more than some thousand streams.
    #[inline(always)]
    pub(crate) fn find_alone(&self, stream: StreamId) -> Option<&Shard> {
        self.directory.first_look(stream)
    }

    /// The first heap of `stream`, if it has one at all.
    pub(crate) fn find_any(&self, stream: StreamId) -> Option<&Shard> {
        self.directory.find(stream)
    }

    /// The default pool's shard for `stream`, made on first use; `None` where there are 2^20 shards
    /// already.
    pub(crate) fn for_stream(&self, stream: StreamId) -> Option<&Shard> {
        match self.directory.find(stream) {
            Some(found) => Some(found),
            None => self.add(stream),
        }
    }

    #[cold]
    fn add(&self, stream: StreamId) -> Option<&Shard> {
        let adding = self.adding.lock();
        if let Some(found) = self.directory.find(stream) {
            return Some(found);
        }
        self.directory.insert(stream, self.push(stream, *adding)?);
        self.directory.find(stream)
    }

    /// Adds a heap that no stream finds by itself; `None` where there are 2^20 already.
    pub(crate) fn add_private(&self, stream: StreamId, pool: Arc<Pool>) -> Option<u32> {
        let adding = self.adding.lock();
        let shard = self.push(stream, *adding)?;
        shard.set_pool(pool);
        Some(shard.number)
    }

    /// Adds a heap to the list; the lock on adding is held.
    fn push(&self, stream: StreamId, recorded: bool) -> Option<Arc<Shard>> {
        let index = self.count.load(Ordering::Relaxed);
        let chunk = self
            .chunks
            .get(index / CHUNK)?
            .get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        let mut heap = Heap::new(self.whole);
        heap.turn.set_recorded(recorded);
        heap.number = index as u32;
        let shard = Arc::new(Shard::new(self.device, index as u32, stream, heap));
        chunk[index % CHUNK].set(Arc::clone(&shard)).ok()?;
        self.count.store(index + 1, Ordering::Release);
        Some(shard)
    }

    /// The calling thread's lane of a stream, given its first heap.
    #[inline]
    pub(crate) fn lane<'a>(&'a self, first: &'a Shard) -> &'a Shard {
        if first.is_spread() { self.lane_of_thread(first) } else { first }
    }

    #[inline(never)]
    fn lane_of_thread<'a>(&'a self, first: &'a Shard) -> &'a Shard {
        self.lane_of(first, thread_number())
    }

    fn lane_of<'a>(&'a self, first: &'a Shard, thread: usize) -> &'a Shard {
        let lanes = first.lanes.load(Ordering::Acquire) as usize;
        let number = first.lane_numbers[thread & (lanes - 1)].load(Ordering::Relaxed);
        self.get(number).map_or(first, Arc::as_ref)
    }

    /// A thread found the lock of one of a stream's lanes taken: where that happens often, there
    /// are to be more lanes. What always happens to the same thread does not count: the stream is
    /// that thread's own, and others only looked into its heap for memory.
    #[cold]
    pub(crate) fn collide(&self, first: &Shard, thread: usize) {
        if first.last_collided.swap(thread, Ordering::Relaxed) == thread {
            return;
        }
        if first.collisions.fetch_add(1, Ordering::Relaxed) < COLLISIONS {
            return;
        }
        let Some(adding) = self.adding.try_lock() else {
            return;
        };
        let lanes = first.lanes.load(Ordering::Relaxed) as usize;
        if lanes == LANES || first.collisions.swap(0, Ordering::Relaxed) < COLLISIONS {
            return;
        }
        for place in &first.lane_numbers[lanes..2 * lanes] {
            let Some(lane) = self.push(first.stream, *adding) else {
                return;
            };
            place.store(lane.number, Ordering::Relaxed);
        }
        first.lanes.store(2 * lanes as u32, Ordering::Release);
        self.directory.set_spread(first.stream);
    }
}

thread_local! {
    static THREAD: usize = {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// A number of the calling thread, from 1; consecutive for threads that come one after the other.
#[inline]
pub(crate) fn thread_number() -> usize {
    THREAD.with(|&number| number)
}

#[cfg(all(test, loom))]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_of_many_streams_again() {
        let shards = Shards::new(0, None);
        for k in 0..5000 {
            assert_eq!(shards.for_stream(StreamId(k * 64)).unwrap().number, k as u32);
        }
        for k in 0..5000 {
            let shard = shards.for_stream(StreamId(k * 64)).unwrap();
            assert_eq!((shard.number, shard.stream), (k as u32, StreamId(k * 64)));
            assert_eq!(shards.get(shard.number).unwrap().stream, StreamId(k * 64));
        }
        assert_eq!(shards.len(), 5000);
    }

    #[test]
    fn lanes_double_where_threads_collide_and_are_heaps_of_the_stream() {
        let shards = Shards::new(0, None);
        let first = shards.for_stream(StreamId(7)).unwrap();
        assert_eq!(shards.lane(first).number, first.number);
        assert_eq!(shards.find_alone(StreamId(7)).unwrap().number, first.number);
        for expected in [1, 2, 4, 8, 16, 16] {
            assert_eq!(first.lanes().count(), expected);
            (0..COLLISIONS + 2).for_each(|turn| shards.collide(first, 1 + turn as usize % 2));
        }
        let numbers: std::collections::HashSet<u32> = first.lanes().collect();
        assert_eq!(numbers.len(), LANES);
        assert!(shards.find_alone(StreamId(7)).is_none(), "calls are to look for a lane");
        assert!(numbers.iter().all(|&n| shards.get(n).unwrap().stream == StreamId(7)));
        let mine = shards.lane(first).number;
        assert!(numbers.contains(&mine));
        assert_eq!(shards.lane(first).number, mine, "a thread keeps its lane");
        assert_eq!(shards.for_stream(StreamId(7)).unwrap().number, first.number);
    }

    #[test]
    fn a_thread_that_has_a_stream_to_itself_keeps_one_heap() {
        let shards = Shards::new(0, None);
        let first = shards.for_stream(StreamId(7)).unwrap();
        (0..10 * COLLISIONS).for_each(|_| shards.collide(first, 3));
        assert_eq!(first.lanes().count(), 1);
    }

    #[test]
    fn threads_agree_on_the_shard_of_a_stream() {
        let shards = Shards::new(0, None);
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let number = |k| shards.for_stream(StreamId(k)).unwrap().number;
                    let found: Vec<_> = (0..300).map(number).collect();
                    seen.lock().push(found);
                });
            }
        });
        let seen = seen.into_inner();
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(shards.len(), 300);
    }
}
