//! Memory that could serve a request of another heap: whole views on which nothing lives.

use super::grow::{Effort, Request};
use super::marks::Marks;
use super::{Engine, Growth};
use crate::heap::{ArenaKind, Heap, IdleList, IdleView};

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

/// The idle views of a heap that is locked, so that they stay idle.
pub(super) fn own_idle(heap: &Heap) -> IdleList {
    let mut found = IdleList::default();
    heap.add_idle(&mut found);
    found
}
