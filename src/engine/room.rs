//! The last rung before a request fails: room in place. A request that lacks less than a granule
//! may still begin in the rest of a page behind a live block, if memory can be mapped to what
//! follows.
//! Addresses that something else holds are set free for that: dormant views are unmapped, holes of
//! other heaps change hands, and ranges are continued into their tails.

use super::grow::{Effort, Request};
use super::shards::Shard;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::IdleList;
use crate::units::{Address, Bytes};

impl Engine {
    /// Serves a request by what is free in place; else also with everything that is idle given back
    /// to the device first.
    pub(super) fn use_room_in_place(
        &self,
        growth: &mut Growth,
        request: Request,
    ) -> Result<Option<Address>> {
        if self.in_reach(growth, request)? < request.bytes {
            return Ok(None);
        }
        for all in [false, true] {
            if all {
                if !self.policy.steal {
                    break;
                }
                self.release_idle(growth, Bytes::MAX, None)?;
            }
            self.unmap_dormant(growth)?;
            self.claim_holes(request);
            if let Some(address) = self.attempt(growth, request, Effort::Reshape)? {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    /// All that could serve a request at best: what the device has, what is idle anywhere, and all
    /// that is free in its heap.
    fn in_reach(&self, growth: &Growth, request: Request) -> DeviceResult<Bytes> {
        let headroom = growth.store.headroom().min(self.device.memory_info()?.free);
        let spare = growth.store.spare.iter().filter_map(|&number| growth.store.handle(number));
        let mut idle = IdleList::default();
        self.idle_of_others(None, request, &mut idle, Effort::Reshape);
        let own = self.shards.get(request.shard).map_or(0, |shard| shard.heap.lock().cached());
        Ok(headroom + spare.map(|handle| handle.bytes).sum::<Bytes>() + idle.all().bytes() + own)
    }

    /// Unmaps every dormant view whose stream is not being captured; work that may use it is waited
    /// for. None while a capture may be under way; what observers have to be told of first is put
    /// on their list.
    fn unmap_dormant(&self, growth: &mut Growth) -> DeviceResult<()> {
        if self.captures.may_be_under_way(self.device.as_ref())? {
            return Ok(());
        }
        let mut drained = Vec::new();
        for (_, shard) in self.shards.iter() {
            if self.deferred.lock().drain(shard.stream)? {
                drained.push(shard.number);
            }
        }
        let dormant: Vec<_> = growth
            .store
            .handles()
            .flat_map(|(number, handle)| handle.dormant.iter().map(move |place| (number, *place)))
            .collect();
        for (number, place) in dormant {
            if let Some(shard) = self.shards.get(place.shard)
                && drained.contains(&place.shard)
                && self.may_unmap_place(growth, number, place.address)
            {
                growth.store.unmap_dormant(number, place)?;
                self.note_unmapped(growth, place.address);
                shard.heap.lock().drop_dormant(place.view);
            }
        }
        Ok(())
    }

    /// Takes the holes of other heaps over that a request would need which begins or ends in free
    /// memory of its heap; the tail of a range behind it is opened as far.
    fn claim_holes(&self, request: Request) {
        let Some(shard) = self.shards.get(request.shard) else {
            return;
        };
        let mut heap = shard.heap.lock();
        let mut claimed = true;
        while claimed {
            claimed = false;
            for (span, at_end) in heap.in_the_way(request.kind, request.bytes) {
                claimed |= heap.continue_range(request.kind, span.0, span.1);
                let others = self.shards.iter().filter(|(number, _)| *number != request.shard);
                let cede = |(_, other): (u32, &Shard)| {
                    other.heap.lock().cede_hole(request.kind, span, at_end)
                };
                if let Some(ceded) = others.filter_map(cede).next() {
                    heap.adopt(&ceded);
                    claimed = true;
                }
            }
        }
    }
}
