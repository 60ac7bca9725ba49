//! What of a heap's memory nobody needs: whole views on which nothing lives, and how much was free
//! all the time.

use super::Heap;
use super::block::{Block, BlockId};
use super::layout::IdleView;
use super::ranges::ViewOver;
use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE};

impl Heap {
    /// Calls `found` with every active view on which nothing lives and that may move: block by
    /// block, those of a block by address.
    pub(crate) fn idle_views(&self, mut found: impl FnMut(IdleView)) {
        if self.holds.everything() {
            return;
        }
        for arena in &self.arenas {
            for (_, block) in arena.free.at_least(&self.blocks, GRANULE) {
                self.idle_views_in(block, &mut found);
            }
        }
    }

    fn idle_views_in(&self, block: &Block, found: &mut impl FnMut(IdleView)) {
        let Some(range) = &self.ranges[block.range as usize] else {
            return;
        };
        let (mut at, end_of_idle) = self.idle_in(block);
        while at < end_of_idle {
            let granule = ((at - range.base) / GRANULE) as usize;
            let ViewOver { end, view, handle, .. } = range.over[granule];
            let bytes = (u64::from(end) - granule as u64) * GRANULE;
            if !self.holds.at(at) {
                found(IdleView {
                    view,
                    handle,
                    address: at,
                    bytes,
                    kind: block.arena,
                    block: (block.start, block.bytes),
                    since: block.since,
                });
            }
            at += bytes;
        }
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

    /// The idle memory of a free block, as start and end: none of a segment, which has no views.
    #[inline(always)]
    pub(super) fn idle_in(&self, block: &Block) -> (Address, Address) {
        // Views are whole granules: most remainders of blocks hold none, which needs no look.
        if block.start.div_ceil(GRANULE) >= block.end() / GRANULE {
            return (0, 0);
        }
        self.idle_views_over(block.range, block.start, block.end())
    }

    fn idle_views_over(&self, range: u32, start: Address, end: Address) -> (Address, Address) {
        let range = self.ranges[range as usize].as_ref();
        let Some(range) = range.filter(|range| !range.segment) else {
            return (0, 0);
        };
        let (first, last) = (range.view_over(start), range.view_over(end - 1));
        let from = if first.0 < start { first.1 } else { start };
        let to = if last.1 > end { last.0 } else { end };
        (from, to)
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
