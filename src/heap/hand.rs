//! The block at hand: the one that was freed right after it was taken, which programs mostly ask
//! for again. As long as they do, it goes back and forth in what lies beside the heap's lock, and
//! neither its class's list nor its own record is looked at: with a thousand streams those are two
//! lines of the cache more for each, and a page.
//!
//! Meanwhile its record says that it is kept aside, but no list has it. Whoever looks at anything
//! but the block at hand *lays it down* before: then all is as if there were none.

use super::Heap;
use super::block::State;
use super::size::{SMALL_MAX, SMALL_UNIT, class_bytes_of, class_of};
use crate::units::{Address, Bytes};

const _: () = assert!(SMALL_MAX / SMALL_UNIT < 1 << 16, "a length is noted in 16 bits");

impl Heap {
    /// Whether a block is at hand.
    #[inline(always)]
    pub(crate) fn has_at_hand(&self) -> bool {
        self.turn.held() != 0
    }

    /// Serves a small request from the block at hand, if that is free and as long as blocks of the
    /// request's class: the address, and whether the tally's limits are to be found anew after
    /// that.
    #[inline(always)]
    pub(crate) fn take_at_hand(
        &mut self,
        bytes: Bytes,
        requested: Bytes,
    ) -> Option<(Address, bool)> {
        if Bytes::from(self.turn.held()) * SMALL_UNIT != bytes || self.held_requested != 0 {
            return None;
        }
        self.held_requested = requested as u32;
        let higher = self.tally.allocate_small(bytes, requested);
        Some((self.recent_start, higher))
    }

    /// Frees the block that was taken last, and has it at hand from then on. False where it is not
    /// live, or is not to be at hand.
    #[inline(always)]
    pub(super) fn keep_at_hand(&mut self) -> bool {
        let held = self.turn.held();
        if held == 0 {
            return self.put_at_hand();
        }
        let requested = Bytes::from(std::mem::take(&mut self.held_requested));
        // Requests are of one byte at least.
        if requested == 0 {
            return false;
        }
        self.tally.free_small(Bytes::from(held) * SMALL_UNIT, requested);
        true
    }

    #[inline(always)]
    fn put_at_hand(&mut self) -> bool {
        let Some(block) = self.blocks.recent_mut() else {
            return false;
        };
        let (start, bytes) = (block.start, block.bytes);
        if start != self.recent_start || block.state != State::Live || bytes > SMALL_MAX {
            return false;
        }
        debug_assert_eq!(bytes, class_bytes_of(block.class));
        block.state = State::Quick;
        self.tally.free_small(bytes, block.requested);
        self.held_requested = 0;
        self.turn.set_held((bytes / SMALL_UNIT) as u32);
        true
    }

    /// As [`allocate`](Heap::allocate), where a block may be at hand.
    pub(crate) fn allocate_held(&mut self, bytes: Bytes) -> Option<Address> {
        if self.has_at_hand() {
            if bytes <= SMALL_MAX
                && let Some((address, higher)) =
                    self.take_at_hand(class_bytes_of(class_of(bytes)), bytes)
            {
                if higher {
                    self.tally.look_into();
                }
                return Some(address);
            }
            self.lay_down();
        }
        self.allocate(bytes, bytes)
    }

    /// Writes down what became of the block at hand, which ceases to be that.
    #[inline(never)]
    pub(crate) fn lay_down(&mut self) {
        self.lay_down_here();
    }

    /// The same where a call would cost the hot path registers.
    #[inline(always)]
    pub(super) fn lay_down_here(&mut self) {
        let held = Bytes::from(self.turn.held()) * SMALL_UNIT;
        let requested = Bytes::from(std::mem::take(&mut self.held_requested));
        self.turn.set_held(0);
        let id = self.blocks.recent;
        let Some(block) = self.blocks.recent_mut().filter(|_| held != 0) else {
            return;
        };
        if requested == 0 {
            let class = block.class;
            block.bin_next = self.quick.first(class);
            self.quick.set_first(class, id);
        } else {
            block.state = State::Live;
            block.requested = requested;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ArenaKind, Heap, metric};
    use super::*;
    use crate::units::{GRANULE, KIB};

    /// A heap with memory for small requests, and the slot of that.
    fn heap() -> (Heap, u32) {
        let mut heap = Heap::new(None);
        heap.add_range(64 * GRANULE, GRANULE, 0, ArenaKind::Small);
        let (_, slots) = heap.attach(64 * GRANULE, GRANULE, 0).unwrap();
        (heap, slots[0].1)
    }

    /// As the hot path does it.
    fn allocate(heap: &mut Heap, bytes: Bytes) -> Option<Address> {
        let class = class_of(bytes);
        let taken = match heap.has_at_hand() {
            true => heap.take_at_hand(class_bytes_of(class), bytes),
            false => heap.take_kept(class, bytes),
        };
        taken.map(|(address, _)| address).or_else(|| heap.allocate_held(bytes))
    }

    fn in_use(heap: &Heap) -> [i64; 3] {
        [metric::COUNT, metric::BYTES, metric::REQUESTED].map(|of| heap.tally.current(of))
    }

    #[test]
    fn a_block_goes_back_and_forth_at_hand_and_is_free_once() {
        let (mut heap, slot) = heap();
        let first = allocate(&mut heap, 900).unwrap();
        assert!(heap.keep_small(slot, first) && !heap.has_at_hand(), "it was carved");
        for bytes in [1000, 700, 1024] {
            assert_eq!(allocate(&mut heap, bytes), Some(first));
            assert_eq!(in_use(&heap), [1, 1024, bytes as i64]);
            assert!(heap.keep_small(slot, first) && heap.has_at_hand());
            assert!(!heap.keep_small(slot, first), "free once");
            assert_eq!(in_use(&heap), [0; 3]);
        }
        // Another size: what is at hand is kept aside as any other.
        let other = allocate(&mut heap, 4 * KIB).unwrap();
        assert!(other != first && !heap.has_at_hand());
        heap.is_valid().unwrap();
        assert_eq!(allocate(&mut heap, 1000), Some(first));
        assert!(heap.keep_small(slot, other) && heap.keep_small(slot, first));
        heap.lay_down();
        heap.is_valid().unwrap();
        assert_eq!(heap.cached(), GRANULE);
    }

    #[test]
    fn what_is_live_at_hand_is_written_down_before_others_look() {
        let (mut heap, slot) = heap();
        let first = allocate(&mut heap, 900).unwrap();
        assert!(heap.keep_small(slot, first));
        assert_eq!(allocate(&mut heap, 800), Some(first));
        assert!(heap.keep_small(slot, first) && heap.has_at_hand());
        assert_eq!(allocate(&mut heap, 600), Some(first));
        assert!(heap.has_at_hand());
        let second = allocate(&mut heap, 600).unwrap();
        assert!(second != first && !heap.has_at_hand());
        heap.is_valid().unwrap();
        let live: Vec<_> = heap.blocks().filter(|block| block.state == State::Live).collect();
        assert_eq!(live.iter().map(|block| block.requested).collect::<Vec<_>>(), [600, 600]);
        assert!(heap.free(slot, first) && heap.free(slot, second) && !heap.free(slot, first));
        heap.is_valid().unwrap();
    }

    #[test]
    fn random_calls_leave_what_calls_without_a_hand_would() {
        let (mut heap, slot) = heap();
        let (mut live, mut random, mut at_hand) = (Vec::<(Address, Bytes)>::new(), 3u64, 0);
        for turn in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let choice = random >> 33;
            // Mostly what was taken last is freed next.
            let at = if choice % 8 == 0 { choice as usize / 8 } else { live.len().max(1) - 1 };
            if live.len() > 12 || choice & 64 != 0 && !live.is_empty() {
                let (address, _) = live.swap_remove(at % live.len());
                let freed = heap.keep_small(slot, address);
                assert!(freed && !heap.keep_small(slot, address));
            } else {
                let bytes = [1, 500, 1000, 1024, 5000][choice as usize / 128 % 5];
                let address = allocate(&mut heap, bytes).unwrap();
                assert!(live.iter().all(|(other, _)| *other != address));
                live.push((address, bytes));
            }
            at_hand += usize::from(heap.has_at_hand());
            let requested: Bytes = live.iter().map(|(_, bytes)| bytes).sum();
            let now = in_use(&heap);
            assert_eq!((now[0], now[2]), (live.len() as i64, requested as i64));
            if turn % 16 == 0 {
                heap.lay_down();
                heap.is_valid().unwrap();
            }
        }
        assert!(at_hand > 2000, "{at_hand}");
    }
}
