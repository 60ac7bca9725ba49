//! The memory of private pools: how a request in one is served, and where segments come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::MutexGuard;

use super::grow::Request;
use super::shards::Shard;
use super::{Engine, Growth};
use crate::error::{DeviceErrorKind, Error, Result};
use crate::heap::ArenaKind;
use crate::observe::Action;
use crate::units::{Address, Bytes, DeviceId, GRANULE, PoolId, StreamId};

/// Where a pool takes its memory from, instead of the device: whole segments, which the allocator
/// divides and caches.
///
/// The methods are called with locks of the allocator held: they must not call the allocator, nor
/// wait for a thread that does.
pub trait SegmentSource: Send + Sync {
    /// Makes a segment of `bytes`, a multiple of 2 MiB, for use on `stream`; its address must be a
    /// multiple of 2 MiB. 0 means that there is no memory.
    ///
    /// # Errors
    /// Whatever failed; the request fails with it.
    fn allocate(&self, device: DeviceId, bytes: Bytes, stream: StreamId) -> Result<Address>;

    /// Takes a segment back on which nothing lives any more. All work of the device has been waited
    /// for.
    ///
    /// # Errors
    /// Whatever failed; the segment stays with the pool.
    fn free(&self, device: DeviceId, address: Address, bytes: Bytes) -> Result<()>;
}

/// A private pool, as its heaps know it.
pub(crate) struct Pool {
    pub(crate) id: PoolId,
    pub(super) source: Option<Arc<dyn SegmentSource>>,
    pub(super) no_split: AtomicBool,
    /// Whether graphs may use its memory.
    pub(super) graphs: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(id: PoolId, source: Option<Arc<dyn SegmentSource>>) -> Pool {
        // PyTorch's graphs make pools that are numbered in the first place.
        let graphs = AtomicBool::new(id.0 != 0);
        Pool { id, source, no_split: AtomicBool::new(false), graphs }
    }

    /// Whether its memory comes as whole segments.
    pub(crate) fn takes_segments(&self) -> bool {
        self.source.is_some() || self.no_split.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Allocates where the filters of the open pools say; `None` where none of them wants the
    /// stream.
    #[cold]
    pub(super) fn allocate_diverted(
        &self,
        bytes: Bytes,
        stream: StreamId,
    ) -> Result<Option<Address>> {
        let Some((number, shard)) = self.diverted(stream)? else {
            return Ok(None);
        };
        let (_, rounded) = self.size_in(number, bytes);
        let mut heap = shard.heap.lock();
        if self.peaks.enter(&mut heap) {
            let found = heap.allocate(bytes, rounded);
            self.peaks.leave(&self.shards, &mut heap);
            if found.is_some() {
                return Ok(found);
            }
        }
        drop(heap);
        self.allocate_slow(number, bytes).map(Some)
    }

    /// Gives back what a pool without users has cached; of one with users nothing.
    pub(crate) fn empty_pool(&self, pool: PoolId) -> Result<()> {
        if pool == PoolId::DEFAULT {
            return self.empty_cache();
        }
        let result = self.give_pool_back(&mut self.growth.lock(), pool);
        self.tell_observers();
        result
    }

    fn give_pool_back(&self, growth: &mut MutexGuard<'_, Growth>, pool: PoolId) -> Result<()> {
        self.settle_pools();
        self.wait_for_deferred()?;
        self.release_segments(growth, Bytes::MAX, Some(pool))?;
        self.release_idle(growth, Bytes::MAX, Some(pool))?;
        if self.announce(growth)? {
            self.release_idle(growth, Bytes::MAX, Some(pool))?;
        }
        Ok(())
    }

    /// Serves a request of the default pool from what pools that allow it have free on its stream.
    pub(super) fn serve_from_pools(&self, request: Request) -> Result<Option<Address>> {
        let Some(own) = self.shards.get(request.shard).filter(|shard| shard.pool().is_none())
        else {
            return Ok(None);
        };
        let pools = self.pools.read();
        for number in pools.usable_on_oom(own.stream) {
            let Some(shard) = self.shards.get(number) else {
                continue;
            };
            let (_, bytes) = self.size_in(number, request.requested);
            let mut heap = shard.heap.lock();
            self.enter_anew(shard, &mut heap)?;
            heap.flush_quick();
            let found = heap.allocate_any(request.requested, bytes);
            self.peaks.leave(&self.shards, &mut heap);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The arena and the size with which a request is served by a heap: where blocks are not split,
    /// a whole segment.
    pub(super) fn size_in(&self, shard: u32, requested: Bytes) -> (ArenaKind, Bytes) {
        let (kind, bytes) = self.size_of(requested);
        match self.splits(shard) {
            true => (kind, bytes),
            false => (ArenaKind::Large, self.segment_size(bytes, kind)),
        }
    }

    /// Whether a heap divides its segments between requests.
    pub(super) fn splits(&self, shard: u32) -> bool {
        let pool = self.shards.get(shard).and_then(|shard| shard.pool());
        pool.is_none_or(|pool| !pool.no_split.load(Ordering::Relaxed))
    }

    /// Takes a segment from the device, or from where the heap's pool has its memory; `None` where
    /// there is none.
    pub(super) fn take_segment(&self, shard: u32, bytes: Bytes) -> Result<Option<Address>> {
        let owner = self.shards.get(shard);
        let pool = owner.and_then(|shard| shard.pool());
        let Some((source, owner)) = pool.and_then(|pool| pool.source.clone()).zip(owner) else {
            return match self.device.malloc(bytes) {
                Ok(base) => Ok(Some(base)),
                Err(error) if error.kind == DeviceErrorKind::OutOfMemory => Ok(None),
                Err(error) => Err(error.into()),
            };
        };
        let base = match source.allocate(self.id(), bytes, owner.stream) {
            Err(error) if error.is_out_of_memory() => return Ok(None),
            base => base?,
        };
        if base.is_multiple_of(GRANULE) {
            return Ok((base != 0).then_some(base));
        }
        source.free(self.id(), base, bytes)?;
        Err(Error::Unsupported {
            operation: "a segment that is not aligned to 2 MiB".to_owned(),
            by: "a private pool".to_owned(),
            why: format!("its allocator gave {base:#x}"),
        })
    }

    /// Gives a segment back to where it came from.
    pub(super) fn give_segment(
        &self,
        growth: &Growth,
        shard: &Shard,
        base: Address,
        bytes: Bytes,
    ) -> Result<()> {
        growth.store.tell_segment_end(base);
        self.record_memory(Action::SegmentFree, shard.number, base, bytes);
        let given = match shard.pool().and_then(|pool| pool.source.clone()) {
            None => self.device.free(base).map_err(Into::into),
            Some(source) => {
                let waited = self.device.synchronize();
                waited.map_err(Into::into).and_then(|()| source.free(self.id(), base, bytes))
            }
        };
        if given.is_err() {
            growth.store.tell_segment(base, bytes);
            self.record_memory(Action::SegmentAlloc, shard.number, base, bytes);
        }
        given
    }

    /// What pools in use have free, which serves nobody else.
    pub(super) fn held_by_pools(&self) -> Bytes {
        let held = |shard: &Shard| {
            let heap = shard.heap.lock();
            if heap.is_held() { heap.cached() } else { 0 }
        };
        self.shards.iter().map(|(_, shard)| held(shard)).sum()
    }
}
