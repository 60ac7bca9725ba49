//! Where the handles come from that fill a gap.

use parking_lot::MutexGuard;

use super::grow::{Effort, Idle, Request, Supply};
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::Heap;
use crate::units::{Bytes, GRANULE};

impl Engine {
    /// Finds a handle of at most `room` bytes, better of at most `remaining`; it is spare afterwards.
    pub(super) fn obtain(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (remaining, room): (Bytes, Bytes),
        supply: &mut Supply,
    ) -> Result<Option<u32>> {
        let spare = growth.store.spare.iter().copied();
        let sized: Vec<(u32, Bytes)> = spare
            .filter_map(|number| growth.store.handle(number).map(|handle| (number, handle.bytes)))
            .collect();
        if let Some(at) = best_size(sized.iter().map(|s| s.1), remaining, room) {
            return Ok(Some(sized[at].0));
        }
        if let Some(number) = self.create_from_cut(growth, remaining, supply)? {
            return Ok(Some(number));
        }
        let size = self.policy.handle_size(request.bytes, remaining);
        if size <= supply.ready
            && let Some(number) = growth.store.create(size)?
        {
            supply.ready -= size;
            supply.most -= size;
            return Ok(Some(number));
        }
        let sizes = |idle: &[Idle]| best_size(idle.iter().map(|i| i.view.bytes), remaining, room);
        while let Some(at) = sizes(&supply.idle) {
            let source = supply.idle.swap_remove(at);
            if !self.take_from(growth, heap, request.shard, source)? {
                continue;
            }
            let number = source.view.handle;
            if source.view.bytes > supply.longest {
                self.cut(growth, (request.shard, &mut *heap), source, supply)?;
                if let Some(shorter) = self.create_from_cut(growth, remaining, supply)? {
                    return Ok(Some(shorter));
                }
            }
            // It is there still where a stream is being captured.
            if growth.store.handle(number).is_some() {
                return Ok(Some(number));
            }
        }
        self.make(growth, heap, request, remaining, supply)
    }

    /// Makes a handle, smaller if need be; at last out of the memory of idle ones of a wrong size.
    fn make(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        remaining: Bytes,
        supply: &mut Supply,
    ) -> Result<Option<u32>> {
        loop {
            let mut size = self.policy.handle_size(request.bytes, remaining);
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
            // Every idle handle is longer than the hole by now: the shortest loses least.
            let shortest = supply.idle.iter().enumerate().min_by_key(|(_, idle)| idle.view.bytes);
            let Some((at, _)) = shortest else {
                return Ok(None);
            };
            let source = supply.idle.swap_remove(at);
            if self.take_from(growth, heap, request.shard, source)? {
                self.cut(growth, (request.shard, &mut *heap), source, supply)?;
                supply.most += std::mem::take(&mut supply.cut);
            }
        }
    }

    /// Gives a handle that was just taken back to the device, so that shorter ones can be made of its
    /// memory. Where it cannot be given back now it stays spare.
    fn cut(
        &self,
        growth: &mut Growth,
        held: (u32, &mut MutexGuard<'_, Heap>),
        source: Idle,
        supply: &mut Supply,
    ) -> DeviceResult<()> {
        let number = source.view.handle;
        self.dissolve(growth, Some(held), number)?;
        if growth.store.handle(number).is_none() {
            supply.cut += source.view.bytes;
        }
        Ok(())
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
}

/// The largest size up to `remaining`, else the smallest up to `room`.
fn best_size(sizes: impl Iterator<Item = Bytes>, remaining: Bytes, room: Bytes) -> Option<usize> {
    let mut best: Option<(usize, Bytes)> = None;
    for (at, size) in sizes.enumerate().filter(|(_, size)| *size <= room) {
        let better = match best {
            None => true,
            Some((_, best)) if best <= remaining => size <= remaining && size > best,
            Some((_, best)) => size < best,
        };
        if better {
            best = Some((at, size));
        }
    }
    best.map(|(at, _)| at)
}
