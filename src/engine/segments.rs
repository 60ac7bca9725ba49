//! Memory of devices without virtual memory management: whole segments, split and joined, and given
//! back when nothing in them is used. The sizes are PyTorch's.

use super::grow::Request;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::{DeviceErrorKind, Result};
use crate::heap::{ArenaKind, Heap};
use crate::lock::MutexGuard;
use crate::units::{Address, Bytes, GRANULE, MIB, align_up};

/// Large requests below this share segments of the configured size.
const OWN_SEGMENT: Bytes = 10 * MIB;

impl Engine {
    /// The segment that a request of `bytes` takes.
    pub(super) fn segment_size(&self, bytes: Bytes, kind: ArenaKind) -> Bytes {
        match kind {
            ArenaKind::Small => 2 * MIB,
            ArenaKind::Large if bytes < OWN_SEGMENT => {
                align_up(self.config.large_segment_size.max(bytes), GRANULE)
            }
            ArenaKind::Large => align_up(bytes, GRANULE),
        }
    }

    /// Takes a segment and serves the request from it; `None` where there is no room for it.
    pub(super) fn grow_by_segment(
        &self,
        growth: &mut Growth,
        mut heap: MutexGuard<'_, Heap>,
        request: Request,
    ) -> Result<Option<Address>> {
        let bytes = self.segment_size(request.bytes, request.kind);
        if bytes > growth.store.headroom() {
            return Ok(None);
        }
        let base = match self.device.malloc(bytes) {
            Ok(base) => base,
            Err(error) if error.kind == DeviceErrorKind::OutOfMemory => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        debug_assert!(base.is_multiple_of(GRANULE));
        growth.store.count_taken(bytes);
        growth.store.tell_mapped(base, bytes);
        growth.store.count_serving(request.kind, bytes);
        growth.counters.segment_taken(bytes, request.kind, self.config.max_split_size);
        let slots = heap.add_segment(base, bytes, request.kind);
        self.publish(request.shard, &slots);
        let found = heap.allocate(request.requested, request.bytes);
        self.peaks.leave(&self.shards, &mut heap);
        Ok(found)
    }

    /// Gives unused segments back, up to about `wanted` bytes.
    pub(super) fn release_segments(
        &self,
        growth: &mut Growth,
        wanted: Bytes,
    ) -> DeviceResult<Bytes> {
        let mut released = 0;
        for (_, shard) in self.shards.iter() {
            let mut heap = shard.heap.lock();
            heap.flush_quick();
            for (base, bytes, kind) in heap.free_segments() {
                if released >= wanted {
                    return Ok(released);
                }
                self.release_segment(growth, &mut heap, (base, bytes, kind))?;
                released += bytes;
            }
        }
        Ok(released)
    }

    /// Gives one unused segment back. A device without virtual memory waits for all its work there.
    pub(super) fn release_segment(
        &self,
        growth: &mut Growth,
        heap: &mut Heap,
        (base, bytes, kind): (Address, Bytes, ArenaKind),
    ) -> DeviceResult<()> {
        growth.store.tell_unmapping(base);
        if let Err(error) = self.device.free(base) {
            growth.store.tell_mapped(base, bytes);
            return Err(error);
        }
        heap.remove_segment(base);
        self.retract(base, bytes);
        growth.store.count_given(bytes);
        growth.store.count_idle(kind, bytes);
        growth.counters.segment_given(bytes, kind, self.config.max_split_size);
        Ok(())
    }
}
