//! Page slots: for each granule of memory, where blocks start in it.

use super::Heap;
use super::layout::ViewId;
use super::ranges::ViewOver;
use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE};

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
    pub(crate) view: ViewId,
    /// For each unit, the live block that starts there, plus one; 0: none.
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
        self.slots[slot as usize].starts[offset] = entry;
    }

    /// Gives every granule of a view, or of a segment, a page slot; adds them to `added`.
    pub(super) fn add_slots(
        &mut self,
        range: u32,
        (address, bytes): (Address, Bytes),
        kind: ArenaKind,
        view: ViewId,
        added: &mut Vec<(Address, u32)>,
    ) {
        let granules = (bytes / GRANULE) as usize;
        let handle = self.view(view).map(|view| view.handle);
        let mut over = ViewOver::SEGMENT;
        let mut first = 0;
        if let Some(range) = &mut self.ranges[range as usize] {
            first = range.granule_of(address);
            if range.slots.len() < first + granules {
                range.slots.resize(first + granules, NO_SLOT);
                range.over.resize(first + granules, ViewOver::SEGMENT);
            }
            if let Some(handle) = handle {
                let (start, end) = (first as u32, (first + granules) as u32);
                over = ViewOver { start, end, view, handle };
            }
        }
        for k in 0..granules {
            let base = address + k as u64 * GRANULE;
            let slot = self.new_slot(base, kind, view);
            added.push((base, self.slots[slot as usize].published(slot)));
            if let Some(range) = &mut self.ranges[range as usize] {
                range.slots[first + k] = slot;
                range.over[first + k] = over;
            }
        }
    }

    fn new_slot(&mut self, base: Address, kind: ArenaKind, view: ViewId) -> u32 {
        let unit_shift = kind.unit_shift();
        let spare = self.spare_starts[kind as usize].pop();
        let starts = spare.unwrap_or_else(|| vec![0; kind.starts_per_granule()].into_boxed_slice());
        debug_assert!(starts.iter().all(|&entry| entry == 0));
        let page = PageSlot { base, unit_shift, view, starts };
        if let Some(slot) = self.vacant_slots.pop() {
            self.slots[slot as usize] = page;
            return slot;
        }
        self.slots.push(page);
        (self.slots.len() - 1) as u32
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
            spare.push(vacate(&mut self.slots[slot as usize]));
            self.vacant_slots.push(slot);
        }
    }

    pub(super) fn vacate_slot(&mut self, slot: u32, kind: ArenaKind) {
        self.spare_starts[kind as usize].push(vacate(&mut self.slots[slot as usize]));
        self.vacant_slots.push(slot);
    }
}

/// Makes a slot one of no page; gives its start table, in which no block starts.
fn vacate(page: &mut PageSlot) -> Box<[u32]> {
    page.base = Address::MAX;
    page.view = NO_SLOT;
    std::mem::take(&mut page.starts)
}
