//! Every invariant of a device's allocator, by name.

use super::{Engine, Growth};
use crate::error::{Error, InUse, Result};
use crate::heap::{Heap, State};
use crate::lock::MutexGuard;
use crate::pages::Place;
use crate::units::{Bytes, GRANULE};

fn broken<T>(check: &str, detail: String) -> Result<T> {
    Err(Error::Internal { check: check.to_owned(), detail })
}

impl Engine {
    /// Checks everything with everything locked; the error names the invariant that is broken.
    pub(crate) fn is_valid(&self) -> Result<()> {
        let growth = self.growth.lock();
        let all = self.shards.lock_all();
        let heaps = &all.heaps;
        for heap in heaps {
            heap.is_valid()?;
        }
        let by_reference: Vec<&Heap> = heaps.iter().map(|heap| &**heap).collect();
        if let Some(detail) = self.peaks.fault(&by_reference) {
            return broken("each heap keeps to its leases, and they to the peak", detail);
        }
        self.check_handles(&growth, heaps)?;
        self.check_views(&growth, heaps)?;
        self.check_loans(&growth, heaps)?;
        self.check_reserved(&growth, heaps)
    }

    fn check_handles(&self, growth: &Growth, heaps: &[MutexGuard<'_, Heap>]) -> Result<()> {
        for (number, handle) in growth.store.handles() {
            let places = handle.active.iter().map(|place| (place, true, false));
            let dormant = handle.dormant.iter().map(|place| (place, false, false));
            let lent = handle.lent.iter().map(|place| (place, true, true));
            for (place, active, lent) in places.chain(dormant).chain(lent) {
                let view = heaps.get(place.shard as usize).and_then(|heap| heap.view(place.view));
                let matches = view.is_some_and(|view| {
                    let same = (view.handle, view.address) == (number, place.address);
                    let used = (view.active, view.part.is_some()) == (active, lent);
                    same && view.bytes == handle.bytes && used
                });
                if !matches {
                    let detail = format!("handle {number} at {place:?}: {view:?}");
                    return broken("every mapping of a handle is a view", detail);
                }
            }
            if growth.store.spare.contains(&number) == handle.active.is_some() {
                return broken("handles not in use are spare", format!("handle {number}"));
            }
        }
        Ok(())
    }

    fn check_views(&self, growth: &Growth, heaps: &[MutexGuard<'_, Heap>]) -> Result<()> {
        for (index, heap) in heaps.iter().enumerate() {
            for (id, view) in heap.views() {
                let handle = growth.store.handle(view.handle);
                let here = |place: &&Place| (place.shard, place.view) == (index as u32, id);
                let used = handle.map_or(0, |handle| {
                    handle.active.iter().chain(&handle.lent).filter(here).count()
                });
                if handle.is_none() || used != usize::from(view.active) {
                    let detail = format!("shard {index}, view {id}: {view:?}");
                    return broken("a handle is in use where its views are active", detail);
                }
            }
            for (address, slot) in heap.page_slots() {
                let owner = self.map.get(address).map(|(shard, slot)| (shard.number, slot));
                if owner != Some((index as u32, slot)) {
                    return broken("the address map finds every page", format!("{address:#x}"));
                }
            }
        }
        Ok(())
    }

    /// What is borrowed is the part of the handle that is lent, and nothing else is.
    fn check_loans(&self, growth: &Growth, heaps: &[MutexGuard<'_, Heap>]) -> Result<()> {
        for loan in &growth.loans {
            let place = growth.store.handle(loan.handle).and_then(|handle| handle.active);
            let view = heaps.get(loan.borrower as usize).and_then(|heap| heap.view(loan.view));
            let lender = heaps.get(loan.lender as usize).filter(|heap| heap.is_lent(loan.block));
            let block = lender.map(|heap| heap.block(loan.block));
            let matches = place.zip(view).zip(block).is_some_and(|((place, view), block)| {
                let lent = (block.start - place.address, block.start + block.bytes - place.address);
                let borrowed = view.part.map(|(from, to)| (from - view.address, to - view.address));
                place.shard == loan.lender && view.handle == loan.handle && borrowed == Some(lent)
            });
            if !matches {
                let detail = format!("{loan:?}: {view:?}, {block:?}");
                return broken("what is borrowed is what is lent", detail);
            }
        }
        let lent = |heap: &MutexGuard<'_, Heap>| {
            heap.blocks().filter(|block| block.state == State::Lent).count()
        };
        let lent: usize = heaps.iter().map(lent).sum();
        let places: usize = growth.store.handles().map(|(_, handle)| handle.lent.len()).sum();
        if (lent, places) != (growth.loans.len(), growth.loans.len()) {
            let detail = format!("{lent} blocks, {places} places, {} loans", growth.loans.len());
            return broken("every loan is known", detail);
        }
        Ok(())
    }

    fn check_reserved(&self, growth: &Growth, heaps: &[MutexGuard<'_, Heap>]) -> Result<()> {
        let handles: Bytes = growth.store.handles().map(|(_, handle)| handle.bytes).sum();
        let segments: Bytes = heaps.iter().map(|heap| heap.segment_bytes()).sum();
        let direct: Bytes = self.direct_spans().iter().map(|(_, bytes)| bytes).sum();
        let reserved = growth.store.reserved.current as Bytes;
        let segments = segments + growth.parting.segment_bytes();
        if handles + segments + direct != reserved {
            let detail = format!(
                "{handles} in handles, {segments} in segments, {direct} direct, {reserved} counted"
            );
            return broken("reserved bytes are counted", detail);
        }
        if !handles.is_multiple_of(GRANULE) {
            return broken("handles are granules", format!("{handles} bytes"));
        }
        Ok(())
    }

    /// Fails where anything is allocated or pinned, waits for a stream or is recorded for one.
    pub(crate) fn is_quiescent(&self) -> Result<()> {
        let (allocations, allocated) = self.allocated();
        let deferred = self.deferred.lock();
        let (recorded, waiting) = (deferred.recorded(), deferred.waiting());
        drop(deferred);
        let (device, pins) = (self.id(), self.pinned());
        let used = InUse { device, allocations, allocated, recorded, waiting, pins };
        if used.is_anything() {
            return Err(Error::InUse(used));
        }
        self.is_valid()
    }
}
