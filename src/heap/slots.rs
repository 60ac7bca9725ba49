//! Page slots: for each granule of memory, where blocks start in it.

use super::Heap;
use super::layout::Backed;
use super::size::ArenaKind;
use super::views::ViewId;
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
    /// For each unit, the live block that starts in it, plus one; 0: none. Empty until one does.
    pub(crate) starts: Box<[u32]>,
}

impl PageSlot {
    /// What the page map has of a slot of this number.
    pub(super) fn published(&self, slot: u32) -> u32 {
        published(slot, self.unit_shift)
    }
}

/// What the page map has of a slot of this number whose page has such units.
fn published(slot: u32, unit_shift: u32) -> u32 {
    slot | if unit_shift == ArenaKind::Large.unit_shift() { LARGE_PAGE } else { 0 }
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
            Some(place) => {
                debug_assert!(entry == 0 || *place == 0 || *place == entry, "one a unit");
                *place = entry;
            }
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

    /// Gives every granule of views side by side, or of a segment, a page slot.
    pub(super) fn add_slots(&mut self, range: u32, start: Address, bytes: Bytes) {
        let Heap { ranges, slots, vacant_slots, spare_starts, .. } = self;
        let Some(range) = &mut ranges[range as usize] else {
            return;
        };
        let (first, last) = (range.granule_of(start), range.granule_of(start + bytes));
        range.reach(last);
        let (mut base, unit_shift) = (start, range.kind.unit_shift());
        let spare = &mut spare_starts[range.kind as usize];
        let places = &mut range.slots[first..last];
        let (reused, new) = places.split_at_mut(vacant_slots.len().min(places.len()));
        let kept = vacant_slots.len() - reused.len();
        reused.copy_from_slice(&vacant_slots[kept..]);
        vacant_slots.truncate(kept);
        for &mut slot in reused {
            let page = &mut slots[slot as usize];
            debug_assert!(page.base == Address::MAX && page.starts.is_empty());
            (page.base, page.unit_shift) = (base, unit_shift);
            // Most granules are the inside of a large block, and need no table; but where there is
            // one to spare, it goes with the memory to whoever has that next.
            if let Some(starts) = spare.pop() {
                page.starts = starts;
            }
            base += GRANULE;
        }
        make_room(slots, new.len());
        for place in new {
            *place = slots.len() as u32;
            slots.push(PageSlot { base, unit_shift, starts: spare.pop().unwrap_or_default() });
            base += GRANULE;
        }
    }

    /// Gives every granule of one view a page slot, and notes the view over it.
    pub(super) fn add_view(
        &mut self,
        (range, start, bytes): (u32, Address, Bytes),
        view: ViewId,
        handle: u32,
    ) -> Backed {
        self.add_slots(range, start, bytes);
        if let Some(range) = &mut self.ranges[range as usize] {
            let granules = (range.granule_of(start), range.granule_of(start + bytes));
            range.note_view(granules, view, handle);
        }
        Backed { range, start, bytes }
    }

    /// The page slots of new memory, granule by granule, as the page map is to have them.
    pub(crate) fn slots_of(&self, memory: Backed) -> impl ExactSizeIterator<Item = u32> + '_ {
        let Backed { range, start, bytes } = memory;
        let range = self.ranges.get(range as usize).and_then(Option::as_ref);
        let large = range.map_or(0, |range| published(0, range.kind.unit_shift()));
        let slots = range.map_or(&[][..], |range| {
            &range.slots[range.granule_of(start)..range.granule_of(start + bytes)]
        });
        slots.iter().map(move |slot| slot | large)
    }

    /// The same with the granules.
    pub(super) fn pages_of(&self, memory: Backed) -> Vec<(Address, u32)> {
        let slots = self.slots_of(memory);
        (0..).zip(slots).map(|(at, slot)| (memory.start + at * GRANULE, slot)).collect()
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
        let gone = &mut range.slots[first..first + (bytes / GRANULE) as usize];
        for &mut slot in &mut *gone {
            vacate(&mut self.slots[slot as usize], spare);
        }
        self.vacant_slots.extend_from_slice(gone);
        gone.fill(NO_SLOT);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_memory_has_a_slot_a_granule_and_those_without_a_page_serve_first() {
        const BASE: Address = 64 * GRANULE;
        const KIND: ArenaKind = ArenaKind::Large;
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 16 * GRANULE, 0, KIND);
        let told = |heap: &Heap, memory: Backed| {
            let slots: Vec<_> = heap.slots_of(memory).map(|slot| slot ^ LARGE_PAGE).collect();
            let views: Vec<_> = heap.views_of(memory).collect();
            assert!(heap.is_valid().is_ok() && slots.len() as u64 == memory.bytes / GRANULE);
            let pages = (0..).zip(&slots).map(|(at, slot)| (memory.start + at * GRANULE, *slot));
            assert!(pages.clone().all(|(base, slot)| heap.slots[slot as usize].base == base));
            (slots, views)
        };
        let handles = [(7, GRANULE), (8, 2 * GRANULE), (9, GRANULE)];
        let first = heap.attach_all(BASE, &handles).unwrap();
        assert_eq!(told(&heap, first), (vec![0, 1, 2, 3], vec![(0, 7), (1, 8), (2, 9)]));
        // Blocks start in the first and in the fourth granule, and end again.
        let bytes = 3 * GRANULE;
        let (one, other) = (heap.allocate(bytes, bytes), heap.allocate(GRANULE, GRANULE));
        assert_eq!((one, other), (Some(BASE), Some(BASE + 3 * GRANULE)));
        assert!(heap.free(LARGE_PAGE, BASE) && heap.free(3 | LARGE_PAGE, BASE + 3 * GRANULE));
        heap.flush_quick();
        heap.cede(KIND, BASE + GRANULE, BASE + 4 * GRANULE).unwrap();
        assert_eq!((heap.vacant_slots.len(), heap.spare_starts[1].len()), (3, 1));
        let second = heap.attach_all(BASE + 4 * GRANULE, &[(3, GRANULE)]).unwrap();
        assert!(told(&heap, second).0[0] < 4 && heap.spare_starts[1].is_empty());
        let third = heap.attach_all(BASE + 5 * GRANULE, &[(4, 3 * GRANULE), (5, GRANULE)]);
        let (slots, views) = told(&heap, third.unwrap());
        assert_eq!((&slots[2..], views.len()), (&[4, 5][..], 2));
        assert!(heap.vacant_slots.is_empty());
    }
}
