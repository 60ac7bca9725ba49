//! Memory that passes from heap to heap where it is: the addresses stay, and with them what is
//! mapped there, so that no call to the driver is needed.

use super::block::{Block, BlockId, NONE, State};
use super::layout::Backed;
use super::{ArenaKind, Heap, join};
use crate::units::{Address, Bytes, GRANULE, align_down, align_up};

/// Views side by side, or a hole, on the way to another heap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ceded {
    /// The range in which it lies: base and bytes.
    range: (Address, Bytes),
    kind: ArenaKind,
    address: Address,
    bytes: Bytes,
    /// The handles there, with their bytes; none for a hole.
    pub(crate) handles: Vec<(u32, Bytes)>,
}

impl Heap {
    /// Hands over a span of whole views on which nothing lives: its addresses are another heap's
    /// from now on. `None` where something lives there, or where a view has to stay.
    pub(crate) fn cede(&mut self, kind: ArenaKind, start: Address, end: Address) -> Option<Ceded> {
        let free = self.free_block_over(start, end - start, kind)?;
        let number = self.blocks[free].range;
        let range = self.ranges[number as usize].as_ref()?;
        let mut reach = start;
        let mut handles = Vec::with_capacity(((end - start) / GRANULE) as usize);
        for view in range.views(start, end) {
            let (from, to) = range.span_of(view);
            if from != reach || self.holds.at(from) {
                return None;
            }
            handles.push((view.handle, to - from));
            reach = to;
        }
        if reach != end {
            return None;
        }
        let id = self.cut_block(free, (start, end - start), kind, false);
        self.remove_slots(number, start, end - start);
        let range = self.ranges[number as usize].as_ref()?;
        range.views(start, end).for_each(|view| self.views.remove(view.view));
        self.give_away(id, handles)
    }

    /// Hands over what of a span is one hole, whose first or last granule the hole must hold.
    pub(crate) fn cede_hole(
        &mut self,
        kind: ArenaKind,
        (from, to): (Address, Address),
        at_end: bool,
    ) -> Option<Ceded> {
        let within = if at_end { to - GRANULE } else { from };
        self.continue_range(kind, within, to);
        let block = &self.blocks[self.gap_over(kind, within)?];
        if block.state != State::Hole {
            return None;
        }
        let (from, to) = (from.max(block.start), to.min(block.end()));
        let id = self.cut_hole(kind, from, to - from)?;
        self.give_away(id, Vec::new())
    }

    /// Where an address lies in the tail of a range of this heap: makes a hole of the tail up to
    /// `to`. True where there is one more hole.
    pub(crate) fn continue_range(&mut self, kind: ArenaKind, within: Address, to: Address) -> bool {
        let own = self.ranges.iter_mut().flatten().filter(|range| !range.borrowed);
        let mut over = own.filter(|range| range.tail <= within && range.contains(within));
        let Some(range) = over.next() else {
            return false;
        };
        let from = std::mem::replace(&mut range.tail, to);
        let Some(id) = self.cut_ceded(kind, from, to - from) else {
            return false;
        };
        self.make_hole(kind, id);
        true
    }

    /// The bytes of the hole that begins at an address, or ends there; 0 where there is none.
    pub(crate) fn hole_beside(&self, kind: ArenaKind, at: Address, before: bool) -> Bytes {
        let within = if before { at - GRANULE } else { at };
        let hole = self.gap_over(kind, within).map(|id| &self.blocks[id]);
        let touches = |block: &&Block| at == if before { block.end() } else { block.start };
        hole.filter(|block| block.state == State::Hole).filter(touches).map_or(0, |hole| hole.bytes)
    }

    /// Makes a block that is in no index another heap's.
    fn give_away(&mut self, id: BlockId, handles: Vec<(u32, Bytes)>) -> Option<Ceded> {
        let block = &mut self.blocks[id];
        block.state = State::Ceded;
        let (address, bytes, kind, range) = (block.start, block.bytes, block.arena, block.range);
        self.insert_ceded(kind, id);
        let range = self.ranges[range as usize].as_ref()?;
        Some(Ceded { range: (range.base, range.bytes), kind, address, bytes, handles })
    }

    /// Takes over what another heap ceded: the addresses of views are free memory of this heap, a
    /// hole is a hole of it. Gives the new memory.
    pub(crate) fn adopt(&mut self, ceded: &Ceded) -> Option<Backed> {
        let &Ceded { range, kind, address, bytes, ref handles } = ceded;
        if self.arena_of(address).is_none() {
            let id = self.new_range(range.0, range.1, kind, State::Ceded);
            self.arenas[kind as usize].ceded.insert(range.0, id);
        }
        let id = self.cut_ceded(kind, address, bytes)?;
        if handles.is_empty() {
            self.make_hole(kind, id);
            return None;
        }
        Some(self.back(id, handles))
    }

    /// Makes a block that is in no index a hole.
    fn make_hole(&mut self, kind: ArenaKind, id: BlockId) {
        self.blocks[id].state = State::Hole;
        self.insert_hole(kind, id);
    }

    /// Cuts the ceded block over the span so that one block, in no index, is exactly the span.
    fn cut_ceded(&mut self, kind: ArenaKind, address: Address, bytes: Bytes) -> Option<BlockId> {
        let over = self.arenas[kind as usize].ceded.last_before(address + 1)?;
        let block = &self.blocks[over];
        if address + bytes > block.end() {
            return None;
        }
        let mut id = over;
        if block.start < address {
            id = self.split(id, address - block.start);
        } else {
            self.arenas[kind as usize].ceded.remove(address);
        }
        if self.blocks[id].bytes > bytes {
            let rest = self.split(id, bytes);
            self.arenas[kind as usize].ceded.insert(address + bytes, rest);
        }
        Some(id)
    }

    /// Indexes a ceded block, joined with those beside it.
    fn insert_ceded(&mut self, kind: ArenaKind, id: BlockId) {
        let Block { start, previous, next, .. } = self.blocks[id];
        let ceded = &mut self.arenas[kind as usize].ceded;
        if next != NONE && self.blocks[next].state == State::Ceded {
            ceded.remove(self.blocks[next].start);
            join(&mut self.blocks, id, next);
        }
        if previous != NONE && self.blocks[previous].state == State::Ceded {
            join(&mut self.blocks, previous, id);
        } else {
            ceded.insert(start, id);
        }
    }

    /// Where a request of `reach` bytes that begins or ends in a free block runs into what is
    /// another heap's: the span that it would need there, and whether it comes to it from the end.
    pub(crate) fn in_the_way(
        &self,
        kind: ArenaKind,
        reach: Bytes,
    ) -> Vec<((Address, Address), bool)> {
        let arena = &self.arenas[kind as usize];
        let mut found = Vec::new();
        for (id, _) in arena.free.at_least(&self.blocks, 1) {
            let (from, to) = (self.blocks[id].start, self.blocks[id].end());
            if let Some(ceded) = self.next_ceded(id, |block| block.next) {
                let end = align_up(from + reach, GRANULE).min(ceded.end());
                found.push(((ceded.start, end), false));
            }
            if let Some(ceded) = self.next_ceded(id, |block| block.previous) {
                let start = align_down(to.saturating_sub(reach), GRANULE).max(ceded.start);
                found.push(((start, ceded.end()), true));
            }
        }
        found.retain(|((from, to), _)| from < to);
        found
    }

    /// The first ceded block on the way from a free one over free blocks and holes.
    fn next_ceded(&self, from: BlockId, step: impl Fn(&Block) -> BlockId) -> Option<&Block> {
        let mut id = step(&self.blocks[from]);
        while id != NONE {
            let block = &self.blocks[id];
            match block.state {
                State::Ceded => return Some(block),
                State::Free | State::Hole => id = step(block),
                _ => return None,
            }
        }
        None
    }

    /// Bytes of the free block that ends at `from`, where another heap's memory begins.
    pub(crate) fn free_before(&self, kind: ArenaKind, from: Address) -> Bytes {
        let ceded = self.arenas[kind as usize].ceded.get(from);
        ceded.map_or(0, |id| self.free_bytes(self.blocks[id].previous))
    }

    /// Bytes of the free block that begins at `to`, where another heap's memory ends.
    pub(crate) fn free_after(&self, kind: ArenaKind, to: Address) -> Bytes {
        let last = self.arenas[kind as usize].ceded.last_before(to);
        let last = last.map(|id| &self.blocks[id]).filter(|block| block.end() == to);
        last.map_or(0, |block| self.free_bytes(block.next))
    }

    /// Bytes of a block that is free; 0 of any other, or of none.
    pub(super) fn free_bytes(&self, id: BlockId) -> Bytes {
        match id {
            NONE => 0,
            id if self.blocks[id].state == State::Free => self.blocks[id].bytes,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{IdleList, PlanRules};
    use super::*;
    use crate::units::MIB;

    const BASE: Address = 64 * GRANULE;
    const KIND: ArenaKind = ArenaKind::Large;

    /// A heap whose range of four pages and a tail of as many is memory up to the tail, all but the
    /// last half page of which is in use.
    fn full_up_to_the_tail() -> Heap {
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 8 * GRANULE, 4 * GRANULE, KIND);
        (0..4).for_each(|page| {
            heap.attach(BASE + page * GRANULE, GRANULE, page as u32).unwrap();
        });
        let bytes = 4 * GRANULE - MIB;
        assert_eq!(heap.allocate(bytes, bytes), Some(BASE));
        heap
    }

    fn plans(heap: &Heap, bytes: Bytes) -> bool {
        let idle = IdleList::default();
        let (supply, piece_bytes) = (2 * GRANULE, MIB);
        let (idle, usable) = (idle.all(), &[]);
        let leaves_room = false;
        let rules = PlanRules { supply, excess_max: 0, idle, usable, piece_bytes, leaves_room };
        heap.plan(bytes, KIND, &rules).is_some_and(|plan| plan.start == BASE + 4 * GRANULE - MIB)
    }

    #[test]
    fn a_request_goes_on_in_the_tail_of_a_range_once_that_is_opened() {
        let mut heap = full_up_to_the_tail();
        let bytes = 2 * GRANULE + MIB;
        assert!(!plans(&heap, bytes), "the tail is left alone");
        let in_the_way = heap.in_the_way(KIND, bytes);
        let (from, to) = (BASE + 4 * GRANULE, BASE + 6 * GRANULE);
        assert_eq!(in_the_way, [((from, to), false)]);
        assert!(heap.continue_range(KIND, from, to));
        assert!(!heap.continue_range(KIND, from, to), "it is opened once");
        assert!(plans(&heap, bytes));
        assert!(!plans(&heap, bytes + GRANULE), "no further than was needed");
        heap.is_valid().unwrap();
    }

    #[test]
    fn room_is_left_in_a_long_hole_and_none_in_a_short_one() {
        let idle = IdleList::default();
        let start = |hole: Bytes, bytes: Bytes, leaves_room: bool| {
            let mut heap = Heap::new(None);
            heap.add_range(BASE, hole, 0, KIND);
            let (supply, piece_bytes) = (hole, MIB);
            let (idle, usable) = (idle.all(), &[]);
            let rules = PlanRules { supply, excess_max: 0, idle, usable, piece_bytes, leaves_room };
            heap.plan(bytes, KIND, &rules).unwrap().start - BASE
        };
        assert_eq!(start(32 * GRANULE, GRANULE + MIB, true), 2 * GRANULE);
        assert_eq!(start(32 * GRANULE, GRANULE + MIB, false), 0);
        assert_eq!(start(31 * GRANULE, GRANULE + MIB, true), 0);
    }

    #[test]
    fn a_hole_is_found_where_it_begins_and_where_it_ends() {
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 8 * GRANULE, 0, KIND);
        for page in [0, 4] {
            heap.attach(BASE + page * GRANULE, GRANULE, page as u32).unwrap();
        }
        let beside = |page: Bytes| {
            [false, true].map(|before| heap.hole_beside(KIND, BASE + page * GRANULE, before))
        };
        assert_eq!(beside(1), [3 * GRANULE, 0]);
        assert_eq!(beside(2), [0, 0]);
        assert_eq!(beside(4), [0, 3 * GRANULE]);
        assert_eq!(beside(5), [3 * GRANULE, 0]);
        assert_eq!(heap.hole_beside(KIND, BASE + 8 * GRANULE, true), 3 * GRANULE);
        assert_eq!(heap.hole_beside(ArenaKind::Small, BASE + GRANULE, false), 0);
    }

    #[test]
    fn the_tail_of_a_range_passes_to_other_heaps() {
        let mut heap = full_up_to_the_tail();
        let (from, to) = (BASE + 4 * GRANULE, BASE + 5 * GRANULE);
        let ceded = heap.cede_hole(KIND, (from, to), false).unwrap();
        let mut other = Heap::new(None);
        assert!(other.adopt(&ceded).is_none(), "a hole has no view");
        assert!(other.has_hole(GRANULE, KIND) && !other.has_hole(2 * GRANULE, KIND));
        heap.is_valid().unwrap();
        other.is_valid().unwrap();
    }
}
