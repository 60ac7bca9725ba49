//! Memory without virtual memory management, because the device has none, or for a private pool or
//! a tool that needs it so: whole segments, split and joined, and given back when nothing in them
//! is used. The sizes are PyTorch's.

use super::grow::Request;
use super::shards::Shard;
use super::watch::Segment;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{ArenaKind, Heap, large_segment};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::units::{Address, Bytes, MIB, PoolId};

impl Engine {
    /// The segment that a request of `bytes` takes.
    pub(super) fn segment_size(&self, bytes: Bytes, kind: ArenaKind) -> Bytes {
        match kind {
            ArenaKind::Small => 2 * MIB,
            ArenaKind::Large => large_segment(bytes, self.config.large_segment_size),
        }
    }

    /// Takes a segment and serves the request from it; `None` where there is no room for it.
    pub(super) fn grow_by_segment(
        &self,
        growth: &mut Growth,
        mut heap: MutexGuard<'_, Heap>,
        request: Request,
    ) -> Result<Option<Address>> {
        let bytes = match self.splits(request.shard) {
            true => self.segment_size(request.bytes, request.kind),
            false => request.bytes,
        };
        if bytes > growth.store.headroom() {
            return Ok(None);
        }
        let Some(base) = self.take_segment(request.shard, bytes)? else {
            return Ok(None);
        };
        growth.store.count_taken(bytes);
        growth.store.note_segment(base);
        growth.store.tell_segment(base, bytes);
        growth.store.count_serving(request.kind, bytes);
        growth.counters.segment_taken(bytes, request.kind, self.config.max_split_size);
        let slots = heap.add_segment(base, bytes, request.kind);
        self.publish(request.shard, &slots);
        let found = heap.allocate(request.requested, request.bytes);
        self.peaks.leave(&self.shards, &mut heap);
        self.note_mapped(base, bytes);
        self.record_memory(Action::SegmentAlloc, request.shard, base, bytes);
        Ok(found)
    }

    /// Gives unused segments back, up to about `wanted` bytes, of one pool or of all. Nothing while
    /// a capture may be under way: the device would have to be waited for. Those of streams that
    /// are being captured all the same stay. Where there are
    /// observers, the segments are put aside until these have been told, and do not count yet.
    pub(super) fn release_segments(
        &self,
        growth: &mut Growth,
        wanted: Bytes,
        only: Option<PoolId>,
    ) -> Result<Bytes> {
        let mut released = 0;
        if self.captures.may_be_under_way(self.device.as_ref())? {
            return Ok(released);
        }
        for (_, shard) in self.shards.iter() {
            if only.is_some_and(|pool| pool != shard.pool_id()) {
                continue;
            }
            // What a capture used, its graph will use.
            if self.deferred.lock().is_captured(shard.stream)? {
                continue;
            }
            let mut heap = shard.heap.lock();
            heap.flush_quick();
            for (base, bytes, kind) in heap.free_segments() {
                if released >= wanted {
                    return Ok(released);
                }
                self.release_segment(growth, shard, &mut heap, (base, bytes, kind))?;
                if self.is_watched() {
                    continue;
                }
                released += bytes;
            }
        }
        self.forget_sources();
        Ok(released)
    }

    /// Gives one unused segment back. A device without virtual memory waits for all its work there.
    /// Where there are observers, the segment is put aside until these have been told.
    pub(super) fn release_segment(
        &self,
        growth: &mut Growth,
        shard: &Shard,
        heap: &mut Heap,
        (base, bytes, kind): (Address, Bytes, ArenaKind),
    ) -> Result<()> {
        if self.is_watched() {
            heap.remove_segment(base);
            self.retract(base, bytes);
            self.part_with(growth, Segment { shard: shard.number, base, bytes, kind });
            return Ok(());
        }
        self.give_segment(growth, shard, base, bytes)?;
        heap.remove_segment(base);
        self.retract(base, bytes);
        self.count_given(growth, (base, bytes), kind);
        Ok(())
    }

    /// Counts a segment that went back to where it came from.
    pub(super) fn count_given(
        &self,
        growth: &mut Growth,
        (base, bytes): (Address, Bytes),
        kind: ArenaKind,
    ) {
        growth.store.forget_segment(base);
        growth.store.count_given(bytes);
        growth.store.count_idle(kind, bytes);
        growth.counters.segment_given(bytes, kind, self.config.max_split_size);
    }
}
