//! Where a request goes that needs memory: a plan over what is free, idle and empty in its heap,
//! and addresses where there are none left for one.

use super::grow::Request;
use super::means::Supply;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{ArenaKind, Heap, IdlePart, IdleRun, Plan, PlanRules};
use crate::lock::MutexGuard;
use crate::units::{Bytes, GRANULE, MIB, align_down, align_up};

/// The addresses that a heap reserves first for small requests.
const FIRST_SMALL_RANGE: Bytes = 64 * MIB;

impl Engine {
    /// The cheapest place for a request within the supply, where there is one.
    pub(super) fn plan(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        idle: IdlePart<'_>,
        supply: &Supply,
    ) -> Result<Option<Plan>> {
        let mut usable = std::mem::take(&mut growth.usable);
        let plan = self.plan_with(growth, heap, request, idle, (supply, &mut usable));
        growth.usable = usable;
        plan
    }

    fn plan_with(
        &self,
        growth: &Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        idle: IdlePart<'_>,
        (supply, usable): (&Supply, &mut Vec<bool>),
    ) -> Result<Option<Plan>> {
        let store = &growth.store;
        let spare = self.claimable(growth, request.shard)?;
        let sizes = spare.iter().filter_map(|&number| store.handle(number));
        let ready = supply.ready.saturating_add(sizes.map(|handle| handle.bytes).sum());
        let ready = ready.saturating_add(idle.bytes());
        let excess_max = supply.most - supply.ready;
        // Besides that it lies over what of the heap is free and no idle memory, at most.
        let own = idle.first_of(request.shard);
        let own_idle = own.runs.iter().filter(|run| run.kind == request.kind);
        let own_idle: Bytes = own_idle.map(IdleRun::bytes).sum();
        let besides = heap.indexed(request.kind).saturating_sub(own_idle);
        if ready.saturating_add(excess_max).saturating_add(besides) < request.bytes {
            return Ok(None);
        }
        usable.clear();
        usable.resize(store.numbers(), false);
        for run in idle.runs {
            idle.of(run).iter().for_each(|view| usable[view.handle as usize] = true);
        }
        spare.into_iter().for_each(|number| usable[number as usize] = true);
        let rules = PlanRules {
            supply: ready,
            excess_max,
            idle: own,
            usable,
            piece_bytes: self.policy.piece_bytes,
            leaves_room: supply.roomy && request.kind == ArenaKind::Large,
        };
        let plan = heap.plan(request.bytes, request.kind, &rules);
        if plan.is_some() || heap.has_hole(request.bytes, request.kind) {
            return Ok(plan);
        }
        if !self.add_range(heap, request)? {
            return Ok(None);
        }
        Ok(heap.plan(request.bytes, request.kind, &rules))
    }

    /// Reserves addresses for the heap: five times the device's whole memory for large requests,
    /// and halved until the system grants it. A second range is rare then, and a fifth is the tail,
    /// for a request that fits only if it begins in what is free at the end of the rest. Small
    /// requests need none, since any page holds one whole. For them little is reserved at first,
    /// then each time as much again: the addresses of a thousand heaps are to lie close enough
    /// together for their places in the page map to share pages of it.
    pub(super) fn add_range(
        &self,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
    ) -> Result<bool> {
        let least = align_up(request.bytes, GRANULE);
        let mut bytes = match request.kind {
            ArenaKind::Small => heap.reserved(request.kind).max(FIRST_SMALL_RANGE),
            ArenaKind::Large => self.total.saturating_mul(5),
        };
        bytes = align_up(bytes.max(least), GRANULE);
        loop {
            match self.device.reserve(bytes) {
                Ok(base) => {
                    let tail = match request.kind {
                        ArenaKind::Small => 0,
                        ArenaKind::Large => align_down(bytes / 5, GRANULE).min(bytes - least),
                    };
                    heap.add_range(base, bytes, tail, request.kind);
                    return Ok(true);
                }
                Err(error) if bytes / 2 < least => return Err(error.into()),
                Err(_) => bytes = align_up(bytes / 2, GRANULE),
            }
        }
    }
}
