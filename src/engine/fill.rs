//! Carrying a plan out: dormant views that become active again, and holes that are filled.

use super::grow::{Grown, Request};
use super::idle::{Idle, sort_by_runs};
use super::means::Supply;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{Gap, Heap, IdlePart, Plan};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::pages::Place;
use crate::units::{Address, Bytes, GRANULE};

/// The view of a handle that is no memory of a heap yet.
const NO_VIEW: u32 = u32::MAX;

/// How many handles so many bytes come to, or the first part of them.
fn at_most(bytes: Bytes) -> usize {
    (bytes / GRANULE).min(128) as usize
}

impl Engine {
    /// Plans with this supply, and carries the plan out.
    pub(super) fn grow_from(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        idle: IdlePart<'_>,
        mut supply: Supply,
    ) -> Result<Grown> {
        let Some(plan) = self.plan(growth, heap, request, idle, &supply)? else {
            return Ok(Grown::Unchanged);
        };
        supply.idle = std::mem::take(&mut growth.movable);
        supply.idle.clear();
        let grown = self.carry_out(growth, heap, request, (&plan, idle), &mut supply);
        growth.movable = supply.idle;
        grown
    }

    fn carry_out(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (plan, idle): (&Plan, IdlePart<'_>),
        supply: &mut Supply,
    ) -> Result<Grown> {
        let (start, end) = (plan.start, plan.start + request.bytes);
        let movable = if plan.gaps.is_empty() && plan.wake.is_empty() { &[] } else { idle.runs };
        for run in movable {
            let shard = run.heap;
            let left = idle.of(run).iter().map(|&view| Idle { shard, view });
            if shard != request.shard || run.end <= start || end <= run.start {
                supply.idle.extend(left);
            } else {
                let apart = |idle: &Idle| idle.view.end() <= start || end <= idle.view.address;
                supply.idle.extend(left.filter(apart));
            }
        }
        supply.most = supply.ready + plan.excess;
        for &view in &plan.wake {
            if !self.wake(growth, heap, request.shard, view, &mut supply.idle)? {
                return Ok(Grown::Changed);
            }
        }
        if supply.roomy && !plan.gaps.is_empty() {
            sort_by_runs(&mut supply.idle);
        }
        for gap in &plan.gaps {
            if !self.fill(growth, heap, request, *gap, supply)? {
                return Ok(Grown::Changed);
            }
        }
        let found = heap.allocate_at(plan.start, request.requested, request.bytes, request.kind);
        self.peaks.leave(&self.shards, heap);
        Ok(found.map_or(Grown::Changed, Grown::Served))
    }

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
        let mut mapped = Vec::with_capacity(at_most(gap.bytes));
        let filled = self.map_into(growth, heap, request, gap, (supply, &mut mapped));
        // All of it at once; also where it is not all that was needed.
        if let Some(memory) = heap.attach_all(gap.address, &mapped) {
            self.enter(growth, heap, request.shard, memory);
        }
        filled
    }

    /// Maps handles into a hole, one after the other; adds them to `mapped` with their bytes. To
    /// the store they are in use there, although they are no memory of the heap yet.
    fn map_into(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        gap: Gap,
        (supply, mapped): (&mut Supply, &mut Vec<(u32, Bytes)>),
    ) -> Result<bool> {
        let Request { shard, kind, .. } = request;
        let (mut filled, mut taken, mut used) = (0, Vec::with_capacity(at_most(gap.bytes)), 0);
        while filled < gap.bytes {
            let sizes = (gap.bytes - filled, gap.room - filled);
            if used == taken.len() {
                self.take_several(growth, heap, request, sizes, (supply, &mut taken))?;
            }
            let number = if let Some(&number) = taken.get(used) {
                used += 1;
                number
            } else if let Some(number) = self.obtain(growth, heap, request, sizes, supply)? {
                number
            } else {
                return Ok(false);
            };
            let address = gap.address + filled;
            if let Err(error) = growth.store.map(number, address) {
                self.keep_closed(growth, heap, request, (number, address));
                return Err(error.into());
            }
            let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
            growth.store.occupy(number, Place { shard, view: NO_VIEW, address, kind });
            mapped.push((number, bytes));
            self.note_mapped(address, bytes);
            self.record_memory(Action::SegmentMap, shard, address, bytes);
            filled += bytes;
        }
        Ok(true)
    }

    /// A handle could not be mapped. Where it is mapped now and useless, that is a dormant view,
    /// until it can be unmapped or made accessible.
    fn keep_closed(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        Request { shard, kind, .. }: Request,
        (number, address): (u32, Address),
    ) {
        let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
        if growth.store.is_closed(number, address)
            && let Some((view, _)) = heap.attach(address, bytes, number)
        {
            growth.store.occupy(number, Place { shard, view, address, kind });
            heap.make_dormant(view);
            growth.store.deactivate(number, heap.mark());
            self.note_closed(growth, address);
        }
    }
}
