//! Idle memory of other heaps that is used where it is: whole views on which nothing lives pass
//! from heap to heap with their addresses, so that the driver has nothing to do. What lies side by
//! side serves one request, whoever had it.

use super::grow::Request;
use super::idle::Idle;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::Heap;
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::units::{Address, Bytes};

/// A place for a request over idle views that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    start: Address,
    /// The views that it needs, among those sorted by address.
    first: usize,
    end: usize,
    /// Their bytes, and those of the whole run.
    taken: Bytes,
    run: Bytes,
}

impl Engine {
    /// Serves a request from views that are idle and lie side by side, those of other heaps among
    /// them; `None` where there are not enough. Work queued on the request's stream runs after
    /// whatever still uses them.
    pub(super) fn adopt(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        idle: &[Idle],
    ) -> Result<Option<Address>> {
        if idle.iter().all(|idle| idle.shard == request.shard) {
            return Ok(None);
        }
        let of_kind = idle.iter().filter(|idle| idle.view.kind == request.kind);
        let mut views: Vec<Idle> = of_kind.copied().collect();
        views.sort_unstable_by_key(|idle| idle.view.address);
        let Some(window) = best_window(&views, heap, request) else {
            return Ok(None);
        };
        let taken = &views[window.first..window.end];
        let mut givers: Vec<u32> = taken.iter().map(|idle| idle.shard).collect();
        givers.sort_unstable();
        givers.dedup();
        for giver in givers.into_iter().filter(|&giver| giver != request.shard) {
            let of_giver = taken.iter().filter(|idle| idle.shard == giver);
            if !self.take_over(growth, heap, request, giver, of_giver)? {
                return Ok(None);
            }
        }
        let Request { requested, bytes, kind, .. } = request;
        let found = heap.allocate_at(window.start, requested, bytes, kind);
        self.peaks.leave(&self.shards, heap);
        Ok(found)
    }

    /// Passes idle views from their heap to the request's. False where one is not idle any more, or
    /// where the streams cannot be ordered because one is being captured.
    fn take_over<'a>(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        giver: u32,
        views: impl Iterator<Item = &'a Idle> + Clone,
    ) -> Result<bool> {
        let (Some(from), Some(to)) = (self.shards.get(giver), self.shards.get(request.shard))
        else {
            return Ok(false);
        };
        let mut other = from.heap.lock();
        let since = views.clone().map(|idle| other.idle_since(idle.view.view));
        let Some(since) = since.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max())
        else {
            growth.lost += 1;
            return Ok(false);
        };
        if !self.order_after(growth, (from, since), to)? {
            return Ok(false);
        }
        for idle in views {
            let Some(ceded) = other.cede(idle.view.view) else {
                growth.lost += 1;
                return Ok(false);
            };
            if let Some((view, slots)) = heap.adopt(ceded) {
                growth.store.hand_over(idle.view.handle, request.shard, view);
                self.publish(request.shard, &slots);
                let (address, bytes) = (idle.view.address, idle.view.bytes);
                self.record_memory(Action::SegmentUnmap, giver, address, bytes);
                self.record_memory(Action::SegmentMap, request.shard, address, bytes);
            }
        }
        Ok(true)
    }
}

/// The window that takes the least idle memory, among equals from the shortest run.
fn best_window(views: &[Idle], heap: &Heap, request: Request) -> Option<Window> {
    let mut best: Option<Window> = None;
    let mut first = 0;
    while first < views.len() {
        let mut end = first + 1;
        while end < views.len() && end_of(&views[end - 1]) == views[end].view.address {
            end += 1;
        }
        for window in windows(&views[first..end], heap, request).into_iter().flatten() {
            let better =
                best.is_none_or(|best| (window.taken, window.run) < (best.taken, best.run));
            if better {
                let (first, end) = (window.first + first, window.end + first);
                best = Some(Window { first, end, ..window });
            }
        }
        first = end;
    }
    best
}

/// The windows at both ends of a run, if it is long enough.
fn windows(run: &[Idle], heap: &Heap, request: Request) -> [Option<Window>; 2] {
    let (from, to) = (run[0].view.address, end_of(&run[run.len() - 1]));
    let (mut before, mut after) = heap.free_beside(request.kind, from, to);
    let own = |idle: &Idle| idle.shard == request.shard;
    if own(&run[0]) {
        before = from - run[0].view.block.0;
    }
    if own(&run[run.len() - 1]) {
        let (start, bytes) = run[run.len() - 1].view.block;
        after = start + bytes - to;
    }
    if before + (to - from) + after < request.bytes {
        return [None, None];
    }
    let window = |start: Address| {
        let end = start + request.bytes;
        let first = run.iter().take_while(|idle| end_of(idle) <= start).count();
        let count = run.iter().take_while(|idle| idle.view.address < end).count();
        let taken = run[first..count].iter().map(|idle| idle.view.bytes).sum();
        Window { start, first, end: count, taken, run: to - from }
    };
    [Some(window(from - before)), Some(window(to + after - request.bytes))]
}

fn end_of(idle: &Idle) -> Address {
    idle.view.address + idle.view.bytes
}
