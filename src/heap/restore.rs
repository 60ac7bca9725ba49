//! Bringing a heap back to what was live at an earlier time: blocks at their old places, with their
//! old sizes, out of whatever has become of that memory since.
//!
//! It goes in three steps, so that whoever has several heaps can look at all of them before
//! changing any: [`obstacle`](Heap::obstacle) for each, then [`end`](Heap::end) for what is live in
//! each, then [`revive`](Heap::revive).

use super::block::{Block, BlockId, NONE, State};
use super::ranges::Range;
use super::size::{ArenaKind, LARGE_CLASS, class_of};
use super::{BlockView, Heap};
use crate::units::{Address, Bytes};

/// What becomes of a block that is live now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is one of those that are to be live, with the same bytes.
    Stays,
    /// It ends at once.
    Goes,
    /// It ends when the streams have passed that use it.
    Waits,
}

/// Why a block cannot be live again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Some of its memory is none of this heap's any more.
    Gone { start: Address, bytes: Bytes },
    /// This block is in its place, which other streams may use.
    Waits { start: Address, bytes: Bytes },
}

impl Obstacle {
    fn gone(wanted: &BlockView) -> Obstacle {
        Obstacle::Gone { start: wanted.start, bytes: wanted.bytes }
    }
}

impl BlockView {
    fn end(&self) -> Address {
        self.start + self.bytes
    }
}

/// Those of some blocks, by address, that begin in a range.
fn within<'a>(range: &Range, wanted: &'a [BlockView]) -> &'a [BlockView] {
    let from = wanted.partition_point(|block| block.start < range.base);
    let to = wanted.partition_point(|block| block.start < range.base + range.bytes);
    &wanted[from..to]
}

impl Heap {
    /// Everything that is live, by address.
    pub(crate) fn live(&self) -> Vec<(BlockId, BlockView)> {
        let mut found = Vec::new();
        for range in self.ranges.iter().flatten() {
            let mut id = range.first;
            while id != NONE {
                if self.blocks[id].state.is_live() {
                    found.push((id, self.block(id)));
                }
                id = self.blocks[id].next;
            }
        }
        found.sort_unstable_by_key(|(_, block)| block.start);
        found
    }

    /// What is in the way of these blocks, which are by address and do not overlap, once everything
    /// that is live has met its fate; nothing where they can all be live again.
    pub(crate) fn obstacle(
        &self,
        wanted: &[BlockView],
        fate: impl Fn(Address) -> Fate,
    ) -> Option<Obstacle> {
        let mut looked_at = 0;
        for range in self.ranges.iter().flatten() {
            let here = within(range, wanted);
            looked_at += here.len();
            if let Some(obstacle) = self.obstacle_in(range, here, &fate) {
                return Some(obstacle);
            }
        }
        if looked_at == wanted.len() {
            return None;
        }
        let has = |block: &BlockView| self.ranges.iter().flatten().any(|r| r.contains(block.start));
        wanted.iter().find(|block| !has(block)).map(Obstacle::gone)
    }

    fn obstacle_in(
        &self,
        range: &Range,
        wanted: &[BlockView],
        fate: impl Fn(Address) -> Fate,
    ) -> Option<Obstacle> {
        let mut wanted = wanted.iter();
        let mut next = wanted.next()?;
        let mut id = range.first;
        while id != NONE {
            let block = &self.blocks[id];
            if block.end() <= next.start {
                id = block.next;
                continue;
            }
            // The blocks of a range leave no gaps: this one lies over some of what is wanted.
            let waits = match block.state {
                State::Free | State::Quick => false,
                State::Live | State::Shared => fate(block.start) == Fate::Waits,
                State::Pending => true,
                State::Hole | State::Dormant | State::Ceded | State::Lent | State::Blocked => {
                    return Some(Obstacle::gone(next));
                }
            };
            if waits {
                return Some(Obstacle::Waits { start: block.start, bytes: block.bytes });
            }
            if range.kind != next.arena {
                return Some(Obstacle::gone(next));
            }
            if block.end() < next.end() {
                id = block.next;
            } else {
                next = wanted.next()?;
            }
        }
        Some(Obstacle::gone(next))
    }

    /// Ends a live block, and counts that. One that [stays](Fate::Stays) is live as before, and is
    /// counted again by [`revive`](Heap::revive).
    pub(crate) fn end(&mut self, id: BlockId, fate: Fate) {
        let Block { arena, bytes, requested, .. } = self.blocks[id];
        match fate {
            Fate::Waits => self.defer(id),
            Fate::Stays => self.tally.free(arena, bytes, requested),
            Fate::Goes => {
                self.tally.free(arena, bytes, requested);
                self.give_back(id);
            }
        }
    }

    /// Makes these blocks live, which are by address and in nobody's way, and counts that: each is
    /// free memory, or has stayed. `shared` says which of them other streams use.
    pub(crate) fn revive(&mut self, wanted: &[BlockView], shared: impl Fn(Address) -> bool) {
        // What is kept aside is cut up in other ways.
        self.flush_quick();
        for number in 0..self.ranges.len() {
            let Some(range) = &self.ranges[number] else {
                continue;
            };
            let (mut id, here) = (range.first, within(range, wanted));
            for block in here {
                while self.blocks[id].end() <= block.start {
                    id = self.blocks[id].next;
                }
                id = self.revive_at(id, block);
                if shared(block.start) {
                    self.blocks[id].state = State::Shared;
                }
            }
        }
    }

    /// Makes a block live that lies in this free one, or is this one already; gives its number.
    fn revive_at(&mut self, mut id: BlockId, wanted: &BlockView) -> BlockId {
        let BlockView { start, bytes, requested, arena, .. } = *wanted;
        self.tally.allocate(arena, bytes, requested);
        if self.blocks[id].state.is_live() {
            debug_assert_eq!((self.blocks[id].start, self.blocks[id].bytes), (start, bytes));
            self.blocks[id].requested = requested;
            return id;
        }
        debug_assert_eq!(self.blocks[id].state, State::Free);
        if self.blocks[id].start < start {
            id = self.cut_front(id, start);
        }
        let class = match arena {
            ArenaKind::Small => class_of(bytes),
            ArenaKind::Large => LARGE_CLASS,
        };
        self.take_front(id, requested, (arena, class), bytes);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::super::size::rounded;
    use super::super::{Lookup, METRICS, Tally};
    use super::*;
    use crate::units::{GRANULE, KIB, MIB, align_down};

    const BASE: Address = 64 * GRANULE;
    const SMALL: Address = 128 * GRANULE;
    const SEGMENT: Address = 256 * GRANULE;

    /// A heap with eight views for large requests, two for small ones.
    fn views() -> Heap {
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 16 * GRANULE, 0, ArenaKind::Large);
        heap.add_range(SMALL, 16 * GRANULE, 0, ArenaKind::Small);
        (0..8).for_each(|k| _ = heap.attach(BASE + k * GRANULE, GRANULE, k as u32).unwrap());
        (0..2).for_each(|k| _ = heap.attach(SMALL + k * GRANULE, GRANULE, 8 + k as u32).unwrap());
        heap
    }

    /// The same, and a segment for large requests.
    fn heap() -> Heap {
        let mut heap = views();
        heap.add_segment(SEGMENT, 8 * GRANULE, ArenaKind::Large);
        heap
    }

    fn allocate(heap: &mut Heap, bytes: Bytes) -> Option<Address> {
        heap.allocate(bytes, bytes).or_else(|| heap.allocate_any(bytes, rounded(bytes)))
    }

    fn free(heap: &mut Heap, address: Address) {
        let page = align_down(address, GRANULE);
        let slot = heap.page_slots().find(|(base, _)| *base == page).unwrap().1;
        assert!(heap.free(slot, address));
    }

    fn blocks(heap: &Heap) -> Vec<BlockView> {
        heap.live().into_iter().map(|(_, block)| block).collect()
    }

    /// Brings the heap back, where nothing is in the way.
    fn restore(heap: &mut Heap, wanted: &[BlockView]) -> Result<(), Obstacle> {
        let live = heap.live();
        let stays = |block: &BlockView| {
            wanted.iter().any(|other| (other.start, other.bytes) == (block.start, block.bytes))
        };
        let waits = |block: &BlockView| block.state == State::Shared && !stays(block);
        let fates = live.iter().map(|(_, block)| match block {
            block if stays(block) => Fate::Stays,
            block if waits(block) => Fate::Waits,
            _ => Fate::Goes,
        });
        let fates: Vec<_> = fates.collect();
        let fate = |at| fates[live.iter().position(|(_, block)| block.start == at).unwrap()];
        if let Some(obstacle) = heap.obstacle(wanted, fate) {
            return Err(obstacle);
        }
        live.iter().zip(&fates).for_each(|((id, _), fate)| heap.end(*id, *fate));
        heap.revive(wanted, |_| false);
        Ok(())
    }

    #[test]
    fn blocks_come_back_out_of_whatever_their_memory_has_become() {
        let mut random = 11u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut heap = heap();
        let mut saved: Vec<Vec<BlockView>> = vec![Vec::new()];
        let mut came_back = 0;
        for round in 0..4000 {
            let live = blocks(&heap);
            match next(32) {
                0..18 => {
                    let most = [4 * KIB, 300 * KIB, 5 * MIB][next(3) as usize];
                    allocate(&mut heap, 1 + next(most));
                }
                18..29 if !live.is_empty() => {
                    let block = live[next(live.len() as u64) as usize];
                    free(&mut heap, block.start);
                }
                _ if round % 5 == 0 => saved.push(live),
                _ => {
                    let wanted = saved[next(saved.len() as u64) as usize].clone();
                    let added = heap.tally.added();
                    restore(&mut heap, &wanted).unwrap();
                    assert_eq!(blocks(&heap), wanted);
                    assert_eq!(heap.tally.added()[0] - added[0], wanted.len() as i64);
                    came_back += wanted.len();
                }
            }
            heap.is_valid().unwrap();
        }
        assert!(came_back > 2000 && saved.len() > 20, "{came_back}, {}", saved.len());
        restore(&mut heap, &[]).unwrap();
        assert_eq!(heap.tally.currents(), [0; METRICS]);
        assert_eq!(heap.tally.currents(), Tally::default().currents());
        heap.is_valid().unwrap();
    }

    #[test]
    fn a_block_that_stays_is_the_same_with_other_bytes_asked_for() {
        let mut heap = heap();
        let at = heap.allocate(3 * MIB, 3 * MIB).unwrap();
        let (wanted, id) = (blocks(&heap), heap.live()[0].0);
        free(&mut heap, at);
        assert_eq!(heap.allocate(3 * MIB - 5, 3 * MIB), Some(at));
        heap.set_shared(id);
        restore(&mut heap, &wanted).unwrap();
        assert_eq!(heap.live(), [(id, BlockView { state: State::Shared, ..wanted[0] })]);
        heap.is_valid().unwrap();
    }

    #[test]
    fn blocks_of_segments_that_are_not_split_any_more_come_back_as_they_were() {
        let mut heap = heap();
        let sizes = [MIB + 1, 3 * MIB, 100];
        sizes.iter().for_each(|&bytes| _ = heap.allocate(bytes, bytes).unwrap());
        let wanted = blocks(&heap);
        wanted.iter().for_each(|block| free(&mut heap, block.start));
        heap.flush_quick();
        heap.split_no_more();
        let whole = heap.allocate(2 * MIB, 2 * MIB).unwrap();
        assert!(heap.live()[0].1.bytes > 2 * MIB, "{whole:#x}");
        restore(&mut heap, &wanted).unwrap();
        assert_eq!(blocks(&heap), wanted);
        heap.is_valid().unwrap();
    }

    #[test]
    fn memory_that_has_gone_is_told_and_nothing_changes() {
        let mut heap = views();
        let large = heap.allocate(5 * MIB, 5 * MIB).unwrap();
        let wanted = blocks(&heap);
        free(&mut heap, large);
        heap.flush_quick();
        let gone = Err(Obstacle::Gone { start: large, bytes: 5 * MIB });
        // The view under its middle, and the one under its end.
        for view in [1, 2] {
            assert!(heap.detach(view));
            let before = format!("{heap:?}");
            assert_eq!(restore(&mut heap, &wanted), gone);
            assert_eq!(format!("{heap:?}"), before);
            heap.reactivate(view).unwrap();
        }
        restore(&mut heap, &wanted).unwrap();
        heap.add_segment(SEGMENT, 8 * GRANULE, ArenaKind::Large);
        let start = SEGMENT + MIB;
        let in_segment = [BlockView { start, bytes: MIB, ..wanted[0] }];
        restore(&mut heap, &in_segment).unwrap();
        restore(&mut heap, &[]).unwrap();
        heap.remove_segment(SEGMENT);
        let gone = Err(Obstacle::Gone { start, bytes: MIB });
        assert_eq!(restore(&mut heap, &in_segment), gone, "the segment");
        // Memory that goes on beyond the end of a range, and memory for small requests.
        let start = BASE + 15 * GRANULE;
        for start in [start, SMALL] {
            let bytes = 2 * GRANULE;
            let wanted = [BlockView { start, bytes, ..wanted[0] }];
            assert_eq!(restore(&mut heap, &wanted), Err(Obstacle::Gone { start, bytes }));
        }
        heap.is_valid().unwrap();
    }

    #[test]
    fn what_other_streams_use_is_in_the_way_until_they_are_done() {
        let mut heap = views();
        let first = heap.allocate(3 * MIB, 3 * MIB).unwrap();
        let wanted = blocks(&heap);
        free(&mut heap, first);
        heap.flush_quick();
        assert_eq!(heap.allocate(2 * MIB, 2 * MIB), Some(first));
        let (id, _) = heap.live()[0];
        heap.set_shared(id);
        let waits = Err(Obstacle::Waits { start: first, bytes: 2 * MIB });
        assert_eq!(restore(&mut heap, &wanted), waits, "live");
        heap.defer(id);
        assert_eq!(restore(&mut heap, &wanted), waits, "freed");
        restore(&mut heap, &[]).unwrap();
        heap.is_valid().unwrap();
        heap.complete(id);
        restore(&mut heap, &wanted).unwrap();
        let slot = heap.page_slots().find(|(base, _)| *base == BASE).unwrap().1;
        assert!(matches!(heap.lookup(slot, first), Lookup::Live(_)));
        heap.is_valid().unwrap();
    }
}
