//! The memory behind ranges: views come and go, and blocks change with them.

use super::block::{Block, BlockId, NONE, State};
use super::gaps::{GapBlock, HOLE};
use super::idle::IdleView;
use super::size::ArenaKind;
use super::views::View;
pub(super) use super::views::ViewId;
use super::{Heap, join};
use crate::units::{Address, Bytes};

/// New memory of a heap: views side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backed {
    pub(super) range: u32,
    pub(crate) start: Address,
    pub(super) bytes: Bytes,
}

impl Heap {
    /// Makes `[address, address + bytes)`, which lies in one hole, free memory on a new active
    /// view.
    pub(crate) fn attach(
        &mut self,
        address: Address,
        bytes: Bytes,
        handle: u32,
    ) -> Option<(ViewId, Vec<(Address, u32)>)> {
        let backed = self.attach_all(address, &[(handle, bytes)])?;
        let (view, _) = self.views_of(backed).next()?;
        Some((view, self.pages_of(backed)))
    }

    /// The same of several handles side by side, each with its bytes. `None` where there are none.
    pub(crate) fn attach_all(
        &mut self,
        address: Address,
        handles: &[(u32, Bytes)],
    ) -> Option<Backed> {
        handles.first()?;
        let kind = self.arena_of(address)?;
        let id = self.cut_hole(kind, address, handles.iter().map(|(_, bytes)| bytes).sum())?;
        Some(self.back(id, handles))
    }

    /// Makes a block without memory, which is in no index, free memory on new active views of these
    /// handles, which are as long as it.
    pub(super) fn back(&mut self, id: BlockId, handles: &[(u32, Bytes)]) -> Backed {
        let Block { start, bytes: length, arena: kind, range: number, .. } = self.blocks[id];
        self.add_slots(number, start, length);
        if let Some(range) = &mut self.ranges[number as usize] {
            let mut at = range.granule_of(start);
            self.views.insert_row((start, number, kind), handles, |view, handle, granules| {
                let end = at + granules as usize;
                range.note_view((at, end), view, handle);
                at = end;
            });
            debug_assert_eq!(at, range.granule_of(start + length));
        }
        self.blocks[id].state = State::Free;
        self.blocks[id].since = self.marks;
        self.insert_free(kind, id);
        Backed { range: number, start, bytes: length }
    }

    /// The views of new memory with their handles, by address.
    pub(crate) fn views_of(&self, memory: Backed) -> impl Iterator<Item = (ViewId, u32)> + '_ {
        let Backed { range, start, bytes } = memory;
        let range = self.ranges.get(range as usize).and_then(Option::as_ref);
        let views = range.into_iter().flat_map(move |range| range.views(start, start + bytes));
        views.map(|view| (view.view, view.handle))
    }

    pub(super) fn arena_of(&self, address: Address) -> Option<ArenaKind> {
        self.ranges.iter().flatten().find(|range| range.contains(address)).map(|range| range.kind)
    }

    /// Cuts the hole over the span so that one block, in no index, is exactly the span.
    pub(super) fn cut_hole(
        &mut self,
        kind: ArenaKind,
        address: Address,
        bytes: Bytes,
    ) -> Option<BlockId> {
        let hole = self.gap_over(kind, address)?;
        let Block { start, state, .. } = self.blocks[hole];
        let end = self.blocks[hole].end();
        if state != State::Hole || address + bytes > end {
            return None;
        }
        let mut id = hole;
        if start < address {
            id = self.split(hole, address - start);
            let front = GapBlock::hole(address, address - start, hole);
            self.arenas[kind as usize].gaps.insert(front);
        }
        if self.blocks[id].bytes > bytes {
            let rest = self.split(id, bytes);
            let back = GapBlock::hole(end, self.blocks[rest].bytes, rest);
            self.arenas[kind as usize].gaps.insert(back);
        } else {
            self.arenas[kind as usize].gaps.remove(end);
        }
        Some(id)
    }

    /// The hole or dormant block over an address.
    pub(super) fn gap_over(&self, kind: ArenaKind, address: Address) -> Option<BlockId> {
        let gap = self.arenas[kind as usize].gaps.from(address + 1)?;
        (gap.start() <= address).then_some(gap.block)
    }

    /// Makes a view dormant on which nothing lives: its handle moves elsewhere. False where it has
    /// to stay.
    pub(crate) fn detach(&mut self, view: ViewId) -> bool {
        self.view(view).is_some_and(|view| !self.holds.at(view.address)) && self.make_dormant(view)
    }

    /// The same of views in a row, by address or backwards: of all of them or of none. It comes to
    /// the same as if they went one by one.
    pub(crate) fn detach_all(&mut self, views: &[IdleView]) -> bool {
        if views.iter().any(|view| self.holds.at(view.address)) {
            return false;
        }
        let backwards = views.len() > 1 && views[1].address < views[0].address;
        let Some((start, bytes, kind)) = self.span_of(views) else {
            return false;
        };
        let Some(id) = self.cut_free_in(start, bytes, kind, backwards) else {
            return false;
        };
        match backwards {
            true => self.leave(id, views.iter().rev().map(|view| (view.view, view.bytes))),
            false => self.leave(id, views.iter().map(|view| (view.view, view.bytes))),
        }
        true
    }

    /// As [`detach`](Heap::detach), whether it has to stay or not.
    pub(crate) fn make_dormant(&mut self, number: ViewId) -> bool {
        let Some(View { address, bytes, kind, .. }) = self.view(number) else {
            return false;
        };
        let Some(id) = self.cut_free(address, bytes, kind) else {
            return false;
        };
        self.leave(id, std::iter::once((number, bytes)));
        true
    }

    /// Makes a block that is in no index a dormant one for each of these views, by address.
    fn leave(&mut self, id: BlockId, views: impl ExactSizeIterator<Item = (ViewId, Bytes)>) {
        let Block { start, bytes, arena: kind, range, .. } = self.blocks[id];
        self.remove_slots(range, start, bytes);
        self.moves += views.len();
        let mut gaps = Vec::with_capacity(views.len());
        let mut rest = id;
        for (number, bytes) in views {
            let block = rest;
            if self.blocks[block].bytes > bytes {
                rest = self.split(block, bytes);
            }
            self.blocks[block].state = State::Dormant;
            self.blocks[block].view = number;
            let handle = self.views.set_active(number, false).unwrap_or(HOLE);
            gaps.push(GapBlock { end: self.blocks[block].end(), bytes, block, handle });
        }
        self.arenas[kind as usize].gaps.insert_all(&gaps);
    }

    /// The mark after the last use of views in a row on which nothing lives; `None` where something
    /// does.
    pub(crate) fn idle_since(&self, views: &[IdleView]) -> Option<u64> {
        let (start, bytes, kind) = self.span_of(views)?;
        self.free_since(start, bytes, kind)
    }

    /// The span of views in a row, by address or backwards, and what it serves.
    fn span_of(&self, views: &[IdleView]) -> Option<(Address, Bytes, ArenaKind)> {
        let (first, last) = (views.first()?, views.last()?);
        let start = first.address.min(last.address);
        let end = first.end().max(last.end());
        Some((start, end - start, self.view(first.view)?.kind))
    }

    /// Cuts the free block over a span so that one block, in no index, is exactly the span.
    pub(super) fn cut_free(
        &mut self,
        start: Address,
        bytes: Bytes,
        kind: ArenaKind,
    ) -> Option<BlockId> {
        self.cut_free_in(start, bytes, kind, false)
    }

    /// The same; what is left behind the span is indexed first where that is asked for.
    fn cut_free_in(
        &mut self,
        start: Address,
        bytes: Bytes,
        kind: ArenaKind,
        back_first: bool,
    ) -> Option<BlockId> {
        let id = self.free_block_over(start, bytes, kind)?;
        Some(self.cut_block(id, (start, bytes), kind, back_first))
    }

    /// The same of a free block that is known to lie over it.
    pub(super) fn cut_block(
        &mut self,
        id: BlockId,
        (start, bytes): (Address, Bytes),
        kind: ArenaKind,
        back_first: bool,
    ) -> BlockId {
        self.arenas[kind as usize].free.remove(&mut self.blocks, id);
        let mut middle = id;
        if self.blocks[id].start < start {
            middle = self.split(id, start - self.blocks[id].start);
        }
        let mut left = [NONE; 2];
        if middle != id {
            left[usize::from(back_first)] = id;
        }
        if self.blocks[middle].bytes > bytes {
            left[usize::from(!back_first)] = self.split(middle, bytes);
        }
        for id in left.into_iter().filter(|&id| id != NONE) {
            self.index_as(kind, id);
        }
        self.note_low(kind);
        middle
    }

    /// Makes a dormant view active again: its addresses are free memory. Gives the new page slots.
    pub(crate) fn reactivate(&mut self, view: ViewId) -> Option<Vec<(Address, u32)>> {
        let View { address, bytes, kind, range, handle, .. } = self.view(view)?;
        let id = self.arenas[kind as usize].gaps.remove(address + bytes)?.block;
        debug_assert_eq!(self.blocks[id].state, State::Dormant);
        self.blocks[id].state = State::Free;
        self.blocks[id].since = self.marks;
        self.views.set_active(view, true);
        let memory = self.add_view((range, address, bytes), view, handle);
        self.insert_free(kind, id);
        Some(self.pages_of(memory))
    }

    /// Forgets a dormant view that is no longer mapped: its addresses are a hole again.
    pub(crate) fn drop_dormant(&mut self, view: ViewId) {
        let Some(View { address, bytes, kind, .. }) = self.view(view) else {
            return;
        };
        let Some(&GapBlock { block: id, .. }) =
            self.arenas[kind as usize].gaps.get(address + bytes)
        else {
            return;
        };
        debug_assert_eq!(self.blocks[id].state, State::Dormant);
        self.views.remove(view);
        self.blocks[id].state = State::Hole;
        self.insert_hole(kind, id);
    }

    /// Indexes a hole, joined with those beside it.
    pub(super) fn insert_hole(&mut self, kind: ArenaKind, mut id: BlockId) {
        let Block { start, previous, next, .. } = self.blocks[id];
        let gaps = &mut self.arenas[kind as usize].gaps;
        if next != NONE && self.blocks[next].state == State::Hole {
            gaps.remove(self.blocks[id].end());
            join(&mut self.blocks, id, next);
        }
        if previous != NONE && self.blocks[previous].state == State::Hole {
            gaps.remove(start);
            join(&mut self.blocks, previous, id);
            id = previous;
        }
        let block = &self.blocks[id];
        gaps.insert(GapBlock::hole(block.end(), block.bytes, id));
    }

    /// A view, where there is one of that number.
    pub(crate) fn view(&self, view: ViewId) -> Option<View> {
        self.views.get(view)
    }

    /// Every view.
    pub(crate) fn views(&self) -> impl Iterator<Item = (ViewId, View)> + '_ {
        self.views.iter()
    }
}
