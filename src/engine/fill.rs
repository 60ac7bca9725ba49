//! Carrying a plan out: dormant views that become active again, and holes that are filled.

use super::grow::Request;
use super::idle::Idle;
use super::means::Supply;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{Gap, Heap};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::pages::Place;
use crate::units::{Address, Bytes};

impl Engine {
    /// Makes a dormant view active again, taking its handle from where it is idle.
    pub(super) fn wake(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        shard: u32,
        view: u32,
        idle: &mut Vec<Idle>,
    ) -> Result<bool> {
        let Some(number) = heap.view(view).map(|view| view.handle) else {
            return Ok(false);
        };
        if growth.store.handle(number).is_none_or(|handle| handle.active.is_none()) {
            if !self.claim(growth, shard, number)? {
                return Ok(false);
            }
        } else {
            let Some(at) = idle.iter().position(|idle| idle.view.handle == number) else {
                return Ok(false);
            };
            let source = idle.swap_remove(at);
            if !self.take_from(growth, heap, shard, source)? {
                return Ok(false);
            }
        }
        let Some((address, kind)) = heap.view(view).map(|view| (view.address, view.kind)) else {
            return Ok(false);
        };
        growth.store.open(number, address)?;
        self.note_woken(growth, number, address);
        let Some(slots) = heap.reactivate(view) else {
            return Ok(false);
        };
        growth.store.activate(number, Place { shard, view, address, kind });
        self.publish(shard, &slots);
        let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
        self.record_memory(Action::SegmentMap, shard, address, bytes);
        Ok(true)
    }

    /// Fills a gap with handles: spare ones, new ones as far as ready, stolen ones, new ones at
    /// last.
    pub(super) fn fill(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        gap: Gap,
        supply: &mut Supply,
    ) -> Result<bool> {
        let mut filled = 0;
        while filled < gap.bytes {
            let (remaining, room) = (gap.bytes - filled, gap.room - filled);
            let Some(number) = self.obtain(growth, heap, request, (remaining, room), supply)?
            else {
                return Ok(false);
            };
            filled += self.place(growth, heap, request, number, gap.address + filled)?;
        }
        Ok(true)
    }

    /// Maps a spare handle into a hole and makes it free memory of the heap; gives its bytes.
    fn place(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        Request { shard, kind, .. }: Request,
        number: u32,
        address: Address,
    ) -> Result<Bytes> {
        let mapped = growth.store.map(number, address);
        if mapped.is_err() && !growth.store.is_closed(number, address) {
            return mapped.map(|()| 0).map_err(Into::into);
        }
        let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
        if let Some((view, slots)) = heap.attach(address, bytes, number) {
            growth.store.activate(number, Place { shard, view, address, kind });
            if mapped.is_err() {
                // Mapped and useless: a dormant view, until it can be unmapped or made accessible.
                heap.make_dormant(view);
                growth.store.deactivate(number, heap.mark());
            } else {
                self.publish(shard, &slots);
                self.note_mapped(address, bytes);
                self.record_memory(Action::SegmentMap, shard, address, bytes);
            }
        }
        mapped?;
        Ok(bytes)
    }
}
