//! Memory that could serve a request of another heap: whole views on which nothing lives.

use super::grow::{Effort, Request};
use super::marks::Marks;
use super::{Engine, Growth};
use crate::heap::{ArenaKind, Heap, IdleView};

/// An idle view of any heap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    pub(super) shard: u32,
    /// No work queued on another stream uses it any more.
    pub(super) settled: bool,
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
        idle: &mut Vec<Idle>,
    ) {
        idle.clear();
        heap.idle_views(|view| idle.push(Idle { shard: request.shard, settled: true, view }));
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
        idle: &mut Vec<Idle>,
        effort: Effort,
    ) {
        let stream = self.shards.get(request.shard).map(|shard| shard.stream);
        let others = self.shards.iter().filter(|(index, shard)| {
            *index != request.shard && (self.policy.steal || Some(shard.stream) == stream)
        });
        for (index, shard) in others {
            let mut heap = shard.heap.lock();
            match effort {
                Effort::Usual => heap.flush_large(),
                Effort::Reshape => _ = heap.flush_quick(),
            }
            let first = idle.len();
            let mut newest = 0;
            heap.idle_views(|view| {
                newest = newest.max(view.since);
                idle.push(Idle { shard: index, settled: true, view });
            });
            if idle.len() == first {
                continue;
            }
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
                let of_heap = idle[first..].iter_mut();
                of_heap.for_each(|idle| idle.settled = idle.view.since < passed);
            }
        }
    }
}

/// The idle views of a heap that is locked, so that they stay idle.
pub(super) fn own_idle(shard: u32, heap: &Heap) -> Vec<Idle> {
    let mut found = Vec::new();
    heap.idle_views(|view| found.push(Idle { shard, settled: true, view }));
    found
}
