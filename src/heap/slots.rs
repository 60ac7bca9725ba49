//! Page slots: for each granule of memory, where blocks start in it.

use super::Heap;
use super::layout::ViewId;
use super::ranges::ViewOver;
use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE};

/// No page slot, or no view.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// One granule of memory in use by the heap: where live blocks start in it.
#[derive(Debug)]
pub(crate) struct PageSlot {
    pub(crate) base: Address,
    pub(crate) unit_shift: u32,
    pub(crate) view: ViewId,
    /// For each unit, the live block that starts there, plus one; 0: none. Empty until one does.
    pub(crate) starts: Box<[u32]>,
}

impl Heap {
    /// Notes the block that starts at `start` (plus one), or that none does (0).
    #[inline]
    pub(super) fn set_start(&mut self, range: u32, start: Address, kind: ArenaKind, entry: u32) {
        let Some(range) = &self.ranges[range as usize] else {
            return;
        };
        let slot = range.slots[((start - range.base) / GRANULE) as usize];
        let offset = ((start & (GRANULE - 1)) >> kind.unit_shift()) as usize;
        match self.slots[slot as usize].starts.get_mut(offset) {
            Some(place) => *place = entry,
            None => self.begin_starts(slot, kind, offset, entry),
        }
    }

    /// The same of the first block that starts in a granule.
    #[cold]
    fn begin_starts(&mut self, slot: u32, kind: ArenaKind, offset: usize, entry: u32) {
        let page = &mut self.slots[slot as usize];
        let spare = self.spare_starts[kind as usize].pop();
        page.starts =
            spare.unwrap_or_else(|| vec![0; kind.starts_per_granule()].into_boxed_slice());
        debug_assert!(page.starts.iter().all(|&entry| entry == 0));
        page.starts[offset] = entry;
    }

    /// Gives every granule of views side by side, or of a segment, a page slot; adds them to
    /// `added`. Of each view it is told the number, the handle, and the bytes.
    pub(super) fn add_slots(
        &mut self,
        range: u32,
        (start, bytes): (Address, Bytes),
        kind: ArenaKind,
        views: impl Iterator<Item = (ViewId, u32, Bytes)>,
        added: &mut Vec<(Address, u32)>,
    ) {
        let Heap { ranges, slots, vacant_slots, spare_starts, .. } = self;
        let Some(range) = &mut ranges[range as usize] else {
            return;
        };
        let (mut from, last) = (range.granule_of(start), range.granule_of(start + bytes));
        if range.slots.len() < last {
            range.slots.resize(last, NO_SLOT);
            range.over.resize(last, ViewOver::SEGMENT);
        }
        let (mut base, unit_shift) = (start, kind.unit_shift());
        let spare = &mut spare_starts[kind as usize];
        for (view, handle, bytes) in views {
            let to = from + (bytes / GRANULE) as usize;
            let over = match view {
                NO_SLOT => ViewOver::SEGMENT,
                view => ViewOver { start: from as u32, end: to as u32, view, handle },
            };
            for (slot, noted) in range.slots[from..to].iter_mut().zip(&mut range.over[from..to]) {
                // Most granules are the inside of a large block, and need no table; but where there
                // is one to spare, it goes with the memory to whoever has that next.
                let starts = spare.pop().unwrap_or_default();
                let page = PageSlot { base, unit_shift, view, starts };
                *slot = add_page(slots, vacant_slots, page);
                *noted = over;
                added.push((base, *slot));
                base += GRANULE;
            }
            from = to;
        }
    }

    /// Passes the start tables that it does not need any more to another heap, which needs some for
    /// memory that it takes over.
    pub(crate) fn pass_starts(&mut self, to: &mut Heap) {
        for (spare, to) in self.spare_starts.iter_mut().zip(&mut to.spare_starts) {
            to.append(spare);
        }
    }

    pub(super) fn remove_slots(&mut self, range: u32, address: Address, bytes: Bytes) {
        let Some(range) = &mut self.ranges[range as usize] else {
            return;
        };
        let first = range.granule_of(address);
        let spare = &mut self.spare_starts[range.kind as usize];
        for slot in &mut range.slots[first..first + (bytes / GRANULE) as usize] {
            let slot = std::mem::replace(slot, NO_SLOT);
            vacate(&mut self.slots[slot as usize], spare);
            self.vacant_slots.push(slot);
        }
    }

    pub(super) fn vacate_slot(&mut self, slot: u32, kind: ArenaKind) {
        vacate(&mut self.slots[slot as usize], &mut self.spare_starts[kind as usize]);
        self.vacant_slots.push(slot);
    }
}

fn add_page(slots: &mut Vec<PageSlot>, vacant: &mut Vec<u32>, page: PageSlot) -> u32 {
    if let Some(slot) = vacant.pop() {
        slots[slot as usize] = page;
        return slot;
    }
    slots.push(page);
    (slots.len() - 1) as u32
}

/// Makes a slot one of no page; its start table, in which no block starts, is spare.
fn vacate(page: &mut PageSlot, spare: &mut Vec<Box<[u32]>>) {
    page.base = Address::MAX;
    page.view = NO_SLOT;
    if !page.starts.is_empty() {
        spare.push(std::mem::take(&mut page.starts));
    }
}
