//! Where the handles for a request come from: spare ones, new ones, and those of idle memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::grow::{Effort, Request};
use super::idle::Idle;
use super::means::Supply;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::{Heap, IdleList};
use crate::lock::MutexGuard;
use crate::pages::Place;
use crate::units::{Bytes, GRANULE, StreamId};

impl Engine {
    /// Finds a handle of at most `room` bytes, better of at most `remaining`; it is spare
    /// afterwards, and work queued on the request's stream runs after whatever still uses it.
    pub(super) fn obtain(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (remaining, room): (Bytes, Bytes),
        supply: &mut Supply,
    ) -> Result<Option<u32>> {
        if !growth.store.spare.is_empty()
            && let Some(number) = self.claim_best(growth, request.shard, (remaining, room))?
        {
            return Ok(Some(number));
        }
        if let Some(number) = self.create_from_cut(growth, remaining, supply)? {
            return Ok(Some(number));
        }
        if supply.ready >= GRANULE {
            let size = self.policy.handle_size(remaining, supply.made);
            if size <= supply.ready
                && let Some(number) = growth.store.create(size)?
            {
                supply.ready -= size;
                supply.most -= size;
                return Ok(Some(number));
            }
        }
        while let Some(at) = supply.best_idle((remaining, room)) {
            let source = supply.take_idle(at);
            if !self.take_from(growth, heap, request.shard, source)? {
                continue;
            }
            let number = source.view.handle;
            if source.view.bytes > supply.longest
                && self.is_quiet(growth, number)?
                && self.dissolve(growth, Some((request.shard, &mut *heap)), number)?
            {
                supply.cut += source.view.bytes;
                match self.create_from_cut(growth, remaining, supply)? {
                    Some(shorter) => return Ok(Some(shorter)),
                    None => continue,
                }
            }
            return Ok(Some(number));
        }
        self.make(growth, heap, request, remaining, supply)
    }

    /// The spare handle that fits best of those that may be claimed, claimed.
    fn claim_best(
        &self,
        growth: &Growth,
        taker: u32,
        sizes: (Bytes, Bytes),
    ) -> Result<Option<u32>> {
        let spare = growth.store.spare.iter().copied();
        let mut sized: Vec<(u32, Bytes)> = spare
            .filter_map(|number| growth.store.handle(number).map(|handle| (number, handle.bytes)))
            .collect();
        let mut longest = Bytes::MAX;
        while let Some(at) = best_size(sized.iter().map(|s| s.1), sizes, &mut longest) {
            let (number, _) = sized.swap_remove(at);
            if self.claim(growth, taker, number)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Whether nothing queued can use a handle through any of its mappings, so that giving it back
    /// waits for nothing.
    pub(super) fn is_quiet(&self, growth: &Growth, number: u32) -> DeviceResult<bool> {
        let Some(handle) = growth.store.handle(number) else {
            return Ok(false);
        };
        let mut asked = Vec::new();
        for place in &handle.dormant {
            let Some(shard) = self.shards.get(place.shard) else {
                continue;
            };
            if !asked.contains(&shard.stream) {
                asked.push(shard.stream);
                if !self.deferred.lock().is_idle(shard.stream)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Makes a handle of the memory of those that were cut up.
    fn create_from_cut(
        &self,
        growth: &mut Growth,
        remaining: Bytes,
        supply: &mut Supply,
    ) -> DeviceResult<Option<u32>> {
        let most = supply.cut.min(supply.longest).min(remaining);
        if most < GRANULE {
            return Ok(None);
        }
        let size = 1 << most.ilog2();
        let number = growth.store.create(size)?;
        if number.is_some() {
            supply.cut -= size;
        }
        Ok(number)
    }

    /// Makes a handle, smaller if need be; at last out of the memory of unused ones of a wrong
    /// size.
    fn make(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        remaining: Bytes,
        supply: &mut Supply,
    ) -> Result<Option<u32>> {
        // Every unused handle is longer than the hole by now: the shortest loses least.
        let mut spare = growth.store.spare.clone();
        spare.sort_by_key(|&number| growth.store.handle(number).map(|handle| handle.bytes));
        let mut spare = spare.into_iter();
        loop {
            let mut size = self.policy.handle_size(remaining, supply.made);
            while size >= GRANULE {
                if size <= supply.most
                    && let Some(number) = growth.store.create(size)?
                {
                    supply.most -= size;
                    supply.ready = supply.ready.saturating_sub(size);
                    return Ok(Some(number));
                }
                size /= 2;
            }
            if supply.effort != Effort::Reshape {
                return Ok(None);
            }
            let number = match spare.next() {
                Some(number) => number,
                None => match self.take_shortest(growth, heap, request.shard, supply)? {
                    Some(number) => number,
                    None => return Ok(None),
                },
            };
            let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
            // What cannot be given back now, because of a capture or before observers were told,
            // was counted on all the same: new memory stands in for it, if the device has any.
            self.dissolve(growth, Some((request.shard, &mut *heap)), number)?;
            supply.most += bytes;
        }
    }

    /// Takes the shortest idle handle that can be taken; it is spare afterwards.
    fn take_shortest(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        taker: u32,
        supply: &mut Supply,
    ) -> Result<Option<u32>> {
        loop {
            let shortest = supply.idle.iter().enumerate().min_by_key(|(_, idle)| idle.view.bytes);
            let Some((at, _)) = shortest else {
                return Ok(None);
            };
            let source = supply.idle.swap_remove(at);
            if self.take_from(growth, heap, taker, source)? {
                return Ok(Some(source.view.handle));
            }
        }
    }

    /// Makes a spare handle the taker's: work queued on the taker's stream runs after whatever
    /// still uses it where it was last. A step that failed may have left it spare for another
    /// stream. False where the streams cannot be ordered because one is being captured.
    pub(super) fn claim(&self, growth: &Growth, taker: u32, number: u32) -> DeviceResult<bool> {
        match self.last_user(growth, taker, number) {
            Some((from, to)) => self.deferred.lock().order(from, to),
            None => Ok(true),
        }
    }

    /// The spare handles that [`claim`](Engine::claim) would not refuse.
    pub(super) fn claimable(&self, growth: &Growth, taker: u32) -> DeviceResult<Vec<u32>> {
        let mut found = Vec::with_capacity(growth.store.spare.len());
        for &number in &growth.store.spare {
            let ordered = match self.last_user(growth, taker, number) {
                Some((from, to)) => self.deferred.lock().can_order(from, to)?,
                None => true,
            };
            if ordered {
                found.push(number);
            }
        }
        Ok(found)
    }

    /// The stream that used a spare handle last, with the taker's, unless it was the taker's pool
    /// on the taker's stream.
    fn last_user(&self, growth: &Growth, taker: u32, number: u32) -> Option<(StreamId, StreamId)> {
        let place = growth.store.handle(number)?.dormant.last()?;
        let (from, to) = (self.shards.get(place.shard)?, self.shards.get(taker)?);
        let same = from.stream == to.stream && from.pool_id() == to.pool_id();
        (!same).then_some((from.stream, to.stream))
    }

    /// Leaves only what the taker's stream can be ordered after; true where that is less.
    pub(super) fn retain_orderable(&self, taker: u32, idle: &mut IdleList) -> DeviceResult<bool> {
        let Some(to) = self.shards.get(taker).map(|shard| shard.stream) else {
            return Ok(false);
        };
        let mut orderable = HashMap::new();
        for shard in idle.all().runs.iter().map(|run| run.heap) {
            if let Entry::Vacant(entry) = orderable.entry(shard)
                && let Some(from) = self.shards.get(shard).map(|shard| shard.stream)
            {
                entry.insert(shard == taker || self.deferred.lock().can_order(from, to)?);
            }
        }
        let before = idle.all().runs.len();
        idle.retain(|run| orderable.get(&run.heap).copied().unwrap_or(false));
        Ok(idle.all().runs.len() < before)
    }

    /// Removes every mapping of a spare handle and gives it back to the device. All work that could
    /// use it through an old mapping is waited for; where that stream is being captured, nothing
    /// more is done and the handle stays spare, which is told by `false`; so it does until
    /// observers have been told. `held` is the heap whose lock the caller holds.
    pub(super) fn dissolve(
        &self,
        growth: &mut Growth,
        mut held: Option<(u32, &mut MutexGuard<'_, Heap>)>,
        number: u32,
    ) -> DeviceResult<bool> {
        let Some(handle) = growth.store.handle(number) else {
            return Ok(false);
        };
        let (places, bytes) = (handle.dormant.clone(), handle.bytes);
        let told = |place: &Place| self.may_unmap(growth, place.address, bytes);
        if places.iter().map(told).filter(|told| !told).count() > 0 {
            return Ok(false);
        }
        for place in places {
            let Some(shard) = self.shards.get(place.shard) else {
                continue;
            };
            if !self.deferred.lock().drain(shard.stream)? {
                return Ok(false);
            }
            growth.store.unmap_dormant(number, place)?;
            self.note_unmapped(growth, place.address);
            match &mut held {
                Some((index, heap)) if *index == place.shard => heap.drop_dormant(place.view),
                _ => shard.heap.lock().drop_dormant(place.view),
            }
        }
        growth.store.release(number)?;
        Ok(true)
    }
}

impl Supply {
    pub(super) fn best_idle(&mut self, sizes: (Bytes, Bytes)) -> Option<usize> {
        let idle = self.idle.iter().map(|idle| idle.view.bytes);
        if !self.roomy {
            return best_size(idle, sizes, &mut self.longest_idle);
        }
        let back = best_size(idle.rev(), sizes, &mut self.longest_idle)?;
        Some(self.idle.len() - 1 - back)
    }

    /// Takes one out.
    pub(super) fn take_idle(&mut self, at: usize) -> Idle {
        // Mostly it is the last.
        let last = at + 1 == self.idle.len();
        if self.roomy && !last { self.idle.remove(at) } else { self.idle.swap_remove(at) }
    }
}

/// The first of the largest size up to `remaining`, else of the smallest up to `room`. No size is
/// beyond `longest`, which is set to the longest where all were looked at; so the look often ends
/// at the first.
fn best_size(
    sizes: impl Iterator<Item = Bytes>,
    (remaining, room): (Bytes, Bytes),
    longest: &mut Bytes,
) -> Option<usize> {
    let ideal = remaining.min(*longest);
    let mut best: Option<(usize, Bytes)> = None;
    let mut seen = 0;
    for (at, size) in sizes.enumerate() {
        seen = seen.max(size);
        if size > room {
            continue;
        }
        if size == ideal {
            return Some(at);
        }
        let better = match best {
            None => true,
            Some((_, best)) if best <= remaining => size <= remaining && size > best,
            Some((_, best)) => size < best,
        };
        if better {
            best = Some((at, size));
        }
    }
    *longest = seen;
    best.map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_best_size_is_found_wherever_the_look_ends() {
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        for _ in 0..500 {
            let mut sizes: Vec<_> = (0..next(12)).map(|_| GRANULE << next(4)).collect();
            let mut longest = Bytes::MAX;
            while !sizes.is_empty() {
                let remaining = (1 + next(12)) * GRANULE;
                let room = remaining + next(6) * GRANULE;
                let fit = sizes.iter().copied().filter(|&size| size <= remaining).max();
                let longer = sizes.iter().copied().filter(|&size| size <= room).min();
                let best = fit.or(longer).and_then(|b| sizes.iter().position(|&size| size == b));
                let all = sizes.iter().copied();
                assert_eq!(best_size(all, (remaining, room), &mut longest), best, "{sizes:?}");
                sizes.swap_remove(best.unwrap_or(0));
            }
        }
    }
}
