//! What of a heap's memory nobody needs: whole views on which nothing lives, and how much was free
//! all the time.

use super::Heap;
use super::block::{Block, BlockId};
use super::ranges::Range;
use super::size::ArenaKind;
use super::views::ViewId;
use crate::units::{Address, Bytes, GRANULE, align_up};

/// An active view on which nothing lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleView {
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
    pub(crate) view: ViewId,
    pub(crate) handle: u32,
}

impl IdleView {
    pub(crate) fn end(&self) -> Address {
        self.address + self.bytes
    }
}

/// Idle views side by side in one free block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleRun {
    /// The heap, by its number.
    pub(crate) heap: u32,
    pub(crate) kind: ArenaKind,
    /// No work queued on another stream uses it any more, as far as whoever made the list knows.
    pub(crate) settled: bool,
    pub(crate) start: Address,
    pub(crate) end: Address,
    /// The free block that it lies in.
    pub(crate) block: (Address, Bytes),
    /// The mark after its last use.
    pub(crate) since: u64,
    /// The range that it lies in.
    range: u32,
    /// Its views, by their places in the list, once they are listed.
    views: (u32, u32),
}

impl IdleRun {
    pub(crate) fn bytes(&self) -> Bytes {
        self.end - self.start
    }
}

/// Idle views side by side in one free block that have room for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreeRun {
    pub(crate) start: Address,
    pub(crate) end: Address,
    /// Where the views end that a request at its start lies over.
    pub(crate) views_end: Address,
    /// The mark after its last use.
    pub(crate) since: u64,
}

impl FreeRun {
    pub(crate) fn bytes(&self) -> Bytes {
        self.end - self.start
    }
}

/// What is idle of any heaps: runs block by block, and their views by address. Most requests need
/// no more than the runs, so that the views are listed when they are asked for.
#[derive(Debug, Default)]
pub(crate) struct IdleList {
    runs: Vec<IdleRun>,
    views: Vec<IdleView>,
    /// Of how many runs from the first on the views are listed.
    listed: usize,
}

/// A part of such a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdlePart<'a> {
    pub(crate) runs: &'a [IdleRun],
    views: &'a [IdleView],
}

impl IdleList {
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.views.clear();
        self.listed = 0;
    }

    fn add(&mut self, run: IdleRun) {
        debug_assert_eq!(self.listed, 0);
        if run.start < run.end {
            self.runs.push(run);
        }
    }

    /// Lists the views of so many runs from the first on: `look` makes a call with each heap that
    /// has some of them, by its number. The views that a heap has must be those that it had when it
    /// added its runs.
    pub(crate) fn list_views(
        &mut self,
        upto: usize,
        mut look: impl FnMut(u32, &mut dyn FnMut(&Heap)),
    ) {
        let from = self.listed;
        self.listed = from.max(upto);
        let IdleList { runs, views, .. } = self;
        let Some(new) = runs.get_mut(from..upto) else {
            return;
        };
        for of_heap in new.chunk_by_mut(|one, next| one.heap == next.heap) {
            look(of_heap[0].heap, &mut |heap| {
                of_heap.iter_mut().for_each(|run| heap.list_views_of(run, views));
            });
        }
    }

    pub(crate) fn all(&self) -> IdlePart<'_> {
        IdlePart { runs: &self.runs, views: &self.views }
    }

    /// The runs from a place on.
    pub(crate) fn runs_from(&mut self, first: usize) -> &mut [IdleRun] {
        &mut self.runs[first..]
    }

    /// Leaves only some runs.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&IdleRun) -> bool) {
        let (listed, mut at) = (self.listed, 0);
        self.runs.retain(|run| {
            let stay = stays(run);
            self.listed -= usize::from(!stay && at < listed);
            at += 1;
            stay
        });
    }
}

impl<'a> IdlePart<'a> {
    /// The runs of a heap that come before those of all others.
    pub(crate) fn first_of(self, heap: u32) -> IdlePart<'a> {
        let count = self.runs.iter().take_while(|run| run.heap == heap).count();
        IdlePart { runs: &self.runs[..count], ..self }
    }

    pub(crate) fn bytes(self) -> Bytes {
        self.runs.iter().map(IdleRun::bytes).sum()
    }

    /// The views of a run.
    pub(crate) fn of(self, run: &IdleRun) -> &'a [IdleView] {
        debug_assert!(run.views.0 < run.views.1, "they are listed");
        &self.views[run.views.0 as usize..run.views.1 as usize]
    }

    /// Every view that a span touches.
    pub(crate) fn over(self, start: Address, end: Address) -> impl Iterator<Item = &'a IdleView> {
        let touched = self.runs.iter().filter(move |run| start < run.end && run.start < end);
        touched.flat_map(move |run| self.of_over(run, start, end))
    }

    /// The views of a run that a span touches.
    pub(crate) fn of_over(self, run: &IdleRun, start: Address, end: Address) -> &'a [IdleView] {
        let views = self.of(run);
        if start <= run.start && run.end <= end {
            return views;
        }
        let first = views.partition_point(|view| view.end() <= start);
        let last = views.partition_point(|view| view.address < end);
        &views[first..last.max(first)]
    }
}

impl Heap {
    /// Adds every run of active views on which nothing lives and that may move to a list.
    pub(crate) fn add_idle(&self, list: &mut IdleList) {
        if self.holds.everything() {
            return;
        }
        for arena in self.arenas.iter().filter(|arena| arena.free.may_have(GRANULE)) {
            for (_, block) in arena.free.at_least(&self.blocks, GRANULE) {
                let idle = match block.arena {
                    ArenaKind::Large => block.idle(),
                    ArenaKind::Small => self.idle_in(block),
                };
                if idle.0 < idle.1 {
                    self.add_idle_in(block, idle, list);
                }
            }
        }
    }

    /// Nearly the shortest run of idle views that has room for `bytes`, is no longer than `most`,
    /// and may move. Only for large requests.
    pub(crate) fn run_for(&self, bytes: Bytes, most: Bytes, kind: ArenaKind) -> Option<FreeRun> {
        debug_assert_eq!(kind, ArenaKind::Large, "of others the blocks do not note what is idle");
        if self.holds.any() {
            return None;
        }
        let free = &self.arenas[kind as usize].free;
        let (block, (start, end)) = free
            .at_least(&self.blocks, bytes)
            .map(|(_, block)| (block, block.idle()))
            .find(|(_, (start, end))| end - start >= bytes)
            .filter(|(_, (start, end))| end - start <= most)?;
        let range = self.ranges.get(block.range as usize)?.as_ref()?;
        let views_end = range.view_over(start + bytes - 1).1;
        Some(FreeRun { start, end, views_end, since: block.since })
    }

    fn add_idle_in(&self, block: &Block, idle: (Address, Address), list: &mut IdleList) {
        let mut run = IdleRun {
            heap: self.number,
            kind: block.arena,
            settled: true,
            start: idle.0,
            end: idle.1,
            block: (block.start, block.bytes),
            since: block.since,
            range: block.range,
            views: (0, 0),
        };
        if let Some(range) = &self.ranges[block.range as usize]
            && self.holds.any()
        {
            for (start, end) in range.views(idle.0, idle.1).map(|view| range.span_of(view)) {
                if self.holds.at(start) {
                    list.add(IdleRun { end: start, ..run });
                    run.start = end;
                }
            }
        }
        list.add(run);
    }

    fn list_views_of(&self, run: &mut IdleRun, views: &mut Vec<IdleView>) {
        run.views.0 = views.len() as u32;
        if let Some(range) = self.ranges.get(run.range as usize).and_then(Option::as_ref) {
            views.reserve(range.granule_of(run.end) - range.granule_of(run.start));
            views.extend(range.views(run.start, run.end).map(|over| {
                let (address, end) = range.span_of(over);
                IdleView { address, bytes: end - address, view: over.view, handle: over.handle }
            }));
        }
        run.views.1 = views.len() as u32;
    }

    /// The start and the end of the view over an address in a run of this heap.
    pub(crate) fn view_around(&self, run: &IdleRun, address: Address) -> (Address, Address) {
        let range = self.ranges.get(run.range as usize).and_then(Option::as_ref);
        range.map_or((run.start, run.end), |range| range.view_over(address))
    }

    /// All of them.
    pub(crate) fn idle_views(&self) -> Vec<IdleView> {
        let mut list = IdleList::default();
        self.add_idle(&mut list);
        list.list_views(list.runs.len(), |_, list| list(self));
        list.views
    }

    /// What a view would be in a list of idle ones.
    #[cfg(test)]
    pub(crate) fn as_if_idle(&self, number: ViewId) -> IdleView {
        let view = self.view(number).unwrap();
        let (address, bytes, handle) = (view.address, view.bytes, view.handle);
        IdleView { address, bytes, view: number, handle }
    }

    /// Bytes of all blocks in the index.
    pub(crate) fn indexed(&self, kind: ArenaKind) -> Bytes {
        self.arenas[kind as usize].free.bytes
    }

    /// The size of the largest block in the index.
    pub(crate) fn largest_indexed(&self, kind: ArenaKind) -> Bytes {
        self.arenas[kind as usize].free.largest(&self.blocks)
    }

    /// Puts a free block into the index.
    pub(super) fn index(&mut self, id: BlockId) {
        self.index_as(self.blocks[id].arena, id);
    }

    /// Puts a free block of that arena into the index. Of a large one it is noted how much of it is
    /// idle, since requests compare many blocks between two changes of one.
    #[inline(always)]
    pub(super) fn index_as(&mut self, kind: ArenaKind, id: BlockId) {
        if kind == ArenaKind::Large {
            let idle = self.idle_in(&self.blocks[id]);
            self.blocks[id].set_idle(idle);
        }
        self.arenas[kind as usize].free.insert(&mut self.blocks, id);
    }

    /// The idle memory of a free block, as start and end.
    #[inline(always)]
    pub(super) fn idle_in(&self, block: &Block) -> (Address, Address) {
        idle_between(&self.ranges, block.range, block.start, block.end())
    }

    /// How many bytes were free ever since the last look, as far as they can be given back now:
    /// `idle` of them lie in whole views or segments on which nothing lives. What is kept aside for
    /// requests of its size counts as used until it goes back to the index here.
    pub(crate) fn unneeded(&mut self, idle: Bytes) -> Bytes {
        let mut free = 0;
        let mut low = 0;
        for arena in &self.arenas {
            free += arena.free.bytes;
            low += arena.free.low.min(arena.free.bytes);
        }
        self.flush_quick();
        for arena in &mut self.arenas {
            arena.free.low = arena.free.bytes;
        }
        let pinned = free.saturating_sub(idle);
        low.saturating_sub(pinned).min(idle)
    }

    /// Notes how much is left in the index, once memory was taken out of it.
    #[inline]
    pub(super) fn note_low(&mut self, kind: ArenaKind) {
        let free = &mut self.arenas[kind as usize].free;
        free.low = free.low.min(free.bytes);
    }
}

/// The idle memory of a free block from `start` to `end` of a range, as start and end: none of a
/// segment, which has no views.
#[inline(always)]
pub(super) fn idle_between(
    ranges: &[Option<Range>],
    range: u32,
    start: Address,
    end: Address,
) -> (Address, Address) {
    // Views are whole granules: most remainders of blocks hold none, which needs no look.
    if align_up(start, GRANULE) + GRANULE > end {
        return (0, 0);
    }
    idle_views_between(ranges, range, start, end)
}

#[inline(always)]
fn idle_views_between(
    ranges: &[Option<Range>],
    range: u32,
    start: Address,
    end: Address,
) -> (Address, Address) {
    let Some(range) = &ranges[range as usize] else {
        return (0, 0);
    };
    // What is over a segment begins before all blocks or ends behind them.
    let (first, last) = (range.view_over(start), range.view_over(end - 1));
    let from = if first.0 < start { first.1 } else { start };
    let to = if last.1 > end { last.0 } else { end };
    (from, to)
}
