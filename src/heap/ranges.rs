//! Ranges of addresses: those that a heap reserves, and whole segments of the device.

use super::Heap;
use super::block::{Block, BlockId, NONE, State};
use super::gaps::GapBlock;
use super::layout::Backed;
use super::size::ArenaKind;
use super::slots::NO_SLOT;
use super::views::ViewId;
use crate::units::{Address, Bytes, GRANULE, make_room};

/// A contiguous range of addresses.
#[derive(Debug)]
pub(crate) struct Range {
    pub(crate) base: Address,
    pub(crate) bytes: Bytes,
    pub(crate) kind: ArenaKind,
    /// Whether it is one segment of the device, all of it memory, and given back whole.
    pub(crate) segment: bool,
    /// Whether another heap reserved it; this one uses parts of it.
    pub(crate) borrowed: bool,
    /// From here on it is nobody's yet, and ceded for this heap and all others.
    pub(crate) tail: Address,
    /// The block at its base.
    pub(crate) first: BlockId,
    /// The page slot of each granule, as far as any has had memory.
    pub(crate) slots: Vec<u32>,
    /// The view over each granule that has a slot.
    pub(crate) over: Vec<ViewOver>,
}

/// A view, as the granules from the base of its range to its start and to its end, and its handle:
/// all that is asked of it for each request or idle view, without a look at other tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViewOver {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) view: ViewId,
    pub(crate) handle: u32,
}

impl ViewOver {
    /// Of a segment, which is no view: beyond both ends of it.
    pub(super) const SEGMENT: ViewOver =
        ViewOver { start: 0, end: u32::MAX, view: NO_SLOT, handle: NO_SLOT };
}

impl Range {
    pub(crate) fn contains(&self, address: Address) -> bool {
        address >= self.base && address - self.base < self.bytes
    }

    /// How many granules an address has before it.
    #[inline(always)]
    pub(super) fn granule_of(&self, address: Address) -> usize {
        ((address - self.base) / GRANULE) as usize
    }

    /// The start and the end of the view over an address that has memory; not for segments.
    #[inline(always)]
    pub(super) fn view_over(&self, address: Address) -> (Address, Address) {
        let over = &self.over[((address - self.base) / GRANULE) as usize];
        let at = |granules: u32| self.base + u64::from(granules) * GRANULE;
        (at(over.start), at(over.end))
    }

    /// The views over a span, all of which is memory, by address.
    pub(super) fn views(
        &self,
        start: Address,
        end: Address,
    ) -> impl Iterator<Item = ViewOver> + use<'_> {
        let (mut at, last) = (self.granule_of(start), self.granule_of(end));
        let over = self.over.get(..last).unwrap_or(&[]);
        std::iter::from_fn(move || {
            let &view = over.get(at)?;
            at = view.end as usize;
            Some(view)
        })
    }

    /// Makes the tables of its granules reach so far.
    pub(super) fn reach(&mut self, granules: usize) {
        if self.slots.len() < granules {
            let more = granules - self.slots.len();
            make_room(&mut self.slots, more);
            make_room(&mut self.over, more);
            self.slots.resize(granules, NO_SLOT);
            self.over.resize(granules, ViewOver::SEGMENT);
        }
    }

    /// Notes a view over the granules from one to another.
    #[inline]
    pub(super) fn note_view(&mut self, (from, to): (usize, usize), view: ViewId, handle: u32) {
        let over = ViewOver { start: from as u32, end: to as u32, view, handle };
        self.over[from..to].iter_mut().for_each(|noted| *noted = over);
    }

    /// Where a view starts and ends.
    pub(super) fn span_of(&self, view: ViewOver) -> (Address, Address) {
        let at = |granules: u32| self.base + u64::from(granules) * GRANULE;
        (at(view.start), at(view.end))
    }
}

impl Heap {
    /// Adds a range without memory. The last `tail` bytes of it are left alone until a request
    /// would fail without them: it may begin in memory at the end of the rest.
    pub(crate) fn add_range(&mut self, base: Address, bytes: Bytes, tail: Bytes, kind: ArenaKind) {
        let id = self.new_range(base, bytes, kind, State::Hole);
        if tail > 0 {
            let start = base + bytes - tail;
            let rest = self.split(id, bytes - tail);
            self.blocks[rest].state = State::Ceded;
            self.arenas[kind as usize].ceded.insert(start, rest);
            if let Some(range) = &mut self.ranges[self.blocks[id].range as usize] {
                range.tail = start;
            }
        }
        let bytes = bytes - tail;
        self.arenas[kind as usize].gaps.insert(GapBlock::hole(base + bytes, bytes, id));
    }

    /// Bytes of all addresses that were reserved for one kind of request.
    pub(crate) fn reserved(&self, kind: ArenaKind) -> Bytes {
        let own = self.ranges.iter().flatten();
        let own = own.filter(|range| range.kind == kind && !range.borrowed && !range.segment);
        own.map(|range| range.bytes).sum()
    }

    /// Adds a range that is memory throughout, and gives the page slot of each of its granules.
    pub(crate) fn add_segment(
        &mut self,
        base: Address,
        bytes: Bytes,
        kind: ArenaKind,
    ) -> Vec<(Address, u32)> {
        let id = self.new_range(base, bytes, kind, State::Free);
        let range = self.blocks[id].range;
        self.add_slots(range, base, bytes);
        self.index(id);
        self.pages_of(Backed { range, start: base, bytes })
    }

    /// Adds a range that is one block: a hole, a free segment, or all of it another heap's.
    pub(super) fn new_range(
        &mut self,
        base: Address,
        bytes: Bytes,
        kind: ArenaKind,
        state: State,
    ) -> BlockId {
        debug_assert!(base.is_multiple_of(GRANULE) && bytes.is_multiple_of(GRANULE));
        let vacant = self.ranges.iter().position(Option::is_none);
        let number = vacant.unwrap_or(self.ranges.len());
        let block = Block { start: base, bytes, state, ..Block::of(kind, number as u32) };
        let first = self.blocks.insert(block);
        let (segment, borrowed) = (state == State::Free, state == State::Ceded);
        let (slots, over) = (Vec::new(), Vec::new());
        let tail = base + bytes;
        let range = Range { base, bytes, kind, segment, borrowed, tail, first, slots, over };
        match vacant {
            Some(number) => self.ranges[number] = Some(range),
            None => self.ranges.push(Some(range)),
        }
        first
    }

    /// Every segment that is one free block and may go: base and bytes.
    pub(crate) fn free_segments(&self) -> Vec<(Address, Bytes, ArenaKind)> {
        let ranges = self.ranges.iter().flatten().filter(|range| range.segment);
        ranges
            .filter(|range| {
                let first = &self.blocks[range.first];
                let unused = first.state == State::Free && first.bytes == range.bytes;
                unused && !self.holds.at(range.base)
            })
            .map(|range| (range.base, range.bytes, range.kind))
            .collect()
    }

    /// Forgets a segment that is one free block; its granules have no slots any more.
    pub(crate) fn remove_segment(&mut self, base: Address) {
        let found = self.ranges.iter().position(|range| {
            range.as_ref().is_some_and(|range| range.segment && range.base == base)
        });
        let Some(index) = found else { return };
        let Some(range) = self.ranges[index].take() else {
            return;
        };
        debug_assert_eq!(self.blocks[range.first].state, State::Free);
        self.arenas[range.kind as usize].free.remove(&mut self.blocks, range.first);
        self.blocks.remove(range.first);
        for slot in range.slots {
            self.vacate_slot(slot, range.kind);
        }
    }

    /// The contiguous memory around an address: its start and its bytes.
    pub(crate) fn memory_around(&self, address: Address) -> Option<(Address, Bytes)> {
        let mut first = self.block_over(address)?;
        let is_memory = |block: &Block| !matches!(block.state, State::Hole | State::Dormant);
        if !is_memory(first) {
            return None;
        }
        let mut last = first;
        while first.previous != NONE && is_memory(&self.blocks[first.previous]) {
            first = &self.blocks[first.previous];
        }
        while last.next != NONE && is_memory(&self.blocks[last.next]) {
            last = &self.blocks[last.next];
        }
        Some((first.start, last.end() - first.start))
    }

    /// Whether there is a hole in which a request of `bytes` would fit.
    pub(crate) fn has_hole(&self, bytes: Bytes, kind: ArenaKind) -> bool {
        self.arenas[kind as usize].gaps.first_hole(bytes).is_some()
    }

    /// Every granule of memory with its page slot, as the page map has it.
    pub(crate) fn page_slots(&self) -> impl Iterator<Item = (Address, u32)> + '_ {
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| slot.base != Address::MAX);
        slots.map(|(number, slot)| (slot.base, slot.published(number as u32)))
    }

    /// Calls `found` with each block of a divided segment on which nothing lives.
    pub(crate) fn unused_pieces(&self, mut found: impl FnMut(ArenaKind, Bytes)) {
        for range in self.ranges.iter().flatten().filter(|range| range.segment) {
            let mut id = range.first;
            while id != NONE {
                let block = &self.blocks[id];
                let unused = matches!(block.state, State::Free | State::Quick);
                if unused && block.bytes < range.bytes {
                    found(range.kind, block.bytes);
                }
                id = block.next;
            }
        }
    }

    /// Bytes of all segments.
    pub(crate) fn segment_bytes(&self) -> Bytes {
        let ranges = self.ranges.iter().flatten().filter(|range| range.segment);
        ranges.map(|range| range.bytes).sum()
    }

    /// Bases and sizes of the ranges without segments, for giving the addresses back.
    pub(crate) fn virtual_ranges(&self) -> impl Iterator<Item = (Address, Bytes)> + '_ {
        let own = |range: &&Range| !range.segment && !range.borrowed;
        self.ranges.iter().flatten().filter(own).map(|range| (range.base, range.bytes))
    }
}
