//! Taking handles from where they are idle: views become dormant, those side by side at once.

use super::grow::Request;
use super::idle::Idle;
use super::means::Supply;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{Backed, Heap, IdleView};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::units::{Address, Bytes, GRANULE};

/// Idle views in the order in which they are to be taken, and how they lie together: runs of one
/// heap that go on by address, or backwards.
#[derive(Debug, Default)]
struct Picks {
    views: Vec<IdleView>,
    /// For each run its heap, and where it ends among the views.
    runs: Vec<(u32, usize)>,
}

impl Picks {
    fn push(&mut self, Idle { shard, view }: Idle) {
        let last = self.runs.len().checked_sub(1);
        let from = last.map_or(0, |last| last.checked_sub(1).map_or(0, |l| self.runs[l].1));
        self.views.push(view);
        let goes_on = is_in_a_row(&self.views[from..]);
        match self.runs.last_mut() {
            Some((heap, end)) if *heap == shard && goes_on => *end = self.views.len(),
            _ => self.runs.push((shard, self.views.len())),
        }
    }
}

/// Whether the last of some views goes on where the others, which are in a row, end or begin.
fn is_in_a_row(views: &[IdleView]) -> bool {
    match views {
        [.., before, one, last] if before.end() == one.address => one.end() == last.address,
        [.., one, last] if views.len() > 2 => last.end() == one.address,
        [.., one, last] => one.end() == last.address || last.end() == one.address,
        _ => true,
    }
}

impl Engine {
    /// Takes the handles for so many bytes, as many as [`obtain`](Engine::obtain) would take one
    /// after the other with nothing else in between; adds them to `taken` in that order.
    pub(super) fn take_several(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (mut remaining, mut room): (Bytes, Bytes),
        (supply, taken): (&mut Supply, &mut Vec<u32>),
    ) -> Result<()> {
        if !growth.store.spare.is_empty() || supply.cut.max(supply.ready) >= GRANULE {
            return Ok(());
        }
        let most = supply.idle.len().min((remaining / GRANULE) as usize + 1);
        let mut picks = Picks { views: Vec::with_capacity(most), runs: Vec::with_capacity(most) };
        while remaining > 0
            && let Some(at) = supply.best_idle((remaining, room))
            && supply.idle[at].view.bytes <= supply.longest
        {
            let pick = supply.take_idle(at);
            remaining = remaining.saturating_sub(pick.view.bytes);
            room -= pick.view.bytes;
            picks.push(pick);
        }
        let mut from = 0;
        for (shard, to) in picks.runs {
            let run = &picks.views[from..to];
            let whole =
                run.len() > 1 && self.take_run(growth, heap, request.shard, (shard, run))?;
            // Not all of a run may be idle still, or it lies in two ranges.
            for view in run {
                let alone = (shard, std::slice::from_ref(view));
                if whole || self.take_run(growth, heap, request.shard, alone)? {
                    taken.push(view.handle);
                }
            }
            from = to;
        }
        Ok(())
    }

    /// Takes the handle of an idle view: the view is dormant afterwards, the handle spare, and work
    /// queued on the taker's stream runs after whatever still uses it. False where it is not idle
    /// any more, or where the streams cannot be ordered because one is being captured.
    pub(super) fn take_from(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        taker: u32,
        Idle { shard, view }: Idle,
    ) -> Result<bool> {
        self.take_run(growth, heap, taker, (shard, &[view]))
    }

    /// The same of views in a row, by address or backwards.
    fn take_run(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        taker: u32,
        (shard, views): (u32, &[IdleView]),
    ) -> Result<bool> {
        let mark = if shard == taker {
            if !heap.detach_all(views) {
                return Ok(false);
            }
            heap.mark()
        } else {
            let (Some(from), Some(to)) = (self.shards.get(shard), self.shards.get(taker)) else {
                return Ok(false);
            };
            let mut other = from.heap.lock();
            let Some(since) = other.idle_since(views) else {
                growth.lost += u64::from(views.len() == 1);
                return Ok(false);
            };
            if !self.order_after(growth, (from, since), to)? {
                return Ok(false);
            }
            if !other.detach_all(views) {
                growth.lost += u64::from(views.len() == 1);
                return Ok(false);
            }
            other.pass_starts(heap);
            since
        };
        let start = views.iter().map(|view| view.address).min().unwrap_or(0);
        self.retract(start, views.iter().map(|view| view.bytes).sum());
        for view in views {
            self.record_memory(Action::SegmentUnmap, shard, view.address, view.bytes);
            growth.store.deactivate(view.handle, mark);
            growth.moving.spend(&self.policy);
        }
        Ok(true)
    }

    /// Tells the address map of new memory of a heap.
    pub(super) fn publish(&self, shard: u32, slots: &[(Address, u32)]) {
        if let Some(owner) = self.shards.get(shard) {
            self.map.set_all(owner, slots);
        }
    }

    /// New memory of a heap, whose handles the store knows at their addresses, is the heap's from
    /// now on.
    pub(super) fn enter(&self, growth: &mut Growth, heap: &Heap, shard: u32, memory: Backed) {
        if let Some(owner) = self.shards.get(shard) {
            self.map.set_row(owner, memory.start, heap.slots_of(memory));
        }
        for (view, handle) in heap.views_of(memory) {
            growth.store.hand_over(handle, shard, view);
        }
    }

    /// Memory of a heap is nobody's from now on.
    pub(super) fn withdraw(&self, shard: u32, address: Address, bytes: Bytes) {
        self.record_memory(Action::SegmentUnmap, shard, address, bytes);
        self.retract(address, bytes);
    }

    pub(super) fn retract(&self, address: Address, bytes: Bytes) {
        self.map.clear_all(address, bytes / GRANULE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_go_together_as_far_as_they_lie_in_a_row() {
        let mut picks = Picks::default();
        let mut pick = |shard, granule: u64, granules: u64| {
            let (address, bytes) = (granule * GRANULE, granules * GRANULE);
            picks.push(Idle { shard, view: IdleView { address, bytes, view: 0, handle: 0 } });
        };
        for granule in [5, 6, 7] {
            pick(1, granule, 1);
        }
        // Back over the last, and on from there; then the same by address; then another heap.
        for (granule, granules) in [(4, 1), (2, 2), (1, 1), (2, 1), (3, 1), (2, 1)] {
            pick(1, granule, granules);
        }
        pick(2, 1, 1);
        assert_eq!(picks.runs, [(1, 3), (1, 6), (1, 8), (1, 9), (2, 10)]);
        assert_eq!(picks.views.len(), 10);
    }
}
