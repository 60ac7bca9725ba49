//! The slow path: memory for a request that no free block can serve.

use super::adopt::by_address;
use super::idle::own_idle;
use super::means::Means;
use super::shards::Shard;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::{ArenaKind, Heap, IdleList};
use crate::lock::MutexGuard;
use crate::units::{Address, Bytes};

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

/// A round of stages.
#[derive(Clone, Copy)]
struct Round {
    means: Means,
    asked: Effort,
    /// Only with memory of other heaps that nothing queued uses.
    settled: bool,
}

/// What a stage came to.
pub(super) enum Grown {
    Served(Address),
    /// There is no plan within the supply.
    Unchanged,
    /// The plan could not be carried out to its end.
    Changed,
}

impl Engine {
    /// Serves a request that its heap could not serve a moment ago.
    #[cold]
    pub(super) fn allocate_growing(&self, shard: u32, requested: Bytes) -> Result<Address> {
        let (kind, bytes) = self.size_in(shard, requested);
        let request = Request { shard, requested, bytes, kind };
        self.poll_deferred()?;
        let mut growth = self.growth.lock();
        self.collect_garbage(&mut growth, bytes);
        // A failure to give memory back is no failure to allocate.
        let _ = self.release_unneeded(&mut growth);
        let _ = self.trim_dormant(&mut growth);
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
        // Only before the request fails: a lane that lived on what others have free would come here
        // with each request. Whole views of theirs pass to it like those of any heap.
        if effort == Effort::Reshape
            && let Some(address) = self.serve_from_lanes(shard, request)?
        {
            return Ok(Some(address));
        }
        let mut heap = shard.heap.lock();
        self.enter_anew(shard, &mut heap)?;
        let mut found = heap.allocate(request.requested, request.bytes);
        if found.is_none() && heap.flush_quick() {
            found = heap.allocate(request.requested, request.bytes);
        }
        if found.is_none() {
            found = heap.allocate_any(request.requested, request.bytes);
        }
        self.peaks.leave(&self.shards, &mut heap);
        if found.is_some() {
            return Ok(found);
        }
        if self.virtual_memory && !shard.takes_segments() {
            if effort == Effort::Usual
                && let Some(address) = self.adopt_a_run(growth, &mut heap, request)?
            {
                return Ok(Some(address));
            }
            self.grow(growth, &mut heap, request, effort)
        } else {
            self.grow_by_segment(growth, heap, request)
        }
    }

    /// Serves a request from what another lane of its stream has free, however long that takes to
    /// find.
    fn serve_from_lanes(&self, own: &Shard, request: Request) -> Result<Option<Address>> {
        let Some(first) = self.shards.for_stream(own.stream) else {
            return Ok(None);
        };
        if own.pool().is_some() || !first.is_spread() {
            return Ok(None);
        }
        for number in first.lanes().filter(|&number| number != request.shard) {
            let Some(lane) = self.shards.get(number) else {
                continue;
            };
            let mut heap = lane.heap.lock();
            self.enter_anew(lane, &mut heap)?;
            let mut found = heap.allocate(request.requested, request.bytes);
            if found.is_none() {
                found = heap.allocate_any(request.requested, request.bytes);
            }
            self.peaks.leave(&self.shards, &mut heap);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// A heap, which is locked, is about to serve a request, also one of a stream whose name was
    /// retired: that is the name of a new one then.
    pub(super) fn enter_anew(&self, shard: &Shard, heap: &mut Heap) -> DeviceResult<()> {
        // A heap that was made since its stream's name was retired has not been told of that.
        self.deferred.lock().revive(shard.stream)?;
        heap.turn.set_retired(false);
        self.peaks.enter(heap);
        Ok(())
    }

    fn grow(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        asked: Effort,
    ) -> Result<Option<Address>> {
        // The list is kept for the next request: it may be long.
        let mut idle = std::mem::take(&mut growth.idle);
        let grown = self.grow_over(growth, heap, request, asked, &mut idle);
        growth.idle = idle;
        growth.moving.finish(self.clock.now_us());
        grown
    }

    fn grow_over(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        asked: Effort,
        idle: &mut IdleList,
    ) -> Result<Option<Address>> {
        if self.recall_in_turn(growth, (request.shard, &mut *heap), asked)?
            && let Some(address) = heap.allocate_any(request.requested, request.bytes)
        {
            self.peaks.leave(&self.shards, heap);
            return Ok(Some(address));
        }
        let means = self.means(growth, heap, request, asked)?;
        if means.lends
            && request.kind == ArenaKind::Small
            && let Some(address) = self.borrow_a_part(growth, heap, request, false)?
        {
            return Ok(Some(address));
        }
        if !means.may_move && request.kind == ArenaKind::Small {
            // Not even a look at the others: they are at work, too, and there is little to be had.
            let idle = own_idle(heap);
            let supply = means.supply(means.ready, Effort::Usual);
            if let Grown::Served(address) =
                self.grow_from(growth, heap, request, idle.all(), supply)?
            {
                return Ok(Some(address));
            }
        }
        self.find_all_idle(growth, heap, request, asked, idle);
        if asked == Effort::Usual && idle.all().runs.iter().any(|run| !run.settled) {
            // What queued work still uses is left to its heap as long as anything else will do:
            // whoever took it would wait for that work, which costs more time than all calls of the
            // driver together. Memory that would take too much is no such thing.
            let most = if means.may_wait { means.ready } else { means.most };
            let means = Means { most, ..means };
            let round = Round { means, asked, settled: true };
            idle.retain(|run| run.settled);
            if let Some(address) = self.grow_in_stages(growth, heap, request, round, idle)? {
                return Ok(Some(address));
            }
            self.find_all_idle(growth, heap, request, asked, idle);
        }
        let round = Round { means, asked, settled: false };
        if let Some(address) = self.grow_in_stages(growth, heap, request, round, idle)? {
            return Ok(Some(address));
        }
        // A stage fails where it counted on memory that turns out to belong to a stream that is
        // being captured: without that. It also fails where other threads have taken what was idle:
        // without theirs, since nobody else has this heap.
        if self.retain_orderable(request.shard, idle)? {
            self.list_views((request.shard, heap), idle, false);
            let supply = means.supply(means.most, Effort::Reshape);
            if let Grown::Served(address) =
                self.grow_from(growth, heap, request, idle.all(), supply)?
            {
                return Ok(Some(address));
            }
        }
        let supply = || means.supply(means.most, Effort::Reshape);
        let own = own_idle(heap);
        if let Grown::Served(address) =
            self.grow_from(growth, heap, request, own.all(), supply())?
        {
            return Ok(Some(address));
        }
        match asked {
            Effort::Usual => Ok(None),
            Effort::Reshape => self.grow_by_loans(growth, heap, request, &supply, idle),
        }
    }

    /// Serves a request from idle memory where it is; else with the heap's own idle memory; with
    /// all that was found; then also with handles that are too long, cut up; then with as much
    /// growth as is needed beyond that. Leaves what is idle after it.
    fn grow_in_stages(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        Round { means, asked, settled }: Round,
        idle: &mut IdleList,
    ) -> Result<Option<Address>> {
        let look_again = |growth: &mut Growth, heap: &Heap, idle: &mut IdleList| {
            self.find_all_idle(growth, heap, request, asked, idle);
            idle.retain(|run| run.settled || !settled);
        };
        let lends = means.lends && request.kind == ArenaKind::Large;
        if lends && self.borrows_early(growth, request, idle.all()) {
            self.list_views((request.shard, heap), idle, false);
            let supply = means.supply(means.ready, Effort::Reshape);
            match self.borrow_edges(growth, heap, request, (idle.all(), supply))? {
                Grown::Served(address) => return Ok(Some(address)),
                Grown::Changed => look_again(growth, heap, idle),
                Grown::Unchanged => {}
            }
        }
        let runs = by_address(idle.all(), request.kind);
        if idle.all().runs.iter().any(|run| run.heap != request.shard)
            && let Some(address) = self.adopt(growth, heap, request, &runs)?
        {
            return Ok(Some(address));
        }
        if means.roomy && self.extend_a_run(growth, heap, request, &runs)? {
            look_again(growth, heap, idle);
        }
        let stages = [
            (true, means.ready, Effort::Usual),
            (false, means.ready, Effort::Usual),
            (false, means.ready, Effort::Reshape),
            (false, means.most, Effort::Reshape),
        ];
        let last = stages.len() - 1;
        let mut planless = None;
        for (stage, (only_own, most, effort)) in stages.into_iter().enumerate() {
            if stage == last && lends && means.most > means.ready {
                self.list_views((request.shard, heap), idle, false);
                let supply = means.supply(means.ready, Effort::Reshape);
                match self.borrow_edges(growth, heap, request, (idle.all(), supply))? {
                    Grown::Served(address) => return Ok(Some(address)),
                    Grown::Changed => {
                        look_again(growth, heap, idle);
                    }
                    Grown::Unchanged => {}
                }
            }
            // Effort shows only once there is a plan.
            if planless == Some((only_own, most)) {
                continue;
            }
            // The heap's own come first.
            self.list_views((request.shard, heap), idle, only_own);
            let all = idle.all();
            let usable = if only_own { all.first_of(request.shard) } else { all };
            let supply = means.supply(most, effort);
            match self.grow_from(growth, heap, request, usable, supply)? {
                Grown::Served(address) => return Ok(Some(address)),
                Grown::Changed => {
                    look_again(growth, heap, idle);
                }
                Grown::Unchanged => planless = Some((only_own, most)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "grow_tests.rs"]
mod tests;
