//! The heaps of one device, in a list that only grows: a heap's number is valid for the life of the
//! device's allocator, and finding a heap takes no lock.
//!
//! A stream has one heap, as long as its threads do not get into each other's way. When they do, it
//! gets more, its *lanes*, among which threads are spread: they are heaps of one stream, so that
//! memory moves between them with nothing to wait for.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::pool_memory::Pool;
use crate::heap::Heap;
use crate::units::{Bytes, PoolId, StreamId};

/// A heap with its lock, and whose it is.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shard {
    pub(crate) heap: Mutex<Heap>,
    pub(crate) stream: StreamId,
    /// The private pool that it belongs to; the default pool's heaps have none.
    pool: RwLock<Option<Arc<Pool>>>,
    /// How many lanes the stream has, a power of two; only its first heap knows.
    lanes: AtomicU32,
    /// How often a thread found the lock of a lane taken.
    collisions: AtomicU32,
    /// The numbers of the lanes; the first is the heap itself.
    lane_numbers: [AtomicU32; LANES],
}

/// The most lanes of a stream.
const LANES: usize = 16;
/// After so many collisions the lanes are doubled.
const COLLISIONS: u32 = 64;

impl Shard {
    fn new(stream: StreamId, number: u32, whole: Option<(Bytes, Bytes)>) -> Self {
        Shard {
            heap: Mutex::new(Heap::new(whole)),
            stream,
            pool: RwLock::new(None),
            lanes: AtomicU32::new(1),
            collisions: AtomicU32::new(0),
            lane_numbers: std::array::from_fn(|_| AtomicU32::new(number)),
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

const CHUNK: usize = 256;
/// Chunks of shards: 2^20 in all, fewer than the page map can name.
const CHUNKS: usize = 4096;

type Chunk = Box<[OnceLock<Arc<Shard>>; CHUNK]>;

/// All heaps of one device.
#[derive(Debug)]
pub(crate) struct Shards {
    chunks: Box<[OnceLock<Chunk>]>,
    count: AtomicUsize,
    directory: Directory,
    adding: Mutex<()>,
    /// What heaps are told of blocks that are not to be split.
    whole: Option<(Bytes, Bytes)>,
}

impl Shards {
    pub(crate) fn new(whole: Option<(Bytes, Bytes)>) -> Self {
        Shards {
            whole,
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            count: AtomicUsize::new(0),
            directory: Directory::new(),
            adding: Mutex::new(()),
        }
    }

    /// The shard of that number.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Shard> {
        let chunk = self.chunks.get(index as usize / CHUNK)?.get()?;
        chunk[index as usize % CHUNK].get().map(Arc::as_ref)
    }

    /// How many there are; all lower numbers are valid.
    pub(crate) fn len(&self) -> u32 {
        self.count.load(Ordering::Acquire) as u32
    }

    /// Every shard with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Shard)> {
        (0..self.len()).filter_map(|index| self.get(index).map(|shard| (index, shard)))
    }

    /// The first heap of `stream` with its number, if it has one.
    #[inline]
    pub(crate) fn find(&self, stream: StreamId) -> Option<(u32, &Shard)> {
        self.directory.find(stream)
    }

    /// The default pool's shard for `stream` with its number, made on first use; `None` where there
    /// are 2^20 shards already.
    pub(crate) fn for_stream(&self, stream: StreamId) -> Option<(u32, &Shard)> {
        match self.directory.find(stream) {
            Some(found) => Some(found),
            None => self.add(stream),
        }
    }

    #[cold]
    fn add(&self, stream: StreamId) -> Option<(u32, &Shard)> {
        let _adding = self.adding.lock();
        if let Some(found) = self.directory.find(stream) {
            return Some(found);
        }
        let (index, shard) = self.push(stream)?;
        self.directory.insert(stream, index, shard);
        self.directory.find(stream)
    }

    /// Adds a heap that no stream finds by itself; `None` where there are 2^20 already.
    pub(crate) fn add_private(&self, stream: StreamId, pool: Arc<Pool>) -> Option<u32> {
        let _adding = self.adding.lock();
        let (index, shard) = self.push(stream)?;
        shard.set_pool(pool);
        Some(index)
    }

    /// Adds a heap to the list; the lock on adding is held.
    fn push(&self, stream: StreamId) -> Option<(u32, Arc<Shard>)> {
        let index = self.count.load(Ordering::Relaxed);
        let chunk = self
            .chunks
            .get(index / CHUNK)?
            .get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        let shard = Arc::new(Shard::new(stream, index as u32, self.whole));
        chunk[index % CHUNK].set(Arc::clone(&shard)).ok()?;
        self.count.store(index + 1, Ordering::Release);
        Some((index as u32, shard))
    }

    /// The calling thread's lane of a stream, given its first heap.
    #[inline]
    pub(crate) fn lane<'a>(&'a self, index: u32, first: &'a Shard) -> (u32, &'a Shard) {
        let lanes = first.lanes.load(Ordering::Acquire) as usize;
        if lanes == 1 {
            return (index, first);
        }
        let number = first.lane_numbers[thread_number() & (lanes - 1)].load(Ordering::Relaxed);
        match self.get(number) {
            Some(shard) => (number, shard),
            None => (index, first),
        }
    }

    /// A thread found the lock of one of a stream's lanes taken: where that happens often, there
    /// are to be more lanes.
    #[cold]
    pub(crate) fn collide(&self, first: &Shard) {
        if first.collisions.fetch_add(1, Ordering::Relaxed) < COLLISIONS {
            return;
        }
        let Some(_adding) = self.adding.try_lock() else {
            return;
        };
        let lanes = first.lanes.load(Ordering::Relaxed) as usize;
        if lanes == LANES || first.collisions.swap(0, Ordering::Relaxed) < COLLISIONS {
            return;
        }
        for place in &first.lane_numbers[lanes..2 * lanes] {
            let Some((number, _)) = self.push(first.stream) else {
                return;
            };
            place.store(number, Ordering::Relaxed);
        }
        first.lanes.store(2 * lanes as u32, Ordering::Release);
    }
}

thread_local! {
    static THREAD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// A number of the calling thread, from 1; consecutive for threads that come one after the other.
#[inline]
pub(crate) fn thread_number() -> usize {
    THREAD.with(|&number| number)
}

/// A hash table from streams to numbers, read without a lock. It is written under the lock of
/// `Shards`, only grows, and moves to a table of twice the size when half full; old tables stay,
/// for readers that are still in them.
#[derive(Debug)]
struct Directory {
    tables: [OnceLock<Box<[Entry]>>; 20],
    current: AtomicUsize,
    used: AtomicUsize,
}

#[derive(Debug, Default)]
struct Entry {
    stream: AtomicU64,
    index: AtomicU32,
    /// Set last: an entry without it is empty.
    shard: OnceLock<Arc<Shard>>,
}

const FIRST_TABLE: usize = 64;

impl Directory {
    fn new() -> Self {
        let tables: [OnceLock<Box<[Entry]>>; 20] = std::array::from_fn(|_| OnceLock::new());
        tables[0].get_or_init(|| (0..FIRST_TABLE).map(|_| Entry::default()).collect());
        Directory { tables, current: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    #[inline]
    fn find(&self, stream: StreamId) -> Option<(u32, &Shard)> {
        let table = self.tables.get(self.current.load(Ordering::Acquire))?.get()?;
        let mut at = hash(stream) as usize;
        loop {
            let entry = &table[at & (table.len() - 1)];
            let shard = entry.shard.get()?;
            if entry.stream.load(Ordering::Relaxed) == stream.0 {
                return Some((entry.index.load(Ordering::Relaxed), shard));
            }
            at += 1;
        }
    }

    fn insert(&self, stream: StreamId, index: u32, shard: Arc<Shard>) {
        let current = self.current.load(Ordering::Relaxed);
        let Some(table) = self.tables[current].get() else {
            return;
        };
        let used = self.used.fetch_add(1, Ordering::Relaxed) + 1;
        if used * 2 <= table.len() || current + 1 == self.tables.len() {
            insert_into(table, stream, index, shard);
            return;
        }
        let next = self.tables[current + 1]
            .get_or_init(|| (0..table.len() * 2).map(|_| Entry::default()).collect());
        for entry in table.iter() {
            if let Some(old) = entry.shard.get() {
                let stream = StreamId(entry.stream.load(Ordering::Relaxed));
                insert_into(next, stream, entry.index.load(Ordering::Relaxed), Arc::clone(old));
            }
        }
        insert_into(next, stream, index, shard);
        self.current.store(current + 1, Ordering::Release);
    }
}

fn insert_into(table: &[Entry], stream: StreamId, index: u32, shard: Arc<Shard>) {
    let mut at = hash(stream) as usize;
    while table[at & (table.len() - 1)].shard.get().is_some() {
        at += 1;
    }
    let entry = &table[at & (table.len() - 1)];
    entry.stream.store(stream.0, Ordering::Relaxed);
    entry.index.store(index, Ordering::Relaxed);
    // Nobody else inserts: the lock of `Shards` is held. Readers see the two stores above through
    // this.
    let _ = entry.shard.set(shard);
}

#[inline]
fn hash(stream: StreamId) -> u64 {
    // Fibonacci hashing (Knuth, TAOCP 6.4): stream handles are addresses, equal in their low bits.
    stream.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_of_many_streams_again() {
        let shards = Shards::new(None);
        for k in 0..5000 {
            assert_eq!(shards.for_stream(StreamId(k * 64)).unwrap().0, k as u32);
        }
        for k in 0..5000 {
            let (index, shard) = shards.for_stream(StreamId(k * 64)).unwrap();
            assert_eq!((index, shard.stream), (k as u32, StreamId(k * 64)));
            assert_eq!(shards.get(index).unwrap().stream, StreamId(k * 64));
        }
        assert_eq!(shards.len(), 5000);
    }

    #[test]
    fn lanes_double_where_threads_collide_and_are_heaps_of_the_stream() {
        let shards = Shards::new(None);
        let (index, first) = shards.for_stream(StreamId(7)).unwrap();
        assert_eq!(shards.lane(index, first).0, index);
        for expected in [1, 2, 4, 8, 16, 16] {
            assert_eq!(first.lanes().count(), expected);
            (0..=COLLISIONS).for_each(|_| shards.collide(first));
        }
        let numbers: std::collections::HashSet<u32> = first.lanes().collect();
        assert_eq!(numbers.len(), LANES);
        assert!(numbers.iter().all(|&n| shards.get(n).unwrap().stream == StreamId(7)));
        let mine = shards.lane(index, first).0;
        assert!(numbers.contains(&mine));
        assert_eq!(shards.lane(index, first).0, mine, "a thread keeps its lane");
        assert_eq!(shards.for_stream(StreamId(7)).unwrap().0, index);
    }

    #[test]
    fn threads_agree_on_the_shard_of_a_stream() {
        let shards = Shards::new(None);
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let number = |k| shards.for_stream(StreamId(k)).unwrap().0;
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
