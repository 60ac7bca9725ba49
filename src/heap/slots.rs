//! Page slots: for each granule of memory, where blocks start in it.

use super::Heap;
use super::layout::ViewId;
use super::ranges::ViewOver;
use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE, make_room};

/// No page slot, or no view.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// In the number of a slot as the page map has it: the page is one of the arena of large requests.
/// So that is known before the heap's lock is taken, not at the end of a chain of loads behind it.
pub(crate) const LARGE_PAGE: u32 = 1 << 31;

/// One granule of memory in use by the heap: where live blocks start in it.
#[derive(Debug)]
pub(crate) struct PageSlot {
    pub(crate) base: Address,
    pub(crate) unit_shift: u32,
    /// For each unit, the live block that starts there, plus one; 0: none. Empty until one does.
    pub(crate) starts: Box<[u32]>,
}

impl PageSlot {
    /// What the page map has of a slot of this number.
    pub(super) fn published(&self, slot: u32) -> u32 {
        let large = self.unit_shift == ArenaKind::Large.unit_shift();
        slot | if large { LARGE_PAGE } else { 0 }
    }
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
        mut views: impl Iterator<Item = (ViewId, u32, Bytes)>,
        added: &mut Vec<(Address, u32)>,
    ) {
        let Heap { ranges, slots, vacant_slots, spare_starts, .. } = self;
        let Some(range) = &mut ranges[range as usize] else {
            return;
        };
        let (first, last) = (range.granule_of(start), range.granule_of(start + bytes));
        if range.slots.len() < last {
            let more = last - range.slots.len();
            make_room(&mut range.slots, more);
            make_room(&mut range.over, more);
            range.slots.resize(last, NO_SLOT);
            range.over.resize(last, ViewOver::SEGMENT);
        }
        let (mut base, unit_shift) = (start, kind.unit_shift());
        let spare = &mut spare_starts[kind as usize];
        let places = range.slots[first..last].iter_mut().zip(&mut range.over[first..last]);
        let (mut over, mut to) = (ViewOver::SEGMENT, first as u32);
        for (from, (place, noted)) in (first as u32..).zip(places) {
            if from == to {
                let (view, handle, bytes) = views.next().unwrap_or((NO_SLOT, NO_SLOT, bytes));
                to = from + (bytes / GRANULE) as u32;
                if view != NO_SLOT {
                    over = ViewOver { start: from, end: to, view, handle };
                }
            }
            *noted = over;
            // Most granules are the inside of a large block, and need no table; but where there is
            // one to spare, it goes with the memory to whoever has that next.
            let page = PageSlot { base, unit_shift, starts: spare.pop().unwrap_or_default() };
            let slot = match vacant_slots.pop() {
                Some(slot) => {
                    slots[slot as usize] = page;
                    slot
                }
                None => {
                    slots.push(page);
                    (slots.len() - 1) as u32
                }
            };
            *place = slot;
            added.push((base, slots[slot as usize].published(slot)));
            base += GRANULE;
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

/// Makes a slot one of no page; its start table, in which no block starts, is spare.
fn vacate(page: &mut PageSlot, spare: &mut Vec<Box<[u32]>>) {
    page.base = Address::MAX;
    if !page.starts.is_empty() {
        spare.push(std::mem::take(&mut page.starts));
    }
}
