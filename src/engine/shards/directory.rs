//! From streams to heaps, without a lock.

use std::sync::Arc;

use super::Shard;
use crate::sync::{AtomicU32, AtomicUsize, MODEL, OnceLock, Ordering};
use crate::units::{StreamId, boxed};

/// A hash table from streams to their first heaps, read without a lock. It is written under the
/// lock of `Shards`, and only grows.
///
/// Most streams are found in `front`, where each has one place, which it may find taken. The rest
/// moves to a table of twice the size when half full; old tables stay, for readers that are still
/// in them.
#[derive(Debug)]
pub(super) struct Directory {
    front: Box<[Place; FRONT]>,
    tables: [OnceLock<Box<[Entry]>>; 20],
    pub(super) current: AtomicUsize,
    used: AtomicUsize,
}

/// A place of the front table. The stream is noted beside its heap, and so is whether there are
/// more: what says the same in the heap's head is in a line of the cache that calls need not have
/// then.
#[derive(Debug)]
#[repr(C, align(32))]
struct Place {
    heap: OnceLock<(StreamId, Arc<Shard>)>,
    /// Whether the stream has more than one lane.
    spread: AtomicU32,
}

type Entry = OnceLock<Arc<Shard>>;

const FRONT_BITS: u32 = if MODEL { 1 } else { 12 };
const FRONT: usize = 1 << FRONT_BITS;
const FIRST_TABLE: usize = if MODEL { 2 } else { 64 };

impl Directory {
    pub(super) fn new() -> Self {
        let tables: [OnceLock<Box<[Entry]>>; 20] = std::array::from_fn(|_| OnceLock::new());
        tables[0].get_or_init(|| (0..FIRST_TABLE).map(|_| Entry::new()).collect());
        let vacant = |_| Place { heap: OnceLock::new(), spread: AtomicU32::new(0) };
        let front = boxed((0..FRONT).map(vacant));
        Directory { front, tables, current: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    /// The heap of a stream that is in front and has one lane.
    #[inline(always)]
    pub(super) fn first_look(&self, stream: StreamId) -> Option<&Shard> {
        let place = &self.front[front_place(stream)];
        let (owner, shard) = place.heap.get()?;
        (*owner == stream && place.spread.load(Ordering::Relaxed) == 0).then_some(shard)
    }

    /// The first heap of a stream.
    pub(super) fn find(&self, stream: StreamId) -> Option<&Shard> {
        if let Some((owner, shard)) = self.front[front_place(stream)].heap.get()
            && *owner == stream
        {
            return Some(shard);
        }
        let table = self.tables.get(self.current.load(Ordering::Acquire))?.get()?;
        let mut at = hash(stream) as usize;
        loop {
            let shard = table[at & (table.len() - 1)].get()?;
            if shard.stream == stream {
                return Some(shard);
            }
            at += 1;
        }
    }

    pub(super) fn insert(&self, stream: StreamId, shard: Arc<Shard>) {
        let Err((_, shard)) = self.front[front_place(stream)].heap.set((stream, shard)) else {
            return;
        };
        let current = self.current.load(Ordering::Relaxed);
        let Some(table) = self.tables[current].get() else {
            return;
        };
        let used = self.used.fetch_add(1, Ordering::Relaxed) + 1;
        if used * 2 <= table.len() || current + 1 == self.tables.len() {
            insert_into(table, shard);
            return;
        }
        let next = self.tables[current + 1]
            .get_or_init(|| (0..table.len() * 2).map(|_| Entry::new()).collect());
        for entry in table.iter() {
            if let Some(old) = entry.get() {
                insert_into(next, Arc::clone(old));
            }
        }
        insert_into(next, shard);
        self.current.store(current + 1, Ordering::Release);
    }

    /// A stream has more than one lane from now on. Whoever does not see that yet goes to the first
    /// one.
    pub(super) fn set_spread(&self, stream: StreamId) {
        let place = &self.front[front_place(stream)];
        if place.heap.get().is_some_and(|(owner, _)| *owner == stream) {
            place.spread.store(1, Ordering::Relaxed);
        }
    }
}

fn insert_into(table: &[Entry], shard: Arc<Shard>) {
    let mut at = hash(shard.stream) as usize;
    while table[at & (table.len() - 1)].get().is_some() {
        at += 1;
    }
    // Nobody else inserts.
    let _ = table[at & (table.len() - 1)].set(shard);
}

/// Where a stream is looked for first: the upper bits of its hash.
#[inline(always)]
pub(super) fn front_place(stream: StreamId) -> usize {
    (stream.0.wrapping_mul(GOLDEN) >> (64 - FRONT_BITS)) as usize
}

/// 2^64 over the golden ratio, for Fibonacci hashing (Knuth, TAOCP 6.4): stream handles are
/// addresses, equal in their low bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn hash(stream: StreamId) -> u64 {
    stream.0.wrapping_mul(GOLDEN) >> 40
}
