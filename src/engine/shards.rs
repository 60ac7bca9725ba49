//! The heaps of one device, one a (pool, stream), in a list that only grows: a heap's number is valid for
//! the life of the device's allocator, and finding a heap takes no lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::heap::Heap;
use crate::units::{PoolId, StreamId};

/// A heap with its lock, and whose it is.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shard {
    pub(crate) heap: Mutex<Heap>,
    pub(crate) stream: StreamId,
    pub(crate) pool: PoolId,
}

const FIRST: usize = 16;
/// Buckets of 16, 32, 64, ... shards: 2^23 in all, as many as the page map can name.
const BUCKETS: usize = 19;

/// All heaps of one device.
#[derive(Debug)]
pub(crate) struct Shards {
    buckets: [OnceLock<Box<[OnceLock<Box<Shard>>]>>; BUCKETS],
    count: AtomicUsize,
    directory: Directory,
    adding: Mutex<()>,
}

fn place_of(index: usize) -> (usize, usize) {
    let shifted = index + FIRST;
    let bucket = shifted.ilog2() as usize - FIRST.ilog2() as usize;
    (bucket, shifted - (FIRST << bucket))
}

impl Shards {
    pub(crate) fn new() -> Self {
        Shards {
            buckets: std::array::from_fn(|_| OnceLock::new()),
            count: AtomicUsize::new(0),
            directory: Directory::new(),
            adding: Mutex::new(()),
        }
    }

    /// The shard of that number.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Shard> {
        let (bucket, offset) = place_of(index as usize);
        self.buckets.get(bucket)?.get()?.get(offset)?.get().map(Box::as_ref)
    }

    /// How many there are; all lower numbers are valid.
    pub(crate) fn len(&self) -> u32 {
        self.count.load(Ordering::Acquire) as u32
    }

    /// Every shard with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Shard)> {
        (0..self.len()).filter_map(|index| self.get(index).map(|shard| (index, shard)))
    }

    /// The number of the default pool's shard for `stream`, made on first use; `None` where there are
    /// 2^23 shards already.
    #[inline]
    pub(crate) fn for_stream(&self, stream: StreamId) -> Option<u32> {
        match self.directory.find(stream) {
            Some(index) => Some(index),
            None => self.add(stream),
        }
    }

    #[cold]
    fn add(&self, stream: StreamId) -> Option<u32> {
        let _adding = self.adding.lock();
        if let Some(index) = self.directory.find(stream) {
            return Some(index);
        }
        let index = self.count.load(Ordering::Relaxed);
        let (bucket, offset) = place_of(index);
        let bucket = self
            .buckets
            .get(bucket)?
            .get_or_init(|| (0..FIRST << bucket).map(|_| OnceLock::new()).collect());
        let heap = Mutex::new(Heap::new());
        let shard = Box::new(Shard { heap, stream, pool: PoolId::DEFAULT });
        bucket[offset].set(shard).ok()?;
        self.count.store(index + 1, Ordering::Release);
        self.directory.insert(stream, index as u32);
        Some(index as u32)
    }
}

/// A hash table from streams to numbers, read without a lock. It is written under the lock of `Shards`,
/// only grows, and moves to a table of twice the size when half full; old tables stay, for readers that
/// are still in them.
#[derive(Debug)]
struct Directory {
    tables: [OnceLock<Box<[Entry]>>; 20],
    current: AtomicUsize,
    used: AtomicUsize,
}

#[derive(Debug, Default)]
struct Entry {
    stream: AtomicU64,
    /// The number plus one; 0: empty.
    index: AtomicU32,
}

const FIRST_TABLE: usize = 64;

impl Directory {
    fn new() -> Self {
        let tables: [OnceLock<Box<[Entry]>>; 20] = std::array::from_fn(|_| OnceLock::new());
        tables[0].get_or_init(|| (0..FIRST_TABLE).map(|_| Entry::default()).collect());
        Directory { tables, current: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    #[inline]
    fn find(&self, stream: StreamId) -> Option<u32> {
        let table = self.tables[self.current.load(Ordering::Acquire)].get()?;
        let mut at = hash(stream) as usize & (table.len() - 1);
        loop {
            let entry = &table[at];
            let index = entry.index.load(Ordering::Acquire);
            if index == 0 {
                return None;
            }
            if entry.stream.load(Ordering::Relaxed) == stream.0 {
                return Some(index - 1);
            }
            at = (at + 1) & (table.len() - 1);
        }
    }

    fn insert(&self, stream: StreamId, index: u32) {
        let current = self.current.load(Ordering::Relaxed);
        let Some(table) = self.tables[current].get() else {
            return;
        };
        let used = self.used.fetch_add(1, Ordering::Relaxed) + 1;
        if used * 2 <= table.len() || current + 1 == self.tables.len() {
            insert_into(table, stream, index);
            return;
        }
        let next = self.tables[current + 1]
            .get_or_init(|| (0..table.len() * 2).map(|_| Entry::default()).collect());
        for entry in table.iter() {
            let old = entry.index.load(Ordering::Relaxed);
            if old != 0 {
                insert_into(next, StreamId(entry.stream.load(Ordering::Relaxed)), old - 1);
            }
        }
        insert_into(next, stream, index);
        self.current.store(current + 1, Ordering::Release);
    }
}

fn insert_into(table: &[Entry], stream: StreamId, index: u32) {
    let mut at = hash(stream) as usize & (table.len() - 1);
    while table[at].index.load(Ordering::Relaxed) != 0 {
        at = (at + 1) & (table.len() - 1);
    }
    table[at].stream.store(stream.0, Ordering::Relaxed);
    table[at].index.store(index + 1, Ordering::Release);
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
        let shards = Shards::new();
        for k in 0..5000 {
            assert_eq!(shards.for_stream(StreamId(k * 64)), Some(k as u32));
        }
        for k in 0..5000 {
            let index = shards.for_stream(StreamId(k * 64)).unwrap();
            assert_eq!(shards.get(index).unwrap().stream, StreamId(k * 64));
        }
        assert_eq!(shards.len(), 5000);
    }

    #[test]
    fn threads_agree_on_the_shard_of_a_stream() {
        let shards = Shards::new();
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let found: Vec<_> = (0..300).map(|k| shards.for_stream(StreamId(k))).collect();
                    seen.lock().push(found);
                });
            }
        });
        let seen = seen.into_inner();
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(shards.len(), 300);
    }
}
