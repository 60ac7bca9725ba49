//! Ranges, and the memory behind them: views come and go, and blocks change with them.

use super::block::{Block, BlockId, NONE, State};
use super::size::{ArenaKind, LARGE_CLASS};
use super::slots::NO_SLOT;
use super::{Heap, join};
use crate::units::{Address, Bytes, GRANULE};

/// The number of a view in its heap.
pub(crate) type ViewId = u32;

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
    /// The view over each granule that has a slot, as the bytes from the base to its start and to
    /// its end; of a segment, which is no view, beyond both ends of it.
    pub(crate) spans: Vec<(Bytes, Bytes)>,
}

impl Range {
    pub(crate) fn contains(&self, address: Address) -> bool {
        address >= self.base && address - self.base < self.bytes
    }

    /// The start and the end of the view over an address that has memory; not for segments.
    #[inline(always)]
    pub(super) fn view_over(&self, address: Address) -> (Address, Address) {
        let (start, end) = self.spans[((address - self.base) / GRANULE) as usize];
        (self.base + start, self.base + end)
    }
}

/// One handle of physical memory at one place.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
    /// The number of the handle in the device's store.
    pub(crate) handle: u32,
    pub(crate) active: bool,
    pub(crate) kind: ArenaKind,
    pub(crate) range: u32,
}

impl View {
    pub(crate) fn end(&self) -> Address {
        self.address + self.bytes
    }
}

/// An active view on which nothing lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleView {
    pub(crate) view: ViewId,
    pub(crate) handle: u32,
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
    pub(crate) kind: ArenaKind,
    /// The free block that it lies in.
    pub(crate) block: (Address, Bytes),
    /// The mark after its last use.
    pub(crate) since: u64,
}

impl Heap {
    /// Adds a range without memory. The last `tail` bytes of it are left alone until a request would
    /// fail without them: it may begin in memory at the end of the rest.
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
        self.arenas[kind as usize].gaps.insert(base, id);
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
        let slots = self.add_slots(self.blocks[id].range, base, bytes, kind, NO_SLOT);
        self.index(id);
        slots
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
        let first = self.blocks.insert(fresh(base, bytes, kind, number as u32, state));
        let (segment, borrowed) = (state == State::Free, state == State::Ceded);
        let (slots, spans) = (Vec::new(), Vec::new());
        let tail = base + bytes;
        let range = Range { base, bytes, kind, segment, borrowed, tail, first, slots, spans };
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
            self.vacate_slot(slot);
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
        self.arenas[kind as usize].gaps.values().any(|&id| {
            let block = &self.blocks[id];
            block.state == State::Hole && block.bytes >= bytes
        })
    }

    /// Every granule of memory with its page slot.
    pub(crate) fn page_slots(&self) -> impl Iterator<Item = (Address, u32)> + '_ {
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| slot.base != Address::MAX);
        slots.map(|(number, slot)| (slot.base, number as u32))
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

    /// Makes `[address, address + bytes)`, which lies in one hole, free memory on a new active
    /// view.
    pub(crate) fn attach(
        &mut self,
        address: Address,
        bytes: Bytes,
        handle: u32,
    ) -> Option<(ViewId, Vec<(Address, u32)>)> {
        let kind = self.arena_of(address)?;
        let id = self.cut_hole(kind, address, bytes)?;
        self.arenas[kind as usize].gaps.remove(&address);
        Some(self.back(id, handle))
    }

    /// Makes a block without memory, which is in no index, free memory on a new active view.
    pub(super) fn back(&mut self, id: BlockId, handle: u32) -> (ViewId, Vec<(Address, u32)>) {
        let Block { start: address, bytes, arena: kind, range, .. } = self.blocks[id];
        let view = View { address, bytes, handle, active: true, kind, range };
        let view = self.insert_view(view);
        self.blocks[id].state = State::Free;
        self.blocks[id].since = self.marks;
        let slots = self.add_slots(range, address, bytes, kind, view);
        self.insert_free(id);
        (view, slots)
    }

    pub(super) fn arena_of(&self, address: Address) -> Option<ArenaKind> {
        self.ranges.iter().flatten().find(|range| range.contains(address)).map(|range| range.kind)
    }

    /// Cuts the hole over the span so that one block is exactly the span.
    pub(super) fn cut_hole(
        &mut self,
        kind: ArenaKind,
        address: Address,
        bytes: Bytes,
    ) -> Option<BlockId> {
        let gaps = &self.arenas[kind as usize].gaps;
        let (_, &hole) = gaps.range(..=address).next_back()?;
        let block = &self.blocks[hole];
        if block.state != State::Hole || address + bytes > block.end() {
            return None;
        }
        let mut id = hole;
        if self.blocks[id].start < address {
            let front = address - self.blocks[id].start;
            id = self.split(id, front);
            self.arenas[kind as usize].gaps.insert(address, id);
        }
        if self.blocks[id].bytes > bytes {
            let rest = self.split(id, bytes);
            self.arenas[kind as usize].gaps.insert(address + bytes, rest);
        }
        Some(id)
    }

    /// Makes a view dormant on which nothing lives: its handle moves elsewhere. False where it has
    /// to stay.
    pub(crate) fn detach(&mut self, view: ViewId) -> bool {
        self.view(view).is_some_and(|view| !self.holds.at(view.address)) && self.make_dormant(view)
    }

    /// The same, whether it has to stay or not.
    pub(crate) fn make_dormant(&mut self, view: ViewId) -> bool {
        let Some(middle) = self.isolate(view) else {
            return false;
        };
        self.moves += 1;
        let block = &mut self.blocks[middle];
        block.state = State::Dormant;
        block.view = view;
        let (address, bytes, kind, range) = (block.start, block.bytes, block.arena, block.range);
        self.arenas[kind as usize].gaps.insert(address, middle);
        self.remove_slots(range, address, bytes);
        if let Some(view) = &mut self.views[view as usize] {
            view.active = false;
        }
        true
    }

    /// The mark after the last use of a view on which nothing lives; `None` where something does.
    pub(crate) fn idle_since(&self, view: ViewId) -> Option<u64> {
        let View { address, bytes, kind, .. } = self.view(view)?;
        self.free_block_over(*address, *bytes, *kind).map(|id| self.blocks[id].since)
    }

    /// Cuts the free block over an idle view so that one block, in no index, is exactly the view.
    pub(super) fn isolate(&mut self, view: ViewId) -> Option<BlockId> {
        let View { address, bytes, kind, .. } = self.view(view)?.clone();
        let id = self.free_block_over(address, bytes, kind)?;
        self.arenas[kind as usize].free.remove(&mut self.blocks, id);
        let mut middle = id;
        if self.blocks[id].start < address {
            let front = address - self.blocks[id].start;
            middle = self.split(id, front);
            self.index(id);
        }
        if self.blocks[middle].bytes > bytes {
            let back = self.split(middle, bytes);
            self.index(back);
        }
        self.note_low(kind);
        Some(middle)
    }

    /// Makes a dormant view active again: its addresses are free memory. Gives the new page slots.
    pub(crate) fn reactivate(&mut self, view: ViewId) -> Option<Vec<(Address, u32)>> {
        let View { address, bytes, kind, range, .. } = self.view(view)?.clone();
        let id = self.arenas[kind as usize].gaps.remove(&address)?;
        debug_assert_eq!(self.blocks[id].state, State::Dormant);
        self.blocks[id].state = State::Free;
        self.blocks[id].since = self.marks;
        if let Some(view) = &mut self.views[view as usize] {
            view.active = true;
        }
        let slots = self.add_slots(range, address, bytes, kind, view);
        self.insert_free(id);
        Some(slots)
    }

    /// Forgets a dormant view that is no longer mapped: its addresses are a hole again.
    pub(crate) fn drop_dormant(&mut self, view: ViewId) {
        let Some(View { address, kind, .. }) = self.view(view).cloned() else {
            return;
        };
        let Some(&id) = self.arenas[kind as usize].gaps.get(&address) else {
            return;
        };
        debug_assert_eq!(self.blocks[id].state, State::Dormant);
        self.views[view as usize] = None;
        self.vacant_views.push(view);
        self.blocks[id].state = State::Hole;
        self.join_holes(kind, id);
    }

    pub(super) fn join_holes(&mut self, kind: ArenaKind, mut id: BlockId) {
        let previous = self.blocks[id].previous;
        if previous != NONE && self.blocks[previous].state == State::Hole {
            let start = self.blocks[id].start;
            self.arenas[kind as usize].gaps.remove(&start);
            join(&mut self.blocks, previous, id);
            id = previous;
        }
        let next = self.blocks[id].next;
        if next != NONE && self.blocks[next].state == State::Hole {
            let start = self.blocks[next].start;
            self.arenas[kind as usize].gaps.remove(&start);
            join(&mut self.blocks, id, next);
        }
    }

    /// A view, where there is one of that number.
    pub(crate) fn view(&self, view: ViewId) -> Option<&View> {
        self.views.get(view as usize)?.as_ref()
    }

    /// Every view.
    pub(crate) fn views(&self) -> impl Iterator<Item = (ViewId, &View)> + '_ {
        let views = self.views.iter().enumerate();
        views.filter_map(|(id, view)| view.as_ref().map(|view| (id as ViewId, view)))
    }

    fn insert_view(&mut self, view: View) -> ViewId {
        if let Some(id) = self.vacant_views.pop() {
            self.views[id as usize] = Some(view);
            return id;
        }
        self.views.push(Some(view));
        (self.views.len() - 1) as ViewId
    }
}

fn fresh(start: Address, bytes: Bytes, kind: ArenaKind, range: u32, state: State) -> Block {
    Block {
        start,
        bytes,
        requested: 0,
        previous: NONE,
        next: NONE,
        bin_previous: NONE,
        bin_next: NONE,
        since: 0,
        range,
        view: NO_SLOT,
        state,
        arena: kind,
        class: LARGE_CLASS,
    }
}
