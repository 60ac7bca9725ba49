//! Idle memory of other heaps that is used where it is: whole views on which nothing lives pass
//! from heap to heap with their addresses, so that the driver has nothing to do. What lies side by
//! side serves one request, whoever had it.

use super::grow::Request;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{ArenaKind, Heap, IdlePart, IdleRun};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::units::{Address, Bytes};

/// A place for a request over idle views that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    start: Address,
    /// The runs that it lies over and what lies side by side with them, among those sorted by
    /// address.
    runs: (usize, usize),
    /// The views that it needs, and the bytes of all that lies side by side.
    views: (Address, Address),
    length: Bytes,
}

impl Window {
    /// The less the better.
    fn key(&self) -> (Bytes, Bytes) {
        (self.views.1 - self.views.0, self.length)
    }
}

/// The start and the end of the view over an address in a run.
type ViewAround<'a> = &'a dyn Fn(&IdleRun, Address) -> (Address, Address);

impl Engine {
    /// Serves a request from views that are idle and lie side by side, those of other heaps among
    /// them; `None` where there are not enough. The runs are by address. Work queued on the
    /// request's stream runs after whatever still uses them.
    pub(super) fn adopt(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        runs: &[&IdleRun],
    ) -> Result<Option<Address>> {
        let view_around = |run: &IdleRun, address| match self.shards.get(run.heap) {
            _ if run.heap == request.shard => heap.view_around(run, address),
            Some(shard) => shard.heap.lock().view_around(run, address),
            None => (run.start, run.end),
        };
        let Some(window) = best_window(runs, heap, request, &view_around) else {
            return Ok(None);
        };
        let (from, to) = window.views;
        let others = runs[window.runs.0..window.runs.1].iter();
        let others = others.filter(|run| run.heap != request.shard);
        let taken = others.map(|run| (run.heap, (run.start.max(from), run.end.min(to))));
        let taken = taken.filter(|(_, (start, end))| start < end).collect();
        if !self.take_over_all(growth, heap, request, taken)? {
            return Ok(None);
        }
        let Request { requested, bytes, kind, .. } = request;
        let found = heap.allocate_at(window.start, requested, bytes, kind);
        self.peaks.leave(&self.shards, heap);
        Ok(found)
    }

    /// Passes idle views of other heaps, each run as its heap's number and its span, to the
    /// request's; false where one cannot.
    pub(super) fn take_over_all(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        mut taken: Vec<(u32, (Address, Address))>,
    ) -> Result<bool> {
        // Heap by heap, those of one by address.
        taken.sort_by_key(|&(giver, _)| giver);
        for of_giver in taken.chunk_by(|one, next| one.0 == next.0) {
            if !self.take_over(growth, heap, request, of_giver)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Passes idle views from their heap to the request's, those of a run at once. False where one
    /// is not idle any more, or where the streams cannot be ordered because one is being captured.
    pub(super) fn take_over(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        Request { shard: taker, kind, .. }: Request,
        runs: &[(u32, (Address, Address))],
    ) -> Result<bool> {
        let giver = runs.first().map_or(taker, |run| run.0);
        let (Some(from), Some(to)) = (self.shards.get(giver), self.shards.get(taker)) else {
            return Ok(false);
        };
        let mut other = from.heap.lock();
        let mut newest = 0;
        for &(_, (start, end)) in runs {
            let Some(since) = other.free_since(start, end - start, kind) else {
                growth.lost += 1;
                return Ok(false);
            };
            newest = newest.max(since);
        }
        if !self.order_after(growth, (from, newest), to)? {
            return Ok(false);
        }
        for &(_, (start, end)) in runs {
            let Some(ceded) = other.cede(kind, start, end) else {
                growth.lost += 1;
                return Ok(false);
            };
            other.pass_starts(heap);
            let Some(memory) = heap.adopt(&ceded) else {
                continue;
            };
            self.enter(growth, heap, taker, memory);
            if self.is_recorded() {
                let mut address = start;
                for &(_, bytes) in &ceded.handles {
                    self.record_memory(Action::SegmentUnmap, giver, address, bytes);
                    self.record_memory(Action::SegmentMap, taker, address, bytes);
                    address += bytes;
                }
            }
        }
        Ok(true)
    }
}

/// The runs for one kind of request.
pub(super) fn by_address(idle: IdlePart<'_>, kind: ArenaKind) -> Vec<&IdleRun> {
    let mut runs: Vec<&IdleRun> = Vec::with_capacity(idle.runs.len());
    runs.extend(idle.runs.iter().filter(|run| run.kind == kind));
    runs.sort_unstable_by_key(|run| run.start);
    runs
}

/// The window that takes the least idle memory, among equals from the shortest run.
fn best_window(
    runs: &[&IdleRun],
    heap: &Heap,
    request: Request,
    view_around: ViewAround<'_>,
) -> Option<Window> {
    // What a window may take beside runs is one free block of the heap at each end.
    let largest = heap.largest_indexed(request.kind);
    let mut best: Option<Window> = None;
    let mut first = 0;
    while first < runs.len() {
        let mut end = first + 1;
        while end < runs.len() && runs[end - 1].end == runs[end].start {
            end += 1;
        }
        if runs[end - 1].end - runs[first].start + 2 * largest >= request.bytes {
            let places = (first, end);
            look_at_ends(runs, places, (heap, largest), request, view_around, &mut best);
        }
        first = end;
    }
    best
}

/// Looks at the windows at both ends of runs side by side, if they are long enough.
fn look_at_ends(
    runs: &[&IdleRun],
    (first, end): (usize, usize),
    (heap, largest): (&Heap, Bytes),
    request: Request,
    view_around: ViewAround<'_>,
    best: &mut Option<Window>,
) {
    let (head, tail) = (runs[first], runs[end - 1]);
    let (from, to) = (head.start, tail.end);
    let length = to - from;
    let before = match head.heap == request.shard {
        true => from - head.block.0,
        false => heap.free_before(request.kind, from),
    };
    if before + length + largest < request.bytes {
        return;
    }
    let after = match tail.heap == request.shard {
        true => tail.block.0 + tail.block.1 - to,
        false => heap.free_after(request.kind, to),
    };
    if before + length + after < request.bytes {
        return;
    }
    let runs_over = &runs[first..end];
    let view_at = |address| {
        let over = runs_over.partition_point(|run| run.end <= address);
        view_around(runs_over[over], address)
    };
    for start in [from - before, to + after - request.bytes] {
        let stop = start + request.bytes;
        // Whole views are no less than what the window lies over.
        let mut views = (from.max(start).min(to), to.min(stop).max(from));
        if best.is_some_and(|best| best.key() <= (views.1.saturating_sub(views.0), length)) {
            continue;
        }
        if from < start && start < to {
            views.0 = view_at(start).0;
        }
        if from < stop && stop < to {
            views.1 = view_at(stop - 1).1;
        }
        let window = Window { start, runs: (first, end), views, length };
        if best.is_none_or(|best| window.key() < best.key()) {
            *best = Some(window);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{IdleList, IdleView};
    use crate::units::GRANULE;

    const KIND: ArenaKind = ArenaKind::Large;

    /// The best window by its start and the views under it, of views with their blocks.
    fn by_looking_at_all(views: &[IdleView], bytes: Bytes) -> Option<(Address, Vec<Address>)> {
        let mut views = views.to_vec();
        views.sort_by_key(|view| view.address);
        let mut best: Option<((Bytes, Bytes), Address, Vec<Address>)> = None;
        for run in views.chunk_by(|one, next| one.end() == next.address) {
            let (from, to) = (run[0].address, run[run.len() - 1].end());
            for start in [from, to.saturating_sub(bytes)] {
                let over = |view: &&IdleView| start < view.end() && view.address < start + bytes;
                let taken: Vec<_> = run.iter().filter(over).collect();
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
            // Blocks of one to five views, some side by side; heap by heap, each in any order.
            let mut blocks = Vec::new();
            let mut at = GRANULE;
            for _ in 0..next(16) {
                at += next(2) * GRANULE;
                let views: Vec<_> = (0..=next(4)).map(|_| GRANULE << next(3)).collect();
                let bytes: Bytes = views.iter().sum();
                blocks.push((1 + next(3) as u32, next(8), at, views));
                at += bytes;
            }
            let mut heaps = [(); 3].map(|()| Heap::new(None));
            heaps.iter_mut().zip(1..).for_each(|(heap, number)| heap.number = number);
            let mut idle = IdleList::default();
            let mut large = Vec::new();
            blocks.sort_by_key(|&(_, order, ..)| order);
            for (shard, _, start, views) in blocks {
                let heap: &mut Heap = &mut heaps[shard as usize - 1];
                let kind = if next(9) == 0 { ArenaKind::Small } else { KIND };
                heap.add_range(start, views.iter().sum(), 0, kind);
                let handles: Vec<_> = views.into_iter().map(|bytes| (0, bytes)).collect();
                let own = heap.attach_all(start, &handles).unwrap();
                if kind == KIND {
                    large.extend(heap.views_of(own).map(|(view, _)| heap.as_if_idle(view)));
                }
            }
            heaps.iter().for_each(|heap| heap.add_idle(&mut idle));
            let bytes = (1 + next(12)) * GRANULE - next(2) * 4096;
            let request = Request { shard: 0, requested: bytes, bytes, kind: KIND };
            let runs = by_address(idle.all(), KIND);
            let around = |run: &IdleRun, at| heaps[run.heap as usize - 1].view_around(run, at);
            let window = best_window(&runs, &Heap::new(None), request, &around).map(|window| {
                let (from, to) = window.views;
                let taken = large.iter().map(|view| view.address);
                let mut taken: Vec<_> = taken.filter(|at| (from..to).contains(at)).collect();
                taken.sort_unstable();
                (window.start, taken)
            });
            found += usize::from(window.is_some());
            assert_eq!(window, by_looking_at_all(&large, bytes));
        }
        assert!(found > 200, "{found}");
    }

    #[test]
    fn what_the_heap_has_free_beside_a_run_counts() {
        let mut heap = Heap::new(None);
        heap.add_range(64 * GRANULE, 2 * GRANULE, 0, KIND);
        heap.attach(64 * GRANULE, GRANULE, 0).unwrap();
        heap.attach(65 * GRANULE, GRANULE, 1).unwrap();
        heap.allocate(GRANULE * 3 / 4, GRANULE * 3 / 4).unwrap();
        let mut idle = IdleList::default();
        heap.number = 1;
        heap.add_idle(&mut idle);
        heap.cede(KIND, 65 * GRANULE, 66 * GRANULE).unwrap();
        let runs = by_address(idle.all(), KIND);
        let around = |run: &IdleRun, at| heap.view_around(run, at);
        let start_of = |bytes| {
            let request = Request { shard: 0, requested: bytes, bytes, kind: KIND };
            best_window(&runs, &heap, request, &around).map(|window| window.start)
        };
        assert_eq!(start_of(GRANULE * 5 / 4), Some(64 * GRANULE + GRANULE * 3 / 4));
        assert_eq!(start_of(GRANULE * 5 / 4 + 4096), None);
    }
}
