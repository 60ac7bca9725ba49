//! What stays where it is: all of a heap, because graphs use its pool, or single pieces of memory
//! that somebody has pinned. Such memory is neither moved nor given back, idle or not.

use std::collections::BTreeMap;

use super::{Heap, Whole};
use crate::units::{Address, Bytes};

/// What a heap must not let go of.
#[derive(Debug, Default)]
pub(super) struct Holds {
    all: bool,
    /// How often each view or segment was pinned, by its address.
    pins: BTreeMap<Address, u32>,
}

impl Holds {
    /// Whether everything stays.
    pub(super) fn everything(&self) -> bool {
        self.all
    }

    /// Whether anything stays.
    pub(super) fn any(&self) -> bool {
        self.all || !self.pins.is_empty()
    }

    /// Whether the view or segment that starts at `address` stays.
    pub(super) fn at(&self, address: Address) -> bool {
        self.all || (!self.pins.is_empty() && self.pins.contains_key(&address))
    }
}

impl Heap {
    /// From now on everything in this heap stays where it is, or no longer does.
    pub(crate) fn hold_all(&mut self, hold: bool) {
        self.holds.all = hold;
    }

    /// Whether everything in this heap stays where it is.
    pub(crate) fn is_held(&self) -> bool {
        self.holds.all
    }

    /// Pins the memory under a span that is in use: every view, or the segment, that it touches.
    /// Gives what is pinned by that, from the start of the first to the end of the last; `None`
    /// where the span is not memory from end to end.
    pub(crate) fn pin(&mut self, start: Address, bytes: Bytes) -> Option<(Address, Bytes)> {
        let pieces = self.pieces_under(start, bytes);
        let first = pieces.first()?.0;
        let end = pieces.last().map(|(address, bytes)| address + bytes)?;
        let joined = pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0);
        if !joined || start < first || end < start + bytes {
            return None;
        }
        for (address, _) in pieces {
            *self.holds.pins.entry(address).or_insert(0) += 1;
        }
        Some((first, end - first))
    }

    /// Ends one pin of this span, which stayed in place since.
    pub(crate) fn unpin(&mut self, start: Address, bytes: Bytes) {
        for (address, _) in self.pieces_under(start, bytes) {
            if let Some(count) = self.holds.pins.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.holds.pins.remove(&address);
                }
            }
        }
    }

    /// The views and segments with memory that a span touches, by address.
    fn pieces_under(&self, start: Address, bytes: Bytes) -> Vec<(Address, Bytes)> {
        let views = self.views().filter(|(_, view)| view.active);
        let views = views.map(|(_, view)| (view.address, view.bytes));
        let touched = |(at, length): &(Address, Bytes)| *at < start + bytes && start < at + length;
        let mut found: Vec<_> = self.segments().chain(views).filter(touched).collect();
        found.sort_unstable();
        found
    }

    /// Every segment: its base and its bytes.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (Address, Bytes)> + '_ {
        let segments = self.ranges.iter().flatten().filter(|range| range.segment);
        segments.map(|range| (range.base, range.bytes))
    }

    /// The handles with memory that a span touches, with their lengths, by address.
    pub(crate) fn handles_under(&self, start: Address, bytes: Bytes) -> Vec<(u32, Bytes)> {
        let touched = self
            .views()
            .filter(|(_, view)| view.active && view.address < start + bytes && start < view.end());
        let mut found: Vec<_> =
            touched.map(|(_, view)| (view.address, view.handle, view.bytes)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, handle, bytes)| (handle, bytes)).collect()
    }

    /// From now on blocks are handed out whole, to any request that fits: none is split.
    pub(crate) fn split_no_more(&mut self) {
        self.whole = Some(Whole { limit: 0, rounding: Bytes::MAX / 2, shared: 0 });
    }

    /// Ends that: the heap is as one that was made with this (see [`Heap::new`]).
    pub(crate) fn split_as(&mut self, whole: Option<Whole>) {
        self.whole = whole;
    }

    /// Whether any memory belongs to the heap, and whether any of that is in use.
    pub(crate) fn has_memory(&self) -> bool {
        self.segment_bytes() > 0 || self.views().any(|(_, view)| view.active)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ArenaKind;
    use super::*;
    use crate::units::{GRANULE, MIB};

    const BASE: Address = 64 * GRANULE;

    /// A heap with three views of one granule each, all free.
    fn heap() -> Heap {
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 16 * GRANULE, 0, ArenaKind::Large);
        for k in 0..3 {
            heap.attach(BASE + k * GRANULE, GRANULE, k as u32).unwrap();
        }
        heap
    }

    fn idle(heap: &Heap) -> Vec<Address> {
        let mut at: Vec<_> = heap.idle_views().iter().map(|view| view.address).collect();
        at.sort_unstable();
        at
    }

    #[test]
    fn pinned_views_are_not_idle_and_do_not_move() {
        let mut heap = heap();
        let pinned = heap.pin(BASE + GRANULE + MIB, 4096);
        assert_eq!(pinned, Some((BASE + GRANULE, GRANULE)));
        assert_eq!(idle(&heap), [BASE, BASE + 2 * GRANULE]);
        assert!(!heap.detach(1));
        let (from, to) = (BASE + GRANULE, BASE + 2 * GRANULE);
        assert_eq!(heap.cede(ArenaKind::Large, from, to), None);
        assert!(heap.detach(0));
        heap.unpin(BASE + GRANULE + MIB, 4096);
        assert!(heap.detach(1));
        heap.is_valid().unwrap();
    }

    #[test]
    fn pins_are_counted_by_view() {
        let mut heap = heap();
        heap.pin(BASE, 2 * GRANULE).unwrap();
        heap.pin(BASE + GRANULE, GRANULE).unwrap();
        heap.unpin(BASE, 2 * GRANULE);
        assert_eq!(idle(&heap), [BASE, BASE + 2 * GRANULE]);
        heap.unpin(BASE + GRANULE, GRANULE);
        assert_eq!(idle(&heap).len(), 3);
    }

    #[test]
    fn what_is_not_memory_cannot_be_pinned() {
        let mut heap = heap();
        assert_eq!(heap.pin(BASE + 2 * GRANULE, 2 * GRANULE), None);
        assert_eq!(heap.pin(BASE + 9 * GRANULE, 1), None);
        heap.detach(1);
        assert_eq!(heap.pin(BASE, 3 * GRANULE), None);
        assert_eq!(idle(&heap), [BASE, BASE + 2 * GRANULE], "a refused pin leaves nothing behind");
    }

    #[test]
    fn a_segment_is_pinned_whole() {
        let mut heap = Heap::new(None);
        heap.add_segment(BASE, 4 * GRANULE, ArenaKind::Large);
        assert_eq!(heap.pin(BASE + GRANULE, 1), Some((BASE, 4 * GRANULE)));
        assert!(heap.free_segments().is_empty());
        heap.unpin(BASE + GRANULE, 1);
        assert_eq!(heap.free_segments().len(), 1);
    }

    #[test]
    fn a_heap_that_is_held_lets_nothing_go() {
        let mut heap = heap();
        heap.hold_all(true);
        assert!(idle(&heap).is_empty());
        assert!(!heap.detach(0));
        assert_eq!(heap.cede(ArenaKind::Large, BASE, BASE + GRANULE), None);
        heap.hold_all(false);
        assert_eq!(idle(&heap).len(), 3);
    }
}
