//! What is tried before a request fails, and giving memory back to the device.

use std::collections::BTreeSet;

use parking_lot::MutexGuard;

use super::grow::{Effort, Request};
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::units::{Address, Bytes, PoolId};

/// How often a request is tried again because other threads were faster.
const LOST_RACES: u32 = 1000;

/// How often a request is tried again because observers were told of what is in its way. An attempt
/// that fails may have moved memory, which is in the way of the next one: this has no end by
/// itself.
const MOST_ROUNDS: u32 = 8;

impl Engine {
    /// The ladder: each rung frees something, and the request is looked at again from the start.
    pub(super) fn climb(
        &self,
        growth: &mut MutexGuard<'_, Growth>,
        request: Request,
    ) -> Result<Address> {
        let result = self.climb_rungs(growth, request);
        self.give_unmapped_back(growth);
        result
    }

    fn climb_rungs(
        &self,
        growth: &mut MutexGuard<'_, Growth>,
        request: Request,
    ) -> Result<Address> {
        let beyond = growth.store.reserved.current as Bytes + request.bytes > growth.store.limit;
        if self.config.fail_at_limit && beyond {
            self.count_out_of_memory();
            return Err(self.out_of_memory(growth, request));
        }
        if let Some(address) = self.serve_from_pools(request)? {
            return Ok(address);
        }
        growth.counters.retries += 1;
        growth.store.forget_ceiling();
        growth.counters.synchronised += 1;
        if self.wait_for_deferred()? {
            if let Some(address) = self.attempt(growth, request, Effort::Usual)? {
                return Ok(address);
            }
            if let Some(address) = self.serve_from_pools(request)? {
                return Ok(address);
            }
        }
        // What was imported and is not open any more may be all that holds memory of the device.
        let settled = self.settle_pools() | self.close_all_left();
        if settled && let Some(address) = self.attempt(growth, request, Effort::Usual)? {
            return Ok(address);
        }
        // Memory that other threads took and freed again in the meantime may suffice after all.
        for _ in 0..LOST_RACES {
            let lost = growth.lost;
            if let Some(address) = self.attempt(growth, request, Effort::Reshape)? {
                return Ok(address);
            }
            if growth.lost == lost {
                break;
            }
            std::thread::yield_now();
        }
        // Segments are all there is without virtual memory, and with it some pools have them.
        if self.release_segments(growth, Bytes::MAX, None)? > 0
            && let Some(address) = self.attempt(growth, request, Effort::Reshape)?
        {
            return Ok(address);
        }
        self.end_loans_for_a_segment(growth, request)?;
        for _ in 0..MOST_ROUNDS {
            if self.virtual_memory
                && let Some(address) = self.use_room_in_place(growth, request)?
            {
                return Ok(address);
            }
            if !self.announce(growth)? {
                break;
            }
            if let Some(address) = self.attempt(growth, request, Effort::Reshape)? {
                return Ok(address);
            }
        }
        if let Some(address) = self.give_up_spare_handles(growth, request)? {
            return Ok(address);
        }
        self.count_out_of_memory();
        Err(self.out_of_memory(growth, request))
    }

    /// For a heap that takes segments: it lends and borrows nothing, so that no attempt has looked
    /// at loans. What was lent keeps handles in use that could be given back for a segment.
    fn end_loans_for_a_segment(&self, growth: &mut Growth, request: Request) -> DeviceResult<()> {
        if self.shards.get(request.shard).is_some_and(|shard| shard.takes_segments()) {
            self.recall(growth, None, Effort::Reshape)?;
        }
        Ok(())
    }

    /// Serves a request of a heap that takes segments, which are made of what the device has and of
    /// no handle.
    fn give_up_spare_handles(
        &self,
        growth: &mut Growth,
        request: Request,
    ) -> Result<Option<Address>> {
        let shard = self.shards.get(request.shard);
        if shard.is_some_and(|shard| shard.takes_segments()) && self.give_unmapped_back(growth) {
            return self.attempt(growth, request, Effort::Reshape);
        }
        Ok(None)
    }

    /// Gives spare handles back to the device that are mapped nowhere any more, as it happens where
    /// room is made in place: what is kept has an address, by which others see it. True where there
    /// were any.
    fn give_unmapped_back(&self, growth: &mut Growth) -> bool {
        let mut given = false;
        for number in growth.store.spare.clone() {
            let unmapped = growth.store.handle(number).is_some_and(|h| h.dormant.is_empty());
            if unmapped {
                // Else it serves the next request, or goes with the rest of the cache.
                given |= growth.store.release(number).is_ok();
            }
        }
        given
    }

    /// Gives all cached memory back to the device.
    pub(crate) fn empty_cache(&self) -> Result<()> {
        let result = self.give_cache_back(&mut self.growth.lock());
        self.close_all_left();
        self.tell_observers();
        result
    }

    /// Waits for all frees and gives all cached memory back.
    pub(super) fn give_cache_back(&self, growth: &mut MutexGuard<'_, Growth>) -> Result<()> {
        growth.counters.synchronised += 1;
        self.settle_pools();
        let waited = self.wait_for_deferred();
        let released = self
            .release_segments(growth, Bytes::MAX, None)
            .and_then(|_| Ok(self.release_idle(growth, Bytes::MAX, None)?));
        // Also where not everything could be waited for: what is put aside is nobody's until then.
        let announced = self.announce(growth).and_then(|more| match more {
            true => Ok(self.release_idle(growth, Bytes::MAX, None).map(drop)?),
            false => Ok(()),
        });
        waited?;
        released?;
        announced
    }

    /// Gives idle handles of one pool or of all back, save those of streams that are being
    /// captured, up to about `wanted` bytes; gives how many bytes it came to. Nothing while a
    /// capture may be under way that could use any of it.
    pub(super) fn release_idle(
        &self,
        growth: &mut Growth,
        wanted: Bytes,
        only: Option<PoolId>,
    ) -> DeviceResult<Bytes> {
        let mut released = 0;
        if self.captures.may_be_under_way(self.device.as_ref())? {
            return Ok(released);
        }
        // What failed is looked at again with the next request.
        let _ = self.recall(growth, None, Effort::Reshape);
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
            for view in heap.idle_views() {
                if released >= wanted || !heap.detach(view.view) {
                    continue;
                }
                self.withdraw(shard.number, view.address, view.bytes);
                growth.store.deactivate(view.handle, heap.mark());
                released += view.bytes;
            }
        }
        for number in growth.store.spare.clone() {
            self.dissolve(growth, None, number)?;
        }
        Ok(released)
    }

    /// With a threshold and a limit: gives idle memory back once what is reserved exceeds that
    /// share of the limit. PyTorch's `garbage_collection_threshold`.
    pub(super) fn collect_garbage(&self, growth: &mut MutexGuard<'_, Growth>, bytes: Bytes) {
        let threshold = self.config.garbage_collection_threshold;
        let limit = growth.store.limit;
        if threshold <= 0.0 || limit == Bytes::MAX {
            return;
        }
        let allowed = (limit as f64 * threshold) as Bytes;
        let excess = (growth.store.reserved.current as Bytes + bytes).saturating_sub(allowed);
        if excess == 0 {
            return;
        }
        // A failure to give memory back is no failure to allocate.
        let _ = match self.virtual_memory {
            true => self.release_idle(growth, excess, None).is_ok(),
            false => self.release_segments(growth, excess, None).is_ok(),
        };
        if self.announce(growth).is_ok_and(|more| more) {
            // What is spare already can go now.
            let _ = self.release_idle(growth, 0, None);
        }
    }

    /// Gives the address ranges back in which nothing is mapped any more.
    pub(super) fn give_addresses_back(&self) {
        let mut mapped = BTreeSet::new();
        let mut ranges = Vec::new();
        for (_, shard) in self.shards.iter() {
            let heap = shard.heap.lock();
            mapped.extend(heap.views().map(|(_, view)| view.address));
            ranges.extend(heap.virtual_ranges());
        }
        for (base, bytes) in ranges {
            if mapped.range(base..base + bytes).next().is_none() {
                let _ = self.device.free_address(base, bytes);
            }
        }
    }
}
