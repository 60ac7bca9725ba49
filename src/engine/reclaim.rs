//! What is tried before a request fails, and giving memory back to the device.

use std::collections::BTreeSet;

use super::grow::{Effort, Request};
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::units::{Address, Bytes};

/// How often a request is tried again because other threads were faster.
const LOST_RACES: u32 = 1000;

impl Engine {
    /// The ladder: each rung frees something, and the request is looked at again from the start.
    pub(super) fn climb(&self, growth: &mut Growth, request: Request) -> Result<Address> {
        let beyond = growth.store.reserved.current as Bytes + request.bytes > growth.store.limit;
        if self.config.fail_at_limit && beyond {
            self.count_out_of_memory();
            return Err(self.out_of_memory(growth, request));
        }
        growth.counters.retries += 1;
        growth.store.forget_ceiling();
        growth.counters.synchronised += 1;
        if self.wait_for_deferred()?
            && let Some(address) = self.attempt(growth, request, Effort::Usual)?
        {
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
        let found = if self.virtual_memory {
            self.use_room_in_place(growth, request)?
        } else {
            self.release_segments(growth, Bytes::MAX)?;
            self.attempt(growth, request, Effort::Reshape)?
        };
        if let Some(address) = found {
            return Ok(address);
        }
        self.count_out_of_memory();
        Err(self.out_of_memory(growth, request))
    }

    /// Gives all cached memory back to the device.
    pub(crate) fn empty_cache(&self) -> Result<()> {
        self.give_cache_back(&mut self.growth.lock())
    }

    /// Waits for all frees and gives all cached memory back.
    pub(super) fn give_cache_back(&self, growth: &mut Growth) -> Result<()> {
        growth.counters.synchronised += 1;
        let waited = self.wait_for_deferred();
        let released = self
            .release_segments(growth, Bytes::MAX)
            .and_then(|_| self.release_idle(growth, Bytes::MAX));
        waited?;
        released?;
        Ok(())
    }

    /// Gives idle handles back, save those of streams that are being captured, up to about `wanted`
    /// bytes; gives how many bytes it came to.
    pub(super) fn release_idle(&self, growth: &mut Growth, wanted: Bytes) -> DeviceResult<Bytes> {
        let mut released = 0;
        let mut found = Vec::new();
        for (_, shard) in self.shards.iter() {
            // What a capture used, its graph will use.
            if self.deferred.lock().is_captured(shard.stream)? {
                continue;
            }
            let mut heap = shard.heap.lock();
            heap.flush_quick();
            heap.idle_views(&mut found);
            for view in found.drain(..) {
                if released >= wanted || !heap.detach(view.view) {
                    continue;
                }
                self.retract(view.address, view.bytes);
                growth.store.deactivate(view.handle);
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
    pub(super) fn collect_garbage(&self, growth: &mut Growth, bytes: Bytes) {
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
            true => self.release_idle(growth, excess),
            false => self.release_segments(growth, excess),
        };
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
