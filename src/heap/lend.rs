//! Loans: parts of views on which nothing lives, used by another request at other addresses, where
//! the same handle is mapped a second time.
//!
//! ```text
//!   lender    | live        | lent      |          one handle, at two places
//!   borrower  | blocked     | free, live or both |
//! ```
//!
//! What lies beside live blocks in less than a handle is in nobody's way and no use to anybody who
//! needs more, or whose stream is another. In the lender's heap it is a *lent* block; in the
//! borrower's it is memory like any other, on a view of which the rest is *blocked*. Neither view
//! is idle as long as the loan lasts, so that the handle stays at both places.

use super::block::{Block, BlockId, State};
use super::gaps::GapBlock;
use super::size::{ArenaKind, LARGE_UNIT};
use super::views::{View, ViewId};
use super::{Heap, join};
use crate::units::{Address, Bytes, align_down};

/// A part of a view on which nothing lives, while something does on the rest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remainder {
    pub(crate) start: Address,
    pub(crate) bytes: Bytes,
    pub(crate) kind: ArenaKind,
    /// The view, as start and bytes, and its handle.
    pub(crate) view: (Address, Bytes),
    pub(crate) handle: u32,
    /// The mark after its last use.
    pub(crate) since: u64,
}

impl Remainder {
    pub(crate) fn end(&self) -> Address {
        self.start + self.bytes
    }

    /// Whether it begins where its view does, and whether it ends where that does.
    pub(crate) fn edges(&self) -> (bool, bool) {
        (self.start == self.view.0, self.end() == self.view.0 + self.view.1)
    }
}

impl Heap {
    /// Adds every remainder of `least` bytes or more, of a view of no more than `longest`, that may
    /// be lent; beside blocks of these kinds.
    pub(crate) fn remainders(
        &self,
        kinds: &[ArenaKind],
        (least, longest): (Bytes, Bytes),
        out: &mut Vec<Remainder>,
    ) {
        if self.holds.everything() {
            return;
        }
        let arenas = kinds.iter().map(|&kind| &self.arenas[kind as usize]);
        for arena in arenas.filter(|arena| arena.free.may_have(least)) {
            for (_, block) in arena.free.at_least(&self.blocks, least) {
                self.remainders_in(block, (least, longest), out);
            }
        }
    }

    fn remainders_in(
        &self,
        block: &Block,
        (least, longest): (Bytes, Bytes),
        out: &mut Vec<Remainder>,
    ) {
        let (start, end, since) = (block.start, block.end(), block.since);
        let range = self.ranges[block.range as usize].as_ref();
        let Some(range) = range.filter(|range| !range.segment) else {
            return;
        };
        let mut add = |at: Address, view: (Address, Address)| {
            let (start, end) = (view.0.max(start), view.1.min(end));
            let whole = (start, end) == view;
            if whole || end - start < least || view.1 - view.0 > longest {
                return;
            }
            let view_id = range.over[range.granule_of(at)].view;
            let lends = |view: &View| view.part.is_none() && !self.holds.at(view.address);
            if let Some(View { handle, kind, .. }) = self.view(view_id).filter(lends) {
                let bytes = end - start;
                let view = (view.0, view.1 - view.0);
                out.push(Remainder { start, bytes, kind, view, handle, since });
            }
        };
        let (first, last) = (range.view_over(start), range.view_over(end - 1));
        add(start, first);
        if first != last {
            add(end - 1, last);
        }
    }

    /// The mark after the last use of a span; `None` where something lives in it.
    pub(crate) fn free_since(&self, start: Address, bytes: Bytes, kind: ArenaKind) -> Option<u64> {
        self.free_block_over(start, bytes, kind).map(|id| self.blocks[id].since)
    }

    /// Lends a part of a view on which nothing lives; gives its block. `None` where something does,
    /// or where the view has been pinned since it was looked for remainders.
    pub(crate) fn lend(
        &mut self,
        start: Address,
        bytes: Bytes,
        kind: ArenaKind,
    ) -> Option<BlockId> {
        let over = self.free_block_over(start, bytes, kind)?;
        let range = self.ranges[self.blocks[over].range as usize].as_ref()?;
        if self.holds.at(range.view_over(start).0) {
            return None;
        }
        let id = self.cut_free(start, bytes, kind)?;
        self.blocks[id].state = State::Lent;
        self.blocks[id].requested = 0;
        Some(id)
    }

    /// Whether a block is lent.
    pub(crate) fn is_lent(&self, id: BlockId) -> bool {
        self.blocks.get(id).is_some_and(|block| block.state == State::Lent)
    }

    /// Ends that: the block is free memory again, whose last use comes before the next mark.
    pub(crate) fn take_back(&mut self, id: BlockId) {
        debug_assert_eq!(self.blocks[id].state, State::Lent);
        self.blocks[id].state = State::Free;
        self.blocks[id].since = self.marks;
        self.insert_free(self.blocks[id].arena, id);
    }

    /// Whether the view under a lent block would be idle, were nothing of it lent.
    pub(crate) fn is_idle_but_for_loans(&self, id: BlockId) -> bool {
        let block = &self.blocks[id];
        let Some(range) = &self.ranges[block.range as usize] else {
            return false;
        };
        let (from, to) = range.view_over(block.start);
        let mut before = id;
        while self.blocks[before].start > from {
            before = self.blocks[before].previous;
            if !matches!(self.blocks[before].state, State::Free | State::Lent) {
                return false;
            }
        }
        let mut after = id;
        while self.blocks[after].end() < to {
            after = self.blocks[after].next;
            if !matches!(self.blocks[after].state, State::Free | State::Lent) {
                return false;
            }
        }
        true
    }

    /// Makes `[address, address + bytes)`, which lies in one hole, a view of another heap's handle,
    /// of which the part `[from, to)` is free memory here.
    pub(crate) fn borrow(
        &mut self,
        (address, bytes): (Address, Bytes),
        handle: u32,
        (from, to): (Address, Address),
    ) -> Option<(ViewId, Vec<(Address, u32)>)> {
        debug_assert!(address <= from && from < to && to <= address + bytes);
        let kind = self.arena_of(address)?;
        let id = self.cut_hole(kind, address, bytes)?;
        let range = self.blocks[id].range;
        let part = Some((from, to));
        let view =
            self.views.insert(View { address, bytes, handle, active: true, kind, range, part });
        let memory = self.add_view((range, address, bytes), view, handle);
        self.blocks[id].state = State::Blocked;
        let mut middle = id;
        if address < from {
            middle = self.split(id, from - address);
        }
        if self.blocks[middle].end() > to {
            self.split(middle, to - from);
        }
        self.blocks[middle].state = State::Free;
        self.blocks[middle].since = self.marks;
        self.insert_free(kind, middle);
        Some((view, self.pages_of(memory)))
    }

    /// The mark after the last use of what was borrowed with a view; `None` while something lives
    /// there, or where it has to stay.
    pub(crate) fn unused_since(&self, view: ViewId) -> Option<u64> {
        let view = self.view(view).filter(|view| !self.holds.at(view.address))?;
        let (from, to) = view.part?;
        self.free_since(from, to - from, view.kind)
    }

    /// Gives back what was borrowed with a view, on which nothing lives: the view is dormant, as
    /// one whose handle is in use at another place. Gives its start and its bytes.
    pub(crate) fn repay(&mut self, view: ViewId) -> Option<(Address, Bytes)> {
        self.unused_since(view)?;
        let View { address, bytes, kind, range, handle, part, .. } = self.view(view)?;
        let (from, to) = part?;
        let mut id = self.cut_free(from, to - from, kind)?;
        let Block { previous, next, .. } = self.blocks[id];
        if address < from {
            join(&mut self.blocks, previous, id);
            id = previous;
        }
        if to < address + bytes {
            join(&mut self.blocks, id, next);
        }
        let block = &mut self.blocks[id];
        debug_assert_eq!((block.start, block.bytes), (address, bytes));
        block.state = State::Dormant;
        block.view = view;
        self.remove_slots(range, address, bytes);
        self.views.set_active(view, false);
        self.views.set_part(view, None);
        let gap = GapBlock { end: address + bytes, bytes, block: id, handle };
        self.arenas[kind as usize].gaps.insert(gap);
        Some((address, bytes))
    }

    /// How much of what was borrowed with a view nobody uses at its start and at its end, in units
    /// that large requests come in, and the mark after the last use of that. `None` where that is
    /// nothing, or where the view has to stay as it is.
    pub(crate) fn free_ends(&self, view: ViewId) -> Option<((Bytes, Bytes), u64)> {
        let view = self.view(view).filter(|view| !self.holds.at(view.address))?;
        let (from, to) = view.part?;
        let free = |at: Address| self.block_over(at).filter(|block| block.state == State::Free);
        let (first, last) = (free(from), free(to - 1));
        let front = first.map_or(0, |block| align_down(block.end().min(to) - from, LARGE_UNIT));
        let back = last.map_or(0, |block| align_down(to - block.start.max(from), LARGE_UNIT));
        let since = [first, last].into_iter().flatten().map(|block| block.since).max()?;
        (front + back > 0 && front + back < to - from).then_some(((front, back), since))
    }

    /// Gives back so much at the start and at the end of what was borrowed with a view, where
    /// nothing lives; gives what was borrowed before.
    pub(crate) fn repay_ends(
        &mut self,
        view: ViewId,
        (front, back): (Bytes, Bytes),
    ) -> Option<(Address, Address)> {
        let View { address, bytes, kind, part, .. } = self.view(view)?;
        let (from, to) = part?;
        if front > 0 {
            let id = self.cut_free(from, front, kind)?;
            self.blocks[id].state = State::Blocked;
            if address < from {
                let previous = self.blocks[id].previous;
                join(&mut self.blocks, previous, id);
            }
            self.views.set_part(view, Some((from + front, to)));
        }
        if back > 0 {
            let id = self.cut_free(to - back, back, kind)?;
            self.blocks[id].state = State::Blocked;
            if to < address + bytes {
                let next = self.blocks[id].next;
                join(&mut self.blocks, id, next);
            }
            self.views.set_part(view, Some((from + front, to - back)));
        }
        part
    }

    /// Takes back so much at the start and at the end of a lent block: free memory whose last use
    /// comes before the next mark. Gives the block that is still lent.
    pub(crate) fn take_ends_back(
        &mut self,
        mut id: BlockId,
        (front, back): (Bytes, Bytes),
    ) -> BlockId {
        debug_assert_eq!(self.blocks[id].state, State::Lent);
        if back > 0 {
            let rest = self.split(id, self.blocks[id].bytes - back);
            self.take_back(rest);
        }
        if front > 0 {
            let rest = self.split(id, front);
            self.take_back(id);
            id = rest;
        }
        id
    }

    /// Where a hole of `bytes` begins, if there is one.
    pub(crate) fn hole_of(&self, bytes: Bytes, kind: ArenaKind) -> Option<Address> {
        self.arenas[kind as usize].gaps.first_hole(bytes).map(GapBlock::start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GRANULE, MIB};

    const BASE: Address = 64 * GRANULE;
    const OTHER: Address = 128 * GRANULE;
    const KIND: ArenaKind = ArenaKind::Large;

    /// A heap with a block of three and a half MiB on two handles of one page each.
    fn lender() -> Heap {
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 8 * GRANULE, 0, KIND);
        (0..2).for_each(|page| {
            heap.attach(BASE + page * GRANULE, GRANULE, page as u32).unwrap();
        });
        let bytes = 2 * GRANULE - MIB / 2;
        assert_eq!(heap.allocate(bytes, bytes), Some(BASE));
        heap
    }

    fn borrower() -> Heap {
        let mut heap = Heap::new(None);
        heap.add_range(OTHER, 8 * GRANULE, 0, KIND);
        heap
    }

    fn remainders(heap: &Heap) -> Vec<Remainder> {
        let mut found = Vec::new();
        heap.remainders(&ArenaKind::ALL, (4096, Bytes::MAX), &mut found);
        found
    }

    /// The bytes of all idle views.
    fn idle(heap: &Heap) -> Bytes {
        heap.idle_views().iter().map(|view| view.bytes).sum()
    }

    #[test]
    fn what_is_left_of_a_handle_is_a_remainder_and_whole_views_are_none() {
        let mut heap = lender();
        let part = remainders(&heap)[0];
        assert_eq!((part.start, part.bytes), (BASE + 2 * GRANULE - MIB / 2, MIB / 2));
        assert_eq!((part.view, part.edges()), ((BASE + GRANULE, GRANULE), (false, true)));
        heap.attach(BASE + 2 * GRANULE, GRANULE, 2).unwrap();
        assert_eq!(remainders(&heap), [part], "the view behind it is idle, not a remainder");
        heap.pin(BASE + GRANULE, 4096).unwrap();
        assert!(remainders(&heap).is_empty(), "what is pinned is not lent");
        assert_eq!(heap.lend(part.start, part.bytes, KIND), None, "found before it was pinned");
        heap.unpin(BASE + GRANULE, 4096);
        assert!(heap.lend(part.start, part.bytes, KIND).is_some());
    }

    #[test]
    fn a_loan_is_memory_of_the_borrower_alone_until_it_is_repaid() {
        let (mut from, mut to) = (lender(), borrower());
        let part = remainders(&from)[0];
        let block = from.lend(part.start, part.bytes, KIND).unwrap();
        assert_eq!(from.cached(), 0);
        let start = OTHER + (part.start - part.view.0);
        let span = (OTHER, GRANULE);
        let (view, slots) = to.borrow(span, part.handle, (start, OTHER + GRANULE)).unwrap();
        to.attach(OTHER + GRANULE, GRANULE, 7).unwrap();
        assert_eq!(to.cached(), GRANULE + MIB / 2);
        assert_eq!(idle(&to), GRANULE, "the borrowed view is never idle");
        assert!(remainders(&to).is_empty(), "what is borrowed is not lent on");
        for heap in [&from, &to] {
            heap.is_valid().unwrap();
        }
        let bytes = 2 * MIB + MIB / 2;
        assert_eq!(to.allocate(bytes, bytes), Some(start));
        assert_eq!((to.unused_since(view), to.repay(view)), (None, None));
        assert!(to.free(slots[0].1, start));
        to.flush_quick();
        assert_eq!(to.repay(view), Some(span));
        assert!(!from.is_idle_but_for_loans(block), "a block lives on the lender's handle");
        from.take_back(block);
        assert_eq!((from.cached(), to.cached()), (MIB / 2, GRANULE));
        for heap in [&from, &to] {
            heap.is_valid().unwrap();
        }
    }

    #[test]
    fn free_ends_of_a_loan_go_back_while_its_middle_is_in_use() {
        let (mut from, mut to) = (lender(), Heap::new(None));
        to.add_range(OTHER, 4 * GRANULE, 0, ArenaKind::Small);
        let part = remainders(&from)[0];
        let block = from.lend(part.start, part.bytes, KIND).unwrap();
        let start = OTHER + (part.start - part.view.0);
        let (view, slots) =
            to.borrow((OTHER, GRANULE), part.handle, (start, OTHER + GRANULE)).unwrap();
        let blocks = [(0, 8), (8, 16), (24, 4)].map(|(at, kib): (u64, u64)| {
            to.allocate_at(start + (at << 10), kib << 10, kib << 10, ArenaKind::Small).unwrap()
        });
        assert_eq!(to.free_ends(view).unwrap().0, (0, part.bytes - (28 << 10)));
        assert!(to.free(slots[0].1, blocks[0]) && to.free(slots[0].1, blocks[2]));
        to.flush_quick();
        let (ends, _) = to.free_ends(view).unwrap();
        assert_eq!(ends, (8 << 10, part.bytes - (24 << 10)));
        assert_eq!(to.repay_ends(view, ends), Some((start, OTHER + GRANULE)));
        let block = from.take_ends_back(block, ends);
        assert_eq!(from.cached(), part.bytes - (16 << 10));
        assert_eq!((to.cached(), to.free_ends(view)), (0, None));
        assert_eq!(from.block(block).start, part.start + ends.0);
        for heap in [&from, &to] {
            heap.is_valid().unwrap();
        }
        assert!(to.free(slots[0].1, blocks[1]));
        to.flush_quick();
        assert_eq!(to.repay(view), Some((OTHER, GRANULE)));
        from.take_back(block);
        assert_eq!((from.cached(), to.cached()), (part.bytes, 0));
        for heap in [&from, &to] {
            heap.is_valid().unwrap();
        }
    }

    #[test]
    fn the_lenders_handle_stays_while_it_is_lent() {
        let mut heap = lender();
        let part = remainders(&heap)[0];
        let block = heap.lend(part.start, part.bytes, KIND).unwrap();
        let slot = heap.page_slots().find(|&(address, _)| address == BASE).unwrap().1;
        assert!(heap.free(slot, BASE));
        heap.flush_quick();
        assert_eq!(idle(&heap), GRANULE, "the first handle alone");
        assert!(heap.is_idle_but_for_loans(block));
        let (from, to) = (BASE + GRANULE, BASE + 2 * GRANULE);
        assert!(!heap.detach(1) && heap.cede(KIND, from, to).is_none());
        heap.take_back(block);
        assert_eq!(idle(&heap), 2 * GRANULE);
        heap.is_valid().unwrap();
    }

    #[test]
    fn a_pinned_view_is_not_repaid() {
        let mut heap = borrower();
        let (view, _) = heap.borrow((OTHER, GRANULE), 3, (OTHER, OTHER + MIB)).unwrap();
        heap.pin(OTHER, MIB).unwrap();
        assert_eq!(heap.repay(view), None);
        heap.unpin(OTHER, MIB);
        assert_eq!(heap.repay(view), Some((OTHER, GRANULE)));
        heap.drop_dormant(view);
        assert!(heap.has_hole(8 * GRANULE, KIND));
        heap.is_valid().unwrap();
    }
}
