//! Idle memory of other heaps that is used where it is: whole views on which nothing lives pass
//! from heap to heap with their addresses, so that the driver has nothing to do. What lies side by
//! side serves one request, whoever had it.

use super::grow::Request;
use super::idle::Idle;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{ArenaKind, Heap};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::units::{Address, Bytes};

/// Idle views side by side that stand so in the list of all, by their places in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: Address,
    pub(super) end: Address,
    pub(super) views: (usize, usize),
}

/// A place for a request over idle views that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    start: Address,
    /// The run that it lies in, among the spans sorted by address.
    spans: (usize, usize),
    /// The bytes of the views that it needs, and those of the whole run.
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
        let mut spans = spans_of(idle, request.kind);
        spans.sort_unstable_by_key(|span| span.start);
        let Some(window) = best_window(idle, &spans, heap, request) else {
            return Ok(None);
        };
        let run = &spans[window.spans.0..window.spans.1];
        let taken: Vec<Idle> = window_over(idle, run, window.start, request).copied().collect();
        if !self.take_over_all(growth, heap, request, &taken)? {
            return Ok(None);
        }
        let Request { requested, bytes, kind, .. } = request;
        let found = heap.allocate_at(window.start, requested, bytes, kind);
        self.peaks.leave(&self.shards, heap);
        Ok(found)
    }

    /// Passes idle views of any heaps to the request's; false where one cannot.
    pub(super) fn take_over_all(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        taken: &[Idle],
    ) -> Result<bool> {
        let mut givers: Vec<u32> = taken.iter().map(|idle| idle.shard).collect();
        givers.sort_unstable();
        givers.dedup();
        for giver in givers.into_iter().filter(|&giver| giver != request.shard) {
            let of_giver = taken.iter().filter(|idle| idle.shard == giver);
            if !self.take_over(growth, heap, request, giver, of_giver)? {
                return Ok(false);
            }
        }
        Ok(true)
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

/// What of a list lies side by side, as far as it stands there in a row.
pub(super) fn spans_of(idle: &[Idle], kind: ArenaKind) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::with_capacity(32);
    for (at, idle) in idle.iter().enumerate().filter(|(_, idle)| idle.view.kind == kind) {
        let (start, end) = (idle.view.address, idle.end());
        match spans.last_mut() {
            Some(span) if span.end == start && span.views.1 == at => {
                (span.end, span.views.1) = (end, at + 1);
            }
            _ => spans.push(Span { start, end, views: (at, at + 1) }),
        }
    }
    spans
}

/// The window that takes the least idle memory, among equals from the shortest run.
fn best_window(idle: &[Idle], spans: &[Span], heap: &Heap, request: Request) -> Option<Window> {
    // What a window may take beside a run is one free block of the heap at each end.
    let beside = 2 * heap.largest_indexed(request.kind);
    let mut best: Option<Window> = None;
    let mut first = 0;
    while first < spans.len() {
        let mut end = first + 1;
        while end < spans.len() && spans[end - 1].end == spans[end].start {
            end += 1;
        }
        if spans[end - 1].end - spans[first].start + beside >= request.bytes {
            for window in windows(idle, spans, (first, end), heap, request).into_iter().flatten() {
                let better =
                    best.is_none_or(|best| (window.taken, window.run) < (best.taken, best.run));
                if better {
                    best = Some(window);
                }
            }
        }
        first = end;
    }
    best
}

/// The windows at both ends of a run, if it is long enough.
fn windows(
    idle: &[Idle],
    spans: &[Span],
    (first, end): (usize, usize),
    heap: &Heap,
    request: Request,
) -> [Option<Window>; 2] {
    let run = &spans[first..end];
    let (head, tail) = (&idle[run[0].views.0], &idle[run[run.len() - 1].views.1 - 1]);
    let (from, to) = (head.view.address, tail.end());
    let before = match head.shard == request.shard {
        true => from - head.view.block.0,
        false => heap.free_before(request.kind, from),
    };
    let after = match tail.shard == request.shard {
        true => tail.view.block.0 + tail.view.block.1 - to,
        false => heap.free_after(request.kind, to),
    };
    if before + (to - from) + after < request.bytes {
        return [None, None];
    }
    let window = |start: Address| {
        let taken = window_over(idle, run, start, request).map(|idle| idle.view.bytes).sum();
        Window { start, spans: (first, end), taken, run: to - from }
    };
    [Some(window(from - before)), Some(window(to + after - request.bytes))]
}

/// The views of a run that a request needs which begins at `start`, by address.
fn window_over<'a>(
    idle: &'a [Idle],
    run: &'a [Span],
    start: Address,
    request: Request,
) -> impl Iterator<Item = &'a Idle> {
    let end = start + request.bytes;
    let over = run.iter().filter(move |span| start < span.end && span.start < end);
    over.flat_map(|span| &idle[span.views.0..span.views.1])
        .filter(move |idle| start < idle.end() && idle.view.address < end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::IdleView;
    use crate::units::GRANULE;

    const KIND: ArenaKind = ArenaKind::Large;

    /// The best window by its start and the views under it, from a list in order of addresses.
    fn by_address(idle: &[Idle], bytes: Bytes) -> Option<(Address, Vec<Address>)> {
        let mut views: Vec<_> = idle.iter().filter(|idle| idle.view.kind == KIND).collect();
        views.sort_by_key(|idle| idle.view.address);
        let mut best: Option<((Bytes, Bytes), Address, Vec<Address>)> = None;
        for run in views.chunk_by(|one, next| one.end() == next.view.address) {
            let (from, to) = (run[0].view.address, run[run.len() - 1].end());
            for start in [from, to.saturating_sub(bytes)] {
                let over = |idle: &&&Idle| start < idle.end() && idle.view.address < start + bytes;
                let taken: Vec<_> = run.iter().filter(over).map(|idle| idle.view).collect();
                let key = (taken.iter().map(|view| view.bytes).sum(), to - from);
                if to - from >= bytes && best.as_ref().is_none_or(|best| key < best.0) {
                    best = Some((key, start, taken.iter().map(|view| view.address).collect()));
                }
            }
        }
        best.map(|(_, start, taken)| (start, taken))
    }

    #[test]
    fn the_best_window_lies_where_views_of_any_heaps_lie_side_by_side() {
        let mut random = 3u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut found = 0;
        for _ in 0..500 {
            // Blocks of one to four views, some side by side; heap by heap, each in any order.
            let mut blocks = Vec::new();
            let mut at = GRANULE;
            for _ in 0..next(16) {
                at += next(2) * GRANULE;
                let views: Vec<_> = (0..=next(4)).map(|_| GRANULE << next(3)).collect();
                let bytes: Bytes = views.iter().sum();
                blocks.push((1 + next(3) as u32, next(8), at, views));
                at += bytes;
            }
            blocks.sort_by_key(|&(shard, order, ..)| (shard, order));
            let mut idle = Vec::new();
            for (shard, _, start, views) in blocks {
                let kind = if next(9) == 0 { ArenaKind::Small } else { KIND };
                let block = (start, views.iter().sum());
                let mut address = start;
                for bytes in views {
                    let view =
                        IdleView { view: 0, handle: 0, address, bytes, kind, block, since: 0 };
                    idle.push(Idle { shard, settled: true, view });
                    address += bytes;
                }
            }
            let bytes = (1 + next(12)) * GRANULE - next(2) * 4096;
            let request = Request { shard: 0, requested: bytes, bytes, kind: KIND };
            let mut spans = spans_of(&idle, KIND);
            spans.sort_unstable_by_key(|span| span.start);
            let window = best_window(&idle, &spans, &Heap::new(None), request).map(|window| {
                let run = &spans[window.spans.0..window.spans.1];
                let over = window_over(&idle, run, window.start, request);
                (window.start, over.map(|idle| idle.view.address).collect())
            });
            found += usize::from(window.is_some());
            assert_eq!(window, by_address(&idle, bytes));
        }
        assert!(found > 200, "{found}");
    }

    #[test]
    fn what_the_heap_has_free_beside_a_run_counts() {
        let mut heap = Heap::new(None);
        heap.add_range(64 * GRANULE, 2 * GRANULE, 0, KIND);
        heap.attach(64 * GRANULE, GRANULE, 0).unwrap();
        let (view, _) = heap.attach(65 * GRANULE, GRANULE, 1).unwrap();
        heap.allocate(GRANULE * 3 / 4, GRANULE * 3 / 4).unwrap();
        let mut idle = Vec::new();
        heap.idle_views(|view| idle.push(Idle { shard: 1, settled: true, view }));
        heap.cede(view).unwrap();
        let spans = spans_of(&idle, KIND);
        let start_of = |bytes| {
            let request = Request { shard: 0, requested: bytes, bytes, kind: KIND };
            best_window(&idle, &spans, &heap, request).map(|window| window.start)
        };
        assert_eq!(start_of(GRANULE * 5 / 4), Some(64 * GRANULE + GRANULE * 3 / 4));
        assert_eq!(start_of(GRANULE * 5 / 4 + 4096), None);
    }
}
