//! The slow path: memory for a request that no free block can serve.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::{ArenaKind, Gap, Heap, IdleSpans, IdleView, Plan, PlanRules, metric};
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

/// What a stage may use.
pub(super) struct Supply {
    pub(super) idle: Vec<Idle>,
    /// How much may be taken from the device without a second thought, and at most.
    pub(super) ready: Bytes,
    pub(super) most: Bytes,
    /// Memory of handles that were given back to be made into shorter ones.
    pub(super) cut: Bytes,
    pub(super) effort: Effort,
    /// The longest handle that moves whole.
    pub(super) longest: Bytes,
}

/// An idle view of any heap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    pub(super) shard: u32,
    pub(super) view: IdleView,
}

impl Engine {
    /// Serves a request that its heap could not serve a moment ago.
    #[cold]
    pub(super) fn allocate_slow(&self, shard: u32, requested: Bytes) -> Result<Address> {
        let (kind, bytes) = self.size_of(requested);
        let request = Request { shard, requested, bytes, kind };
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
        let (live, peak) = self.peaks.estimate(metric::BYTES, heap);
        let live_peak = (live as Bytes + request.bytes).max(peak as Bytes);
        let reserved = growth.store.reserved.current as Bytes;
        let ready = self.policy.free_growth(reserved, live_peak).min(growth.store.headroom());
        let most = match effort {
            Effort::Usual => growth.store.headroom().min(self.total.saturating_sub(reserved)),
            // Others may hold memory of the device, or have given some back.
            Effort::Reshape => growth.store.headroom().min(self.device.memory_info()?.free),
        };
        let mut found = Vec::new();
        heap.idle_views(&mut found);
        let own: Vec<Idle> =
            found.into_iter().map(|view| Idle { shard: request.shard, view }).collect();
        let longest = self.policy.longest_moved(live_peak);
        let effort = Effort::Usual;
        let supply = Supply { idle: own, ready, most: ready, cut: 0, effort, longest };
        if let Some(address) = self.grow_from(growth, heap, request, supply)? {
            return Ok(Some(address));
        }
        // With idle memory of every heap; then also with handles that are too long, cut up; then with as
        // much growth as is needed beyond that.
        let stages = [(ready, Effort::Usual), (ready, Effort::Reshape), (most, Effort::Reshape)];
        for (most, effort) in stages {
            let idle = self.all_idle(request.shard, heap);
            let supply = Supply { idle, ready: ready.min(most), most, cut: 0, effort, longest };
            if let Some(address) = self.grow_from(growth, heap, request, supply)? {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    /// The idle views of all heaps whose memory may serve this one.
    fn all_idle(&self, own: u32, heap: &mut MutexGuard<'_, Heap>) -> Vec<Idle> {
        let mut found = Vec::new();
        heap.idle_views(&mut found);
        let mut idle: Vec<Idle> = found.into_iter().map(|view| Idle { shard: own, view }).collect();
        if self.policy.steal {
            self.idle_of_others(own, &mut idle);
        }
        idle
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

    /// Plans with this supply, and carries the plan out.
    fn grow_from(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        mut supply: Supply,
    ) -> Result<Option<Address>> {
        let Some(plan) = self.plan(growth, heap, request, &supply)? else {
            return Ok(None);
        };
        let (start, end) = (plan.start, plan.start + request.bytes);
        supply.idle.retain(|idle| {
            let view = &idle.view;
            let overlaps = view.address < end && start < view.address + view.bytes;
            idle.shard != request.shard || !overlaps
        });
        supply.most = supply.ready + plan.excess;
        for &view in &plan.wake {
            if !self.wake(growth, heap, request.shard, view, &mut supply.idle)? {
                return Ok(None);
            }
        }
        for gap in &plan.gaps {
            if !self.fill(growth, heap, request, *gap, &mut supply)? {
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
        supply: &Supply,
    ) -> Result<Option<Plan>> {
        let store = &growth.store;
        let own = supply.idle.iter().filter(|idle| idle.shard == request.shard);
        let own = IdleSpans::new(own.map(|idle| &idle.view));
        let spare = store.spare.iter().copied();
        let mut handles = vec![false; store.numbers()];
        for number in supply.idle.iter().map(|idle| idle.view.handle).chain(spare.clone()) {
            handles[number as usize] = true;
        }
        let spare: Bytes = spare.filter_map(|number| store.handle(number)).map(|h| h.bytes).sum();
        let idle: Bytes = supply.idle.iter().map(|idle| idle.view.bytes).sum();
        let rules = PlanRules {
            supply: supply.ready.saturating_add(idle).saturating_add(spare),
            excess_max: supply.most - supply.ready,
            idle: &own,
            usable: &|handle| handles.get(handle as usize).is_some_and(|&usable| usable),
            piece_bytes: self.policy.piece_bytes,
        };
        let most = rules.supply.saturating_add(rules.excess_max).saturating_add(heap.cached());
        if most < request.bytes {
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
        if growth.store.handle(number).is_some_and(|handle| handle.active.is_some()) {
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
        growth.store.activate(number, Place { shard, view, address, kind });
        self.publish(shard, &slots);
        Ok(true)
    }

    /// Fills a gap with handles: spare ones, new ones as far as ready, stolen ones, new ones at last.
    fn fill(
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
        growth.store.map(number, address)?;
        let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
        if let Some((view, slots)) = heap.attach(address, bytes, number) {
            growth.store.activate(number, Place { shard, view, address, kind });
            self.publish(shard, &slots);
        }
        Ok(bytes)
    }

    /// Takes the handle of an idle view: the view is dormant afterwards, the handle spare, and work queued
    /// on the taker's stream runs after whatever still uses it. False where it is not idle any more, or
    /// where the streams cannot be ordered because one is being captured.
    pub(super) fn take_from(
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
            self.map.set(address, PageEntry { device: self.index, shard, slot });
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
