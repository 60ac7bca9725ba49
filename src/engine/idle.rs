//! Memory that could serve a request of another heap: whole views on which nothing lives.

use std::cmp::Reverse;

use super::grow::{Effort, Request};
use super::marks::Marks;
use super::{Engine, Growth};
use crate::heap::{ArenaKind, Heap, IdleList, IdleView};
use crate::units::Address;

/// An idle view and its heap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    pub(super) shard: u32,
    pub(super) view: IdleView,
}

impl Engine {
    /// Makes a list the idle views of all heaps whose memory may serve this one, its own first.
    pub(super) fn find_all_idle(
        &self,
        growth: &mut Growth,
        heap: &Heap,
        request: Request,
        effort: Effort,
        idle: &mut IdleList,
    ) {
        idle.clear();
        heap.add_idle(idle);
        self.idle_of_others(Some(&mut growth.marks), request, idle, effort);
    }

    /// Lists the views of what was found, of all heaps or of this one alone, whose are the first.
    pub(super) fn list_views(
        &self,
        (own, heap): (u32, &Heap),
        idle: &mut IdleList,
        only_own: bool,
    ) {
        let all = idle.all();
        let upto = if only_own { all.first_of(own).runs.len() } else { all.runs.len() };
        idle.list_views(upto, |number, list| match self.shards.get(number) {
            _ if number == own => list(heap),
            Some(shard) => list(&shard.heap.lock()),
            None => {}
        });
    }

    /// Adds the idle views of other heaps: of all of them, or where stealing is off of those of the
    /// same stream. The large block that each has kept aside is given back for it, since it may be
    /// all that stands in the way of much; the small ones only before a request fails, since their
    /// heaps are at work with them.
    pub(super) fn idle_of_others(
        &self,
        mut marks: Option<&mut Marks>,
        request: Request,
        idle: &mut IdleList,
        effort: Effort,
    ) {
        let stream = self.shards.get(request.shard).map(|shard| shard.stream);
        let others = self.shards.iter().filter(|(index, shard)| {
            *index != request.shard && (self.policy.steal || Some(shard.stream) == stream)
        });
        for (_, shard) in others {
            let mut heap = shard.heap.lock();
            match effort {
                Effort::Usual => heap.flush_large(),
                Effort::Reshape => _ = heap.flush_quick(),
            }
            let first = idle.all().runs.len();
            heap.add_idle(idle);
            let Some(newest) = idle.runs_from(first).iter().map(|run| run.since).max() else {
                continue;
            };
            let passed = match &mut marks {
                _ if Some(shard.stream) == stream => u64::MAX,
                Some(marks) => {
                    let passed = self.look_at_marks(marks, shard, &mut heap, newest);
                    match request.kind {
                        ArenaKind::Small => self.rested(marks, shard, passed),
                        ArenaKind::Large => passed,
                    }
                }
                None => 0,
            };
            if newest >= passed {
                let of_heap = idle.runs_from(first).iter_mut();
                of_heap.for_each(|run| run.settled = run.since < passed);
            }
        }
    }
}

/// Sorts idle views so that those of the shortest runs come last, of which handles are taken first:
/// what lies side by side serves a large request where it is, and is worth more than what lies
/// alone.
pub(super) fn sort_by_runs(idle: &mut Vec<Idle>) {
    // Most come side by side already: where such pieces start and end, and their places.
    let mut pieces: Vec<(Address, Address, (usize, usize))> = Vec::with_capacity(idle.len() / 2);
    for (at, Idle { view, .. }) in idle.iter().enumerate() {
        match pieces.last_mut() {
            Some((_, end, places)) if *end == view.address => {
                (*end, places.1) = (view.end(), at + 1);
            }
            _ => pieces.push((view.address, view.end(), (at, at + 1))),
        }
    }
    pieces.sort_unstable_by_key(|piece| piece.0);
    let mut runs = Vec::with_capacity(pieces.len());
    for run in pieces.chunk_by(|one, next| one.1 == next.0) {
        runs.push((run[run.len() - 1].1 - run[0].0, run));
    }
    runs.sort_unstable_by_key(|(bytes, run)| Reverse((*bytes, run[0].0)));
    let mut sorted = Vec::with_capacity(idle.len());
    for (_, _, (from, to)) in runs.iter().flat_map(|(_, run)| run.iter().rev()) {
        sorted.extend(idle[*from..*to].iter().rev());
    }
    *idle = sorted;
}

/// The idle views of a heap that is locked, so that they stay idle.
pub(super) fn own_idle(heap: &Heap) -> IdleList {
    let mut found = IdleList::default();
    heap.add_idle(&mut found);
    found.list_views(found.all().runs.len(), |_, list| list(heap));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::IdleView;
    use crate::units::GRANULE;

    #[test]
    fn views_of_the_shortest_runs_come_last_and_by_address() {
        let granules = [4, 9, 1, 5, 6, 12, 8, 13];
        let mut idle: Vec<Idle> = granules
            .into_iter()
            .map(|granule: u64| {
                let (address, bytes) = (granule * GRANULE, GRANULE);
                let view = IdleView { view: 0, handle: 0, address, bytes };
                Idle { shard: granule as u32 % 3, view }
            })
            .collect();
        sort_by_runs(&mut idle);
        let order: Vec<_> = idle.iter().map(|idle| idle.view.address / GRANULE).collect();
        assert_eq!(order, [6, 5, 4, 13, 12, 9, 8, 1]);
    }
}
