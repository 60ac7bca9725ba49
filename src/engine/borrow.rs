//! Which requests are served by loans, and who lends to them.
//!
//! What a block leaves of its last handle serves only its own heap, and there only what fits. That
//! is little loss where one stream has all of the memory, whose later requests go there. Where
//! several share it, small requests go into what others leave before their heap gets a page of its
//! own, and large ones are laid so that they leave less. Before a request fails everybody's
//! remainders are lent.

use super::grow::{Effort, Grown, Request};
use super::idle::Idle;
use super::loans::Source;
use super::means::Supply;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::{ArenaKind, Gap, Heap, IdleList, IdlePart, LARGE_UNIT};
use crate::lock::MutexGuard;
use crate::units::{Address, Bytes, GRANULE, align_down};

/// How a request is made up: of what is lent before and after, with how much of each is used, and
/// of whole handles.
#[derive(Clone, Copy, Debug)]
struct Edges {
    head: Option<(Source, Bytes)>,
    tail: Option<(Source, Bytes)>,
    middle: Bytes,
}

impl Engine {
    /// Whether other streams have memory, too, that this heap may use.
    pub(super) fn shares_memory(&self, own: u32) -> bool {
        self.policy.steal
            && self.shards.iter().any(|(number, shard)| {
                number != own && shard.pool().is_none() && shard.heap.lock().has_memory()
            })
    }

    /// What could be lent to a request, by itself and by others, beside blocks of these kinds, of
    /// pieces of `least` bytes and more, in no order. Without `all`, only of short handles, which
    /// pin little else, and what nothing queued uses; to small requests, what its heap has not used
    /// for a while.
    fn sources(
        &self,
        growth: &mut Growth,
        heap: &Heap,
        request: Request,
        (kinds, least, all): (&[ArenaKind], Bytes, bool),
    ) -> DeviceResult<Vec<Source>> {
        let mut found = Vec::with_capacity(64);
        let taker = self.shards.get(request.shard);
        // A graph may use what a private pool has at any time.
        let Some(taker) = taker.filter(|shard| shard.pool().is_none()) else {
            return Ok(found);
        };
        let mut parts = Vec::with_capacity(64);
        let sizes = (least, if all { Bytes::MAX } else { GRANULE });
        heap.remainders(kinds, sizes, &mut parts);
        found.extend(parts.drain(..).map(|part| Source { shard: request.shard, part }));
        let others = self.shards.iter().filter(|(number, shard)| {
            let may = self.policy.steal || shard.stream == taker.stream;
            *number != request.shard && may && shard.pool().is_none()
        });
        for (number, shard) in others {
            let mut other = shard.heap.lock();
            other.remainders(kinds, sizes, &mut parts);
            let Some(newest) = parts.iter().map(|part| part.since).max() else {
                continue;
            };
            // Nothing else is left to try then that does not count on it.
            if all && !self.deferred.lock().can_order(shard.stream, taker.stream)? {
                parts.clear();
                continue;
            }
            let passed = if all || shard.stream == taker.stream {
                u64::MAX
            } else {
                let passed = self.look_at_marks(&mut growth.marks, shard, &mut other, newest);
                match request.kind {
                    ArenaKind::Small => self.rested(&mut growth.marks, shard, passed),
                    ArenaKind::Large => passed,
                }
            };
            let settled = parts.drain(..).filter(|part| part.since < passed);
            found.extend(settled.map(|part| Source { shard: number, part }));
        }
        Ok(found)
    }

    /// Serves a small request from a remainder beside large blocks instead of a page of its own,
    /// and what follows from the rest of it; `None` where none is long enough. With `all`, from
    /// whatever anybody has left.
    pub(super) fn borrow_a_part(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        all: bool,
    ) -> Result<Option<Address>> {
        let least = if all { request.bytes } else { request.bytes.max(self.policy.lent_to_small) };
        // As long as the request would not fail, a heap keeps what is left of its small pages.
        let kinds = if all { &ArenaKind::ALL[..] } else { &[ArenaKind::Large] };
        let mut sources = self.sources(growth, heap, request, (kinds, least, all))?;
        sources.sort_by_key(|source| source.part.bytes);
        for source in sources {
            let Some(address) = self.addresses_for(heap, request, source.part.view.1)? else {
                return Ok(None);
            };
            let span = (source.part.start, source.part.bytes);
            if self.borrow(growth, heap, request, source, span, address)? {
                let start = address + (source.part.start - source.part.view.0);
                return Ok(self.take_at(heap, request, start));
            }
        }
        Ok(None)
    }

    /// Whether a large request borrows although there is idle memory of others for it.
    pub(super) fn borrows_early(
        &self,
        growth: &Growth,
        request: Request,
        idle: IdlePart<'_>,
    ) -> bool {
        let spent_us = growth.store.spent_us;
        idle.runs.iter().any(|run| run.heap != request.shard)
            && self.policy.may_lend_early(request.bytes, spent_us, self.clock.now_us())
    }

    /// Serves a large request from whole handles between two remainders, one that ends where its
    /// handle does and one that begins where its handle does, or with one of them.
    pub(super) fn borrow_edges(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (idle, supply): (IdlePart<'_>, Supply),
    ) -> Result<Grown> {
        let sources = self.sources(growth, heap, request, (&ArenaKind::ALL, LARGE_UNIT, false))?;
        self.lay_between(growth, heap, request, &sources, (idle, supply))
    }

    /// Serves a request that would fail with whatever is left anywhere; then also with what loans
    /// in which something lives give back.
    pub(super) fn grow_by_loans(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        supply: &dyn Fn() -> Supply,
        idle: &mut IdleList,
    ) -> Result<Option<Address>> {
        let look = |growth: &mut Growth, heap: &Heap, idle: &mut IdleList| {
            self.find_all_idle(growth, heap, request, Effort::Reshape, idle);
            self.list_views((request.shard, heap), idle, false);
        };
        look(growth, heap, idle);
        let lent = self.borrow_before_failing(growth, heap, request, (idle.all(), supply()))?;
        if lent.is_some() || !self.shrink_loans(growth, (request.shard, heap))? {
            return Ok(lent);
        }
        look(growth, heap, idle);
        if let Grown::Served(address) =
            self.grow_from(growth, heap, request, idle.all(), supply())?
        {
            return Ok(Some(address));
        }
        look(growth, heap, idle);
        self.borrow_before_failing(growth, heap, request, (idle.all(), supply()))
    }

    /// The same with whatever is left anywhere, for a request that would fail.
    fn borrow_before_failing(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        (idle, supply): (IdlePart<'_>, Supply),
    ) -> Result<Option<Address>> {
        if request.kind == ArenaKind::Small {
            return self.borrow_a_part(growth, heap, request, true);
        }
        let sources = self.sources(growth, heap, request, (&ArenaKind::ALL, LARGE_UNIT, true))?;
        match self.lay_between(growth, heap, request, &sources, (idle, supply))? {
            Grown::Served(address) => Ok(Some(address)),
            Grown::Changed | Grown::Unchanged => Ok(None),
        }
    }

    fn lay_between(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        sources: &[Source],
        (idle, mut supply): (IdlePart<'_>, Supply),
    ) -> Result<Grown> {
        let spare = self.claimable(growth, request.shard)?;
        let spare = spare.iter().filter_map(|&number| growth.store.handle(number));
        let spare: Bytes = spare.map(|handle| handle.bytes).sum();
        let whole = align_down(supply.most.saturating_add(idle.bytes() + spare), GRANULE);
        let Some(Edges { head, tail, middle }) = edges(sources, request.bytes, whole) else {
            return Ok(Grown::Unchanged);
        };
        let length =
            |edge: Option<(Source, Bytes)>| edge.map_or(0, |(source, _)| source.part.view.1);
        let bytes = length(head) + middle + length(tail);
        let Some(address) = self.addresses_for(heap, request, bytes)? else {
            return Ok(Grown::Unchanged);
        };
        let at = address + length(head);
        if middle > 0 {
            supply.idle = std::mem::take(&mut growth.movable);
            supply.idle.clear();
            for run in idle.runs {
                let shard = run.heap;
                supply.idle.extend(idle.of(run).iter().map(|&view| Idle { shard, view }));
            }
            if supply.roomy {
                // The heap's own are taken first.
                supply.idle.reverse();
            }
        }
        let gap = Gap { address: at, bytes: middle, room: middle };
        if middle > 0 {
            let filled = self.fill(growth, heap, request, gap, &mut supply);
            growth.movable = supply.idle;
            if !filled? {
                return Ok(Grown::Changed);
            }
        }
        let head = head.map(|(source, used)| (source, source.part.end() - used, used, address));
        let tail = tail.map(|(source, used)| (source, source.part.start, used, at + middle));
        for (source, from, used, to) in [head, tail].into_iter().flatten() {
            if !self.borrow(growth, heap, request, source, (from, used), to)? {
                return Ok(Grown::Changed);
            }
        }
        let start = at - head.map_or(0, |(_, _, used, _)| used);
        Ok(self.take_at(heap, request, start).map_or(Grown::Changed, Grown::Served))
    }

    /// Where a hole of `bytes` begins in a request's arena, which is made if there is none.
    fn addresses_for(
        &self,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        bytes: Bytes,
    ) -> Result<Option<Address>> {
        let found = heap.hole_of(bytes, request.kind);
        if found.is_some() || !self.add_range(heap, Request { bytes, ..request })? {
            return Ok(found);
        }
        Ok(heap.hole_of(bytes, request.kind))
    }

    fn take_at(
        &self,
        heap: &mut MutexGuard<'_, Heap>,
        Request { requested, bytes, kind, .. }: Request,
        start: Address,
    ) -> Option<Address> {
        let found = heap.allocate_at(start, requested, bytes, kind);
        self.peaks.leave(&self.shards, heap);
        found
    }
}

/// What a request of `bytes` is made up of, with no more than `whole` bytes of whole handles: the
/// shortest remainder that suffices, else two that do.
fn edges(sources: &[Source], bytes: Bytes, whole: Bytes) -> Option<Edges> {
    let length = |source: &Source| align_down(source.part.bytes, LARGE_UNIT);
    let lent = match bytes.saturating_sub(whole) {
        0 => bytes % GRANULE,
        lacking => lacking,
    };
    if lent == 0 {
        return None;
    }
    let middle = bytes - lent;
    // The first of the shortest.
    let shortest = |may: &dyn Fn(&Source) -> bool| {
        let suffice = sources.iter().filter(|source| length(source) >= lent && may(source));
        suffice.min_by_key(|source| source.part.bytes).copied()
    };
    if let Some(head) = shortest(&|source| source.part.edges().1) {
        return Some(Edges { head: Some((head, lent)), tail: None, middle });
    }
    if let Some(tail) = shortest(&|source| source.part.edges().0) {
        return Some(Edges { head: None, tail: Some((tail, lent)), middle });
    }
    let by_size = |mut found: Vec<Source>| {
        found.sort_by_key(|source| source.part.bytes);
        found
    };
    let heads = by_size(sources.iter().filter(|source| source.part.edges().1).copied().collect());
    let tails = by_size(sources.iter().filter(|source| source.part.edges().0).copied().collect());
    heads.iter().find_map(|head| {
        let rest = lent - length(head);
        let tail = tails.iter().find(|tail| length(tail) >= rest)?;
        Some(Edges { head: Some((*head, length(head))), tail: Some((*tail, rest)), middle })
    })
}
