//! Private pools: heaps of their own, for graphs and for whoever wants memory apart.
//!
//! A pool has users, counted by the program. While it has any, its memory stays where it is, idle
//! or not: a captured graph goes on using addresses that were freed during the capture. A pool has
//! a heap for each stream that allocated in it. Which allocations go to a pool is decided by
//! filters, which are looked at only while a pool is open ([`flag::DIVERTED`]).
//!
//! Graphs run on streams that the allocator does not know. So the memory of a pool that graphs may
//! have used serves others only after the whole device was waited for once
//! ([`settle_pools`](Engine::settle_pools)), which is put off until memory is short, the cache is
//! emptied, or another pool is opened.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::allocate::too_many_streams;
use super::pool_memory::{Pool, SegmentSource};
use super::shards::Shard;
use super::{Engine, flag};
use crate::error::{Error, Result};
use crate::heap::metric;
use crate::units::{Address, PoolId, StreamId};

/// Tells whether an allocation on a stream goes to a pool.
pub(crate) type StreamFilter = Box<dyn Fn(StreamId) -> Result<bool> + Send + Sync>;

/// A pool and its heaps.
#[derive(Debug)]
struct Entry {
    pool: Arc<Pool>,
    uses: u32,
    use_on_oom: bool,
    heaps: BTreeMap<StreamId, u32>,
}

/// How many pools that no graph used may have ended since the device was waited for.
const MOST_ENDED: usize = 64;

/// Where allocations go while a pool is open.
struct Diversion {
    pool: PoolId,
    filter: StreamFilter,
}

/// The private pools of one device.
#[derive(Default)]
pub(crate) struct Pools {
    used: BTreeMap<PoolId, Entry>,
    /// Pools without users, which the device has not been waited for since.
    ended: Vec<Entry>,
    /// Heaps of ended pools in which nothing lives and which no work can be using: ready for other
    /// pools, on the same streams.
    vacant: Vec<(StreamId, u32)>,
    /// The newest last.
    diversions: Vec<Diversion>,
}

impl Pools {
    fn entry(&mut self, pool: PoolId) -> Result<&mut Entry> {
        self.used.get_mut(&pool).ok_or_else(|| unknown(pool))
    }

    /// The heaps of a stream that the default pool may be served from before a request fails.
    pub(super) fn usable_on_oom(&self, stream: StreamId) -> impl Iterator<Item = u32> {
        let usable = self.used.values().filter(|entry| entry.use_on_oom);
        let heaps: Vec<u32> =
            usable.filter_map(|entry| entry.heaps.get(&stream).copied()).collect();
        heaps.into_iter()
    }

    /// A pool that has uses, and the numbers of its heaps in order.
    pub(super) fn in_use(&self, pool: PoolId) -> Option<(&Arc<Pool>, Vec<u32>)> {
        let entry = self.used.get(&pool)?;
        let mut heaps: Vec<u32> = entry.heaps.values().copied().collect();
        heaps.sort_unstable();
        Some((&entry.pool, heaps))
    }

    fn is_open(&self, pool: PoolId) -> bool {
        self.diversions.iter().any(|diversion| diversion.pool == pool)
    }
}

impl Engine {
    /// Makes a pool with one use, or adds a use to it.
    pub(crate) fn create_or_incref_pool(
        &self,
        pool: PoolId,
        source: Option<Arc<dyn SegmentSource>>,
    ) -> Result<()> {
        if pool == PoolId::DEFAULT {
            return Err(invalid(pool, "a private pool; this is the default pool"));
        }
        let mut pools = self.pools.write();
        if let Some(entry) = pools.used.get_mut(&pool) {
            if source.is_some() {
                return Err(invalid(pool, "a new pool, since it takes segments from an allocator"));
            }
            entry.uses += 1;
            return Ok(());
        }
        let made = Arc::new(Pool::new(pool, source));
        let entry = Entry { pool: made, uses: 1, use_on_oom: false, heaps: BTreeMap::new() };
        pools.used.insert(pool, entry);
        Ok(())
    }

    /// Gives one use of a pool up. With the last its memory is like any other, once it is certain
    /// that no graph uses it.
    pub(crate) fn release_pool(&self, pool: PoolId) -> Result<()> {
        let mut pools = self.pools.write();
        let open = pools.is_open(pool);
        let entry = pools.entry(pool)?;
        if entry.uses > 1 {
            entry.uses -= 1;
            return Ok(());
        }
        if open {
            return Err(invalid(pool, "a pool to which allocations do not go any more"));
        }
        if let Some(entry) = pools.used.remove(&pool) {
            if !entry.pool.graphs.load(Ordering::Relaxed) {
                self.hold(&entry, false);
            }
            pools.ended.push(entry);
        }
        Ok(())
    }

    /// How many uses a pool has; 0 where there is no such pool.
    pub(crate) fn pool_use_count(&self, pool: PoolId) -> u32 {
        self.pools.read().used.get(&pool).map_or(0, |entry| entry.uses)
    }

    /// Sends allocations on streams for which the filter is true to a pool, which gets one more
    /// use.
    pub(crate) fn begin_pool(&self, pool: PoolId, filter: StreamFilter) -> Result<()> {
        if self.pools.read().is_open(pool) {
            return Err(invalid(pool, "a pool to which allocations do not go already"));
        }
        if self.has_to_settle() {
            self.settle_pools();
        }
        self.create_or_incref_pool(pool, None)?;
        let mut pools = self.pools.write();
        if pools.is_open(pool) {
            drop(pools);
            self.release_pool(pool)?;
            return Err(invalid(pool, "a pool to which allocations do not go already"));
        }
        self.captures.watch(pool);
        pools.diversions.push(Diversion { pool, filter });
        self.flags.fetch_or(flag::DIVERTED, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the device is to be waited for before a pool opens: so that what earlier graphs used
    /// can be had in this one, and that pools which come and go do not each leave heaps behind.
    fn has_to_settle(&self) -> bool {
        let pools = self.pools.read();
        let in_use = |number: &u32| {
            let shard = self.shards.get(*number);
            shard.is_some_and(|shard| shard.heap.lock().tally.current(metric::ACTIVE) > 0)
        };
        let is_over = |entry: &&Entry| !entry.heaps.values().any(in_use);
        pools.ended.iter().any(|entry| entry.pool.graphs.load(Ordering::Relaxed))
            || pools.ended.iter().filter(is_over).count() >= MOST_ENDED
    }

    /// Ends that. The use stays.
    pub(crate) fn end_pool(&self, pool: PoolId) -> Result<()> {
        let mut pools = self.pools.write();
        if !pools.is_open(pool) {
            return Err(invalid(pool, "a pool to which allocations go"));
        }
        pools.diversions.retain(|diversion| diversion.pool != pool);
        self.captures.unwatch(pool);
        if pools.diversions.is_empty() {
            self.flags.fetch_and(!flag::DIVERTED, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A capture begins on this device.
    pub(crate) fn mark_capture_begin(&self) {
        self.captures.mark_begin();
    }

    /// A capture has ended on this device.
    pub(crate) fn mark_capture_end(&self) -> Result<()> {
        if self.captures.mark_end() {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            argument: "device of an ended capture",
            value: self.index.to_string(),
            expected: "one where a capture was marked to begin and not to end since".to_owned(),
        })
    }

    /// Whether requests of the default pool that would fail may be served from what a pool has
    /// free. Turning it off for a pool that is not there changes nothing.
    pub(crate) fn set_use_on_oom(&self, pool: PoolId, use_on_oom: bool) -> Result<()> {
        match self.pools.write().entry(pool) {
            Ok(entry) => entry.use_on_oom = use_on_oom,
            Err(error) if use_on_oom => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    /// From now on each request in this pool gets a segment of its own.
    pub(crate) fn set_no_split(&self, pool: PoolId) -> Result<()> {
        let mut pools = self.pools.write();
        let entry = pools.entry(pool)?;
        entry.pool.no_split.store(true, Ordering::Relaxed);
        for shard in entry.heaps.values().filter_map(|&number| self.shards.get(number)) {
            shard.heap.lock().split_no_more();
        }
        Ok(())
    }

    /// Whether the live allocations of a pool are exactly these.
    pub(crate) fn pool_holds_exactly(
        &self,
        pool: PoolId,
        expected: &HashSet<Address>,
    ) -> Result<bool> {
        let mut pools = self.pools.write();
        let entry = pools.entry(pool)?;
        let mut count = 0;
        for shard in entry.heaps.values().filter_map(|&number| self.shards.get(number)) {
            let heap = shard.heap.lock();
            for block in heap.blocks().filter(|block| block.state.is_live()) {
                if !expected.contains(&block.start) {
                    return Ok(false);
                }
                count += 1;
            }
        }
        Ok(count == expected.len())
    }

    /// The heap of the pool to which an allocation on `stream` goes.
    pub(super) fn diverted(&self, stream: StreamId) -> Result<Option<(u32, &Shard)>> {
        let pools = self.pools.read();
        let mut wanted = None;
        for diversion in pools.diversions.iter().rev() {
            if (diversion.filter)(stream)? {
                wanted = pools.used.get(&diversion.pool);
                break;
            }
        }
        let Some(entry) = wanted else {
            return Ok(None);
        };
        let pool = Arc::clone(&entry.pool);
        let heap = entry.heaps.get(&stream).copied();
        drop(pools);
        self.captures.saw(pool.id, stream);
        if !pool.graphs.load(Ordering::Relaxed)
            && (self.captures.marks() > 0 || self.device.capture_status(stream)?.is_some())
        {
            pool.graphs.store(true, Ordering::Relaxed);
        }
        let number = match heap {
            Some(number) => number,
            None => self.add_pool_heap(&pool, stream)?,
        };
        Ok(self.shards.get(number).map(|shard| (number, shard.as_ref())))
    }

    /// A heap for a pool on a stream: one that an ended pool has left, or a new one.
    #[cold]
    fn add_pool_heap(&self, pool: &Arc<Pool>, stream: StreamId) -> Result<u32> {
        let mut pools = self.pools.write();
        if let Some(&number) = pools.entry(pool.id)?.heaps.get(&stream) {
            return Ok(number);
        }
        // Segments go back to where their own pool has them from.
        let fits = |number: u32| {
            self.shards.get(number).is_some_and(|shard| {
                !(pool.takes_segments() || shard.takes_segments())
                    || !shard.heap.lock().has_memory()
            })
        };
        let left = pools.vacant.iter().position(|&(of, number)| of == stream && fits(number));
        let number = match left.map(|at| pools.vacant.swap_remove(at).1) {
            Some(number) => number,
            None => {
                let added = self.shards.add_private(stream, Arc::clone(pool));
                added.ok_or_else(too_many_streams)?
            }
        };
        if let Some(shard) = self.shards.get(number) {
            shard.set_pool(Arc::clone(pool));
            let mut heap = shard.heap.lock();
            heap.hold_all(true);
            match pool.no_split.load(Ordering::Relaxed) {
                true => heap.split_no_more(),
                false => heap.split_as(self.whole),
            }
        }
        pools.entry(pool.id)?.heaps.insert(stream, number);
        Ok(number)
    }

    fn hold(&self, entry: &Entry, hold: bool) {
        for shard in entry.heaps.values().filter_map(|&number| self.shards.get(number)) {
            shard.heap.lock().hold_all(hold);
        }
    }

    /// Waits for the device, where pools have ended since it was last waited for: then no graph of
    /// theirs runs any more, and their memory is like any other. Does nothing while a capture may
    /// be under way, which a wait for the device would spoil. True where that freed something.
    pub(super) fn settle_pools(&self) -> bool {
        let mut pools = self.pools.write();
        if pools.ended.is_empty() || self.may_be_capturing() || self.device.synchronize().is_err() {
            return false;
        }
        let Pools { ended, vacant, .. } = &mut *pools;
        for entry in ended.iter_mut() {
            self.hold(entry, false);
            entry.heaps.retain(|&stream, &mut number| {
                let Some(shard) = self.shards.get(number) else {
                    return false;
                };
                let mut heap = shard.heap.lock();
                if heap.tally.current(metric::ACTIVE) > 0 {
                    return true;
                }
                heap.flush_quick();
                vacant.push((stream, number));
                false
            });
            entry.pool.graphs.store(false, Ordering::Relaxed);
        }
        ended.retain(|entry| !entry.heaps.is_empty());
        true
    }

    /// Lets go of the sources of ended pools that have given their last segment back.
    pub(super) fn forget_sources(&self) {
        let pools = self.pools.write();
        for shard in pools.vacant.iter().filter_map(|&(_, number)| self.shards.get(number)) {
            let Some(pool) = shard.pool().filter(|pool| pool.source.is_some()) else {
                continue;
            };
            if !shard.heap.lock().has_memory() {
                shard.set_pool(Arc::new(Pool::new(pool.id, None)));
            }
        }
    }

    /// Whether a stream of this device may be being captured.
    pub(super) fn may_be_capturing(&self) -> bool {
        self.captures.may_be_under_way(self.device.as_ref()).unwrap_or(true) || self.any_capture()
    }
}

pub(super) fn unknown(pool: PoolId) -> Error {
    invalid(pool, "a pool that is in use; could not find a pool of this id")
}

fn invalid(pool: PoolId, expected: &str) -> Error {
    Error::InvalidArgument {
        argument: "pool",
        value: format!("({}, {})", pool.0, pool.1),
        expected: expected.to_owned(),
    }
}
