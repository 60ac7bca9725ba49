//! Serving a request from free memory: which block, and which end of it.

use super::Heap;
use super::block::{Block, BlockId, NONE, State};
use super::size::{
    ArenaKind, LARGE_CLASS, SMALL_MAX, bin_of, class_bytes, class_of, classes_near, rounded,
    rounded_large,
};
use crate::units::{Address, Bytes, MAX_REQUEST};

/// How many free blocks are compared for a large request.
const COMPARED: usize = 8;

impl Heap {
    /// Serves a request from memory that is there, or says that none fits. `requested` is what the
    /// caller asked for, at least one byte, and `bytes` what it comes to, which is rounded up here.
    pub(crate) fn allocate(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        if bytes > SMALL_MAX {
            return self.allocate_large(requested, bytes);
        }
        let class = class_of(bytes);
        // A block that is a little longer does as well as one of the class, and costs no search.
        for near in class..=class + classes_near(class) {
            if let Some((address, higher)) = self.take_kept(near, requested) {
                if higher {
                    self.tally.look_into();
                }
                return Some(address);
            }
        }
        self.allocate_small_indexed(requested, class)
    }

    /// Serves a small request from the blocks of its class that are kept aside: the address, and
    /// whether the tally's limits are to be found anew after that.
    #[inline(always)]
    pub(crate) fn take_kept(&mut self, class: u8, requested: Bytes) -> Option<(Address, bool)> {
        let id = self.quick.first(class);
        let block = self.blocks.get_mut(id)?;
        debug_assert_eq!((block.state, block.class), (State::Quick, class));
        self.quick.set_first(class, block.bin_next);
        block.state = State::Live;
        block.requested = requested;
        let higher = self.tally.allocate_small(block.bytes, requested);
        Some((block.start, higher))
    }

    fn allocate_small_indexed(&mut self, requested: Bytes, class: u8) -> Option<Address> {
        let bytes = class_bytes(class);
        // The sizes of classes begin bins: whatever is in the bin is large enough.
        let free = &self.arenas[ArenaKind::Small as usize].free;
        let id = match free.first_from(bin_of(bytes)) {
            Some(id) => id,
            None => self.give_larger_back(class)?,
        };
        Some(self.carve(id, requested, bytes))
    }

    /// Gives the shortest block back that is kept aside and longer than those of a class.
    fn give_larger_back(&mut self, class: u8) -> Option<BlockId> {
        let from = class + classes_near(class) + 1;
        let (found, id) = self.quick.first_above(from)?;
        let next = self.blocks[id].bin_next;
        self.quick.set_first(found, next);
        Some(self.give_back(id))
    }

    fn allocate_large(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        if bytes >= MAX_REQUEST {
            return None;
        }
        match self.take_kept_large(requested, bytes) {
            Some((address, false)) => Some(address),
            Some((address, true)) => {
                self.tally.look_into();
                Some(address)
            }
            None => self.allocate_large_indexed(requested, rounded(bytes)),
        }
    }

    /// The same for a large request, of less than [`MAX_REQUEST`].
    #[inline(always)]
    pub(crate) fn take_kept_large(
        &mut self,
        requested: Bytes,
        bytes: Bytes,
    ) -> Option<(Address, bool)> {
        let block = self.blocks.get_mut(self.quick.first(LARGE_CLASS))?;
        if block.bytes != rounded_large(bytes) {
            return None;
        }
        self.quick.set_first(LARGE_CLASS, NONE);
        block.state = State::Live;
        block.requested = requested;
        let higher = self.tally.allocate_large(block.bytes, requested);
        Some((block.start, higher))
    }

    fn allocate_large_indexed(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        if let Some(kept) = self.quick.pop_large() {
            self.give_back(kept);
        }
        if self.whole.is_some() {
            let id = self.arenas[ArenaKind::Large as usize].free.find(&self.blocks, bytes)?;
            let taken = self.taken(id, bytes)?;
            return Some(self.carve(id, requested, taken));
        }
        self.allocate_thrifty(requested, bytes)
    }

    /// Serves a large request where it takes the least idle memory, whole views on which nothing
    /// lives: those can move elsewhere, while the rest of a view that is partly in use can not, so
    /// that it is used first. Blocks are looked at by size, so that the first that takes none
    /// serves; among equals the smallest does.
    fn allocate_thrifty(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        let ends = self.moves_much();
        let free = &self.arenas[ArenaKind::Large as usize].free;
        let mut best = None;
        let mut least = (Bytes::MAX, Bytes::MAX);
        for id in free.at_least(&self.blocks, bytes).take(COMPARED) {
            let block = &self.blocks[id];
            let idle = block.idle();
            let (taken, end) = if block.start + bytes <= idle.0 || idle.1 <= idle.0 {
                (0, false)
            } else {
                self.idle_taken(block, idle, bytes, ends)
            };
            if (taken, block.bytes) < least {
                least = (taken, block.bytes);
                best = Some((id, end));
            }
            if taken == 0 {
                break;
            }
        }
        let (id, end) = best?;
        let block = &self.blocks[id];
        if end && block.bytes > bytes {
            let start = block.end() - bytes;
            return Some(self.carve_at(id, start, requested, bytes));
        }
        Some(self.carve(id, requested, bytes))
    }

    /// How much of its idle memory a request takes of a free block; and whether it takes that at
    /// the end, which is looked at if `ends` says so.
    #[inline(always)]
    fn idle_taken(
        &self,
        block: &Block,
        (idle_from, idle_to): (Address, Address),
        bytes: Bytes,
        ends: bool,
    ) -> (Bytes, bool) {
        let Some(range) = &self.ranges[block.range as usize] else {
            return (0, false);
        };
        let front = range.view_over(block.start + bytes - 1).1.min(idle_to) - idle_from;
        if ends {
            let last = range.view_over(block.end() - bytes).0.max(idle_from);
            let back = idle_to.saturating_sub(last);
            return (front.min(back), back < front);
        }
        (front, false)
    }

    /// As [`allocate`](Heap::allocate), from any block that fits, however long it takes to find.
    pub(crate) fn allocate_any(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        let free = &self.arenas[ArenaKind::of(bytes) as usize].free;
        let fits = |id: &BlockId| self.taken(*id, bytes).is_some();
        let id = free.at_least(&self.blocks, bytes).find(fits)?;
        let taken = self.taken(id, bytes)?;
        Some(self.carve(id, requested, taken))
    }

    /// What a request takes of a free block that is long enough for it: its size, or all of a block
    /// that is not to be split; nothing of such a block if too much of it were unused.
    fn taken(&self, id: BlockId, bytes: Bytes) -> Option<Bytes> {
        let size = self.blocks[id].bytes;
        match self.whole {
            Some((limit, rounding)) if size >= limit => {
                (bytes >= limit && size < bytes + rounding).then_some(size)
            }
            _ => Some(bytes),
        }
    }

    /// Whether memory of this heap moves often enough for the choice of an end to pay: more than
    /// one view in five. Where it does not, fronts alone leave the heap less divided.
    fn moves_much(&self) -> bool {
        self.moves * 5 > self.views.len()
    }

    /// Takes the front of a free block.
    #[inline]
    fn carve(&mut self, id: BlockId, requested: Bytes, bytes: Bytes) -> Address {
        let kind = self.blocks[id].arena;
        self.arenas[kind as usize].free.remove(&mut self.blocks, id);
        if self.blocks[id].bytes > bytes {
            let rest = self.split(id, bytes);
            self.blocks[rest].state = State::Free;
            self.index(rest);
        }
        let block = &mut self.blocks[id];
        block.state = State::Live;
        block.requested = requested;
        block.class = if kind == ArenaKind::Small { class_of(bytes) } else { LARGE_CLASS };
        let (start, range) = (block.start, block.range);
        self.set_start(range, start, kind, id + 1);
        self.tally.allocate(kind, bytes, requested);
        self.note_low(kind);
        start
    }

    /// Takes `bytes` at `start`, which lies behind the front of a free block.
    fn carve_at(&mut self, id: BlockId, start: Address, requested: Bytes, bytes: Bytes) -> Address {
        let kind = self.blocks[id].arena;
        let front = start - self.blocks[id].start;
        self.arenas[kind as usize].free.remove(&mut self.blocks, id);
        let rest = self.split(id, front);
        self.blocks[rest].state = State::Free;
        self.index(id);
        self.index(rest);
        self.carve(rest, requested, bytes)
    }

    /// Takes `bytes` at `start`, inside one free block.
    pub(crate) fn allocate_at(
        &mut self,
        start: Address,
        requested: Bytes,
        bytes: Bytes,
        kind: ArenaKind,
    ) -> Option<Address> {
        let id = self.free_block_over(start, bytes, kind)?;
        if self.blocks[id].start < start {
            return Some(self.carve_at(id, start, requested, bytes));
        }
        Some(self.carve(id, requested, bytes))
    }
}
