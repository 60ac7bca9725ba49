//! The slow path: memory for a request that no free block can serve.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::{ArenaKind, Gap, Heap, IdleView, Plan, PlanRules, metric};
use crate::pages::{PageEntry, Place};
use crate::units::{Address, Bytes, GRANULE, align_up};

/// One request on its way through the slow path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) shard: u32,
    pub(super) requested: Bytes,
    pub(super) bytes: Bytes,
    pub(super) kind: ArenaKind,
}

/// How far a stage goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    /// Take and steal what fits.
    Usual,
    /// Also give idle handles of a wrong size back to the device, to make others of their memory.
    Reshape,
}

/// An idle view of any heap.
#[derive(Clone, Copy, Debug)]
struct Idle {
    shard: u32,
    view: IdleView,
}

impl Engine {
    /// Serves a request that its heap could not serve a moment ago.
    #[cold]
    pub(super) fn allocate_slow(&self, shard: u32, requested: Bytes) -> Result<Address> {
        let (kind, bytes) = self.size_of(requested);
        let request = Request {
            shard,
            requested,
            bytes,
            kind,
        };
        self.poll_deferred()?;
        let mut growth = self.growth.lock();
        self.collect_garbage(&mut growth, bytes);
        if let Some(address) = self.attempt(&mut growth, request, Effort::Usual)? {
            return Ok(address);
        }
        self.climb(&mut growth, request)
    }

    /// One attempt: the heap as it is now, then with what it kept aside, then with new memory.
    pub(super) fn attempt(
        &self,
        growth: &mut Growth,
        request: Request,
        effort: Effort,
    ) -> Result<Option<Address>> {
        let Some(shard) = self.shards.get(request.shard) else {
            return Ok(None);
        };
        let mut heap = shard.heap.lock();
        self.peaks.enter(&self.shards, request.shard, &mut heap);
        let mut found = heap.allocate(request.requested, request.bytes);
        if found.is_none() && heap.flush_quick() {
            found = heap.allocate(request.requested, request.bytes);
        }
        if found.is_some() {
            return Ok(found);
        }
        if self.virtual_memory {
            self.grow(growth, &mut heap, request, effort)
        } else {
            self.grow_by_segment(growth, heap, request)
        }
    }

    fn grow(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        effort: Effort,
    ) -> Result<Option<Address>> {
        let mut own = Vec::new();
        heap.idle_views(&mut own);
        let own: Vec<Idle> = own
            .into_iter()
            .map(|view| Idle {
                shard: request.shard,
                view,
            })
            .collect();
        let (live, peak) = self.peaks.estimate(metric::BYTES, heap);
        let live_peak = (live as Bytes + request.bytes).max(peak as Bytes);
        let reserved = growth.store.reserved.current as Bytes;
        let free_growth = self
            .policy
            .free_growth(reserved, live_peak)
            .min(growth.store.headroom());
        if let Some(address) =
            self.grow_from(growth, heap, request, &mut own.clone(), free_growth, effort)?
        {
            return Ok(Some(address));
        }
        let mut idle = own;
        if self.policy.steal {
            self.idle_of_others(request.shard, &mut idle);
        }
        let most = match effort {
            Effort::Usual => growth
                .store
                .headroom()
                .min(self.total.saturating_sub(reserved)),
            // Others may hold memory of the device, or have given some back.
            Effort::Reshape => growth.store.headroom().min(self.device.memory_info()?.free),
        };
        self.grow_from(growth, heap, request, &mut idle, most, effort)
    }

    /// Adds the idle views of all other heaps, whose kept blocks are given back first.
    fn idle_of_others(&self, own: u32, idle: &mut Vec<Idle>) {
        let mut found = Vec::new();
        for (index, shard) in self.shards.iter().filter(|(index, _)| *index != own) {
            let mut heap = shard.heap.lock();
            heap.flush_quick();
            heap.idle_views(&mut found);
            idle.extend(found.drain(..).map(|view| Idle { shard: index, view }));
        }
    }

    /// Plans with these idle views and so much growth, and carries the plan out.
    fn grow_from(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        idle: &mut Vec<Idle>,
        growable: Bytes,
        effort: Effort,
    ) -> Result<Option<Address>> {
        let Some(plan) = self.plan(growth, heap, request, idle, growable)? else {
            return Ok(None);
        };
        let window = (plan.start, plan.start + request.bytes);
        idle.retain(|idle| {
            let view = &idle.view;
            let overlaps = view.address < window.1 && window.0 < view.address + view.bytes;
            idle.shard != request.shard || !overlaps
        });
        for &view in &plan.wake {
            if !self.wake(growth, heap, request.shard, view, idle)? {
                return Ok(None);
            }
        }
        let mut budget = growable;
        for gap in &plan.gaps {
            if !self.fill(growth, heap, request, *gap, idle, &mut budget, effort)? {
                return Ok(None);
            }
        }
        Ok(heap.allocate_at(plan.start, request.requested, request.bytes, request.kind))
    }

    fn plan(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        idle: &[Idle],
        growable: Bytes,
    ) -> Result<Option<Plan>> {
        let own: Vec<IdleView> = idle
            .iter()
            .filter(|idle| idle.shard == request.shard)
            .map(|i| i.view)
            .collect();
        let handles: HashSet<u32> = idle
            .iter()
            .map(|idle| idle.view.handle)
            .chain(growth.store.spare.iter().copied())
            .collect();
        let spare: Bytes = growth
            .store
            .spare
            .iter()
            .filter_map(|&s| growth.store.handle(s))
            .map(|h| h.bytes)
            .sum();
        let idle_bytes: Bytes = idle.iter().map(|idle| idle.view.bytes).sum();
        let rules = PlanRules {
            supply: growable.saturating_add(idle_bytes).saturating_add(spare),
            idle: &own,
            usable: &|handle| handles.contains(&handle),
            piece_bytes: self.policy.piece_bytes,
        };
        if rules.supply.saturating_add(heap.cached()) < request.bytes {
            return Ok(None);
        }
        let plan = heap.plan(request.bytes, request.kind, &rules);
        if plan.is_some() || heap.has_hole(request.bytes, request.kind) {
            return Ok(plan);
        }
        if !self.add_range(heap, request)? {
            return Ok(None);
        }
        Ok(heap.plan(request.bytes, request.kind, &rules))
    }

    /// Reserves addresses for the heap: room for the device's whole memory in large requests, so that a
    /// second range is rare, and halved until the system grants it.
    fn add_range(&self, heap: &mut MutexGuard<'_, Heap>, request: Request) -> Result<bool> {
        let least = align_up(request.bytes, GRANULE);
        let mut bytes = match request.kind {
            ArenaKind::Small => self.total / 16,
            ArenaKind::Large => self.total,
        };
        bytes = align_up(bytes.max(least), GRANULE);
        loop {
            match self.device.reserve(bytes) {
                Ok(base) => {
                    heap.add_range(base, bytes, request.kind);
                    return Ok(true);
                }
                Err(error) if bytes / 2 < least => return Err(error.into()),
                Err(_) => bytes = align_up(bytes / 2, GRANULE),
            }
        }
    }

    /// Makes a dormant view active again, taking its handle from where it is idle.
    fn wake(
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
        if growth
            .store
            .handle(number)
            .is_some_and(|handle| handle.active.is_some())
        {
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
        let Some(slots) = heap.reactivate(view) else {
            return Ok(false);
        };
        growth.store.activate(
            number,
            Place {
                shard,
                view,
                address,
                kind,
            },
        );
        self.publish(shard, &slots);
        Ok(true)
    }

    /// Fills a gap with handles: spare ones, new ones within the budget, stolen ones, new ones at last.
    #[allow(
        clippy::too_many_arguments,
        reason = "one step of one algorithm, with all of its state"
    )]
    fn fill(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        gap: Gap,
        idle: &mut Vec<Idle>,
        budget: &mut Bytes,
        effort: Effort,
    ) -> Result<bool> {
        let mut filled = 0;
        while filled < gap.bytes {
            let remaining = gap.bytes - filled;
            let room = gap.room - filled;
            let taken = self.obtain(
                growth,
                heap,
                request,
                (remaining, room),
                idle,
                budget,
                effort,
            )?;
            let Some(number) = taken else {
                return Ok(false);
            };
            let address = gap.address + filled;
            filled += self.place(growth, heap, request, number, address)?;
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
        growth.store.map(number, address)?;
        let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
        if let Some((view, slots)) = heap.attach(address, bytes, number) {
            growth.store.activate(
                number,
                Place {
                    shard,
                    view,
                    address,
                    kind,
                },
            );
            self.publish(shard, &slots);
        }
        Ok(bytes)
    }

    /// Finds a handle of at most `room` bytes, better of at most `remaining`; it is spare afterwards.
    #[allow(
        clippy::too_many_arguments,
        reason = "one step of one algorithm, with all of its state"
    )]
    fn obtain(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (remaining, room): (Bytes, Bytes),
        idle: &mut Vec<Idle>,
        budget: &mut Bytes,
        effort: Effort,
    ) -> Result<Option<u32>> {
        let spare = growth.store.spare.iter().copied();
        let sized: Vec<(u32, Bytes)> = spare
            .filter_map(|number| {
                growth
                    .store
                    .handle(number)
                    .map(|handle| (number, handle.bytes))
            })
            .collect();
        if let Some(at) = best_size(sized.iter().map(|s| s.1), remaining, room) {
            return Ok(Some(sized[at].0));
        }
        let live = self.peaks.estimate(metric::BYTES, heap);
        let reserved = growth.store.reserved.current as Bytes;
        let prefer = self
            .policy
            .free_growth(reserved, live.1.max(0) as Bytes + request.bytes);
        let size = self.policy.handle_size(request.bytes, remaining);
        if size <= prefer.min(*budget)
            && let Some(number) = growth.store.create(size)?
        {
            *budget -= size;
            return Ok(Some(number));
        }
        while let Some(at) = best_size(idle.iter().map(|idle| idle.view.bytes), remaining, room) {
            let source = idle.swap_remove(at);
            if self.take_from(growth, heap, request.shard, source)? {
                return Ok(Some(source.view.handle));
            }
        }
        self.make(growth, heap, request, remaining, idle, budget, effort)
    }

    /// Makes a handle, smaller if need be; at last out of the memory of idle ones of a wrong size.
    #[allow(
        clippy::too_many_arguments,
        reason = "one step of one algorithm, with all of its state"
    )]
    fn make(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        remaining: Bytes,
        idle: &mut Vec<Idle>,
        budget: &mut Bytes,
        effort: Effort,
    ) -> Result<Option<u32>> {
        loop {
            let mut size = self.policy.handle_size(request.bytes, remaining);
            while size >= GRANULE {
                if let Some(number) = growth.store.create(size)? {
                    *budget = budget.saturating_sub(size);
                    return Ok(Some(number));
                }
                size /= 2;
            }
            if effort != Effort::Reshape {
                return Ok(None);
            }
            // Every idle handle is longer than the hole by now: the shortest loses least.
            let shortest = idle
                .iter()
                .enumerate()
                .min_by_key(|(_, idle)| idle.view.bytes);
            let Some((at, _)) = shortest else {
                return Ok(None);
            };
            let source = idle.swap_remove(at);
            if self.take_from(growth, heap, request.shard, source)? {
                let shard = (request.shard, &mut *heap);
                self.dissolve(growth, Some(shard), source.view.handle)?;
            }
        }
    }

    /// Takes the handle of an idle view: the view is dormant afterwards, the handle spare, and work queued
    /// on the taker's stream runs after whatever still uses it. False where it is not idle any more, or
    /// where the streams cannot be ordered because one is being captured.
    fn take_from(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        taker: u32,
        source: Idle,
    ) -> Result<bool> {
        let view = source.view;
        let number = view.handle;
        if source.shard == taker {
            if !heap.detach(view.view) {
                return Ok(false);
            }
        } else {
            let (Some(from), Some(to)) = (self.shards.get(source.shard), self.shards.get(taker))
            else {
                return Ok(false);
            };
            let mut other = from.heap.lock();
            if !self.deferred.lock().order(from.stream, to.stream)? || !other.detach(view.view) {
                return Ok(false);
            }
        }
        self.retract(view.address, view.bytes);
        growth.store.deactivate(number);
        Ok(true)
    }

    /// Tells the address map of new memory of a heap.
    pub(super) fn publish(&self, shard: u32, slots: &[(Address, u32)]) {
        for &(address, slot) in slots {
            self.map.set(
                address,
                PageEntry {
                    device: self.index,
                    shard,
                    slot,
                },
            );
        }
    }

    pub(super) fn retract(&self, address: Address, bytes: Bytes) {
        for k in 0..bytes / GRANULE {
            self.map.clear(address + k * GRANULE);
        }
    }

    /// Removes every mapping of a spare handle and gives it back to the device. All work that could use
    /// it through an old mapping is waited for; where that stream is being captured, nothing more is done
    /// and the handle stays spare. `held` is the heap whose lock the caller holds.
    pub(super) fn dissolve(
        &self,
        growth: &mut Growth,
        mut held: Option<(u32, &mut MutexGuard<'_, Heap>)>,
        number: u32,
    ) -> DeviceResult<()> {
        let Some(handle) = growth.store.handle(number) else {
            return Ok(());
        };
        for place in handle.dormant.clone() {
            let Some(shard) = self.shards.get(place.shard) else {
                continue;
            };
            if !self.deferred.lock().drain(shard.stream)? {
                return Ok(());
            }
            growth.store.unmap_dormant(number, place)?;
            match &mut held {
                Some((index, heap)) if *index == place.shard => heap.drop_dormant(place.view),
                _ => shard.heap.lock().drop_dormant(place.view),
            }
        }
        growth.store.release(number)
    }

    /// Counts an out-of-memory error.
    pub(super) fn count_out_of_memory(&self) {
        self.ooms.fetch_add(1, Ordering::Relaxed);
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
