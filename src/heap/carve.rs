//! Serving a request from free memory: which block, and which end of it.

use super::Heap;
use super::block::{Block, BlockId, NONE, State};
use super::idle::idle_between;
use super::size::{
    ArenaKind, LARGE_CLASS, LARGE_UNIT, SMALL_MAX, bin_of_class, class_bytes, class_of,
    classes_near, rounded_large,
};
use crate::units::{Address, Bytes, GRANULE, MAX_REQUEST};

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
        if self.quick.first(class) != NONE {
            return self.allocate_kept(class, requested);
        }
        self.allocate_small(requested, class)
    }

    #[inline(always)]
    fn allocate_kept(&mut self, class: u8, requested: Bytes) -> Option<Address> {
        let (address, higher) = self.take_kept(class, requested)?;
        if higher {
            self.tally.look_into();
        }
        Some(address)
    }

    /// Serves a small request of whose class no block is kept aside.
    #[inline(always)]
    pub(crate) fn allocate_small(&mut self, requested: Bytes, class: u8) -> Option<Address> {
        // A block that is a little longer does as well as one of the class, and costs no search.
        let [one, two] = [1, 2].map(|further| {
            further <= classes_near(class) && self.quick.first(class + further) != NONE
        });
        if one | two {
            let near = if one { 1 } else { 2 };
            return self.allocate_kept(class + near, requested);
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
        let start = block.start;
        (self.blocks.recent, self.recent_start) = (id, start);
        Some((start, higher))
    }

    #[inline(always)]
    fn allocate_small_indexed(&mut self, requested: Bytes, class: u8) -> Option<Address> {
        let bytes = class_bytes(class);
        // The sizes of classes begin bins: whatever is in the bin is large enough.
        let free = &self.arenas[ArenaKind::Small as usize].free;
        let id = match free.first_from(bin_of_class(class)) {
            Some(id) => id,
            None => self.give_larger_back(class)?,
        };
        Some(self.carve_small(id, requested, class, bytes))
    }

    /// Gives the shortest block back that is kept aside and longer than those of a class.
    #[inline(never)]
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
            None => self.allocate_large_indexed(requested, bytes),
        }
    }

    /// The same for a large request, of less than [`MAX_REQUEST`].
    #[inline(always)]
    pub(crate) fn take_kept_large(
        &mut self,
        requested: Bytes,
        bytes: Bytes,
    ) -> Option<(Address, bool)> {
        let id = self.quick.first(LARGE_CLASS);
        let block = self.blocks.get_mut(id)?;
        if block.bytes != rounded_large(bytes) {
            return None;
        }
        self.quick.set_first(LARGE_CLASS, NONE);
        block.state = State::Live;
        block.requested = requested;
        let higher = self.tally.allocate_large(block.bytes, requested);
        let start = block.start;
        (self.blocks.recent, self.recent_start) = (id, start);
        Some((start, higher))
    }

    /// Serves a large request, of less than [`MAX_REQUEST`], of whose size no block is kept aside.
    #[inline(always)]
    pub(crate) fn allocate_large_indexed(
        &mut self,
        requested: Bytes,
        bytes: Bytes,
    ) -> Option<Address> {
        let bytes = rounded_large(bytes);
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
    #[inline(always)]
    fn allocate_thrifty(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        let (id, end) = match self.moves_much() {
            true => self.thriftiest::<true>(bytes)?,
            false => self.thriftiest::<false>(bytes)?,
        };
        let block = &self.blocks[id];
        if end && block.bytes > bytes {
            let start = block.end() - bytes;
            return Some(self.carve_at(id, start, requested, bytes));
        }
        Some(self.carve_large(id, requested, bytes))
    }

    /// The block of those compared, and whether its end is to be taken, which is looked at if
    /// `ENDS` says so.
    #[inline(never)]
    fn thriftiest<const ENDS: bool>(&self, bytes: Bytes) -> Option<(BlockId, bool)> {
        let free = &self.arenas[ArenaKind::Large as usize].free;
        let units = bytes / LARGE_UNIT;
        let (mut least, mut best) = (u64::MAX, NONE);
        for (id, block) in free.at_least(&self.blocks, bytes).take(COMPARED) {
            let Some(taken) = block.idle_taken_at_least::<ENDS>(units) else {
                return Some((id, ENDS && block.begins_idle(bytes)));
            };
            let thrift = thrift(taken, block);
            (least, best) = if thrift < least { (thrift, id) } else { (least, best) };
        }
        let block = self.blocks.get(best)?;
        let (taken, end) = self.idle_taken::<ENDS>(block, bytes);
        // What takes no more than that is the best, since the others take no less. Mostly it does.
        if thrift(taken, block) == least {
            return Some((best, end));
        }
        self.thriftiest_by_views::<ENDS>(bytes)
    }

    /// The same by the views of each block that may be better than those before.
    #[cold]
    fn thriftiest_by_views<const ENDS: bool>(&self, bytes: Bytes) -> Option<(BlockId, bool)> {
        let free = &self.arenas[ArenaKind::Large as usize].free;
        let (mut least, mut best) = (u64::MAX, None);
        for (id, block) in free.at_least(&self.blocks, bytes).take(COMPARED) {
            let at_least = block.idle_taken_at_least::<ENDS>(bytes / LARGE_UNIT)?;
            if thrift(at_least, block) < least {
                let (taken, end) = self.idle_taken::<ENDS>(block, bytes);
                if thrift(taken, block) < least {
                    (least, best) = (thrift(taken, block), Some((id, end)));
                }
            }
        }
        best
    }

    /// How many granules of its idle memory a request takes of a free block; and whether it takes
    /// them at the end.
    #[inline(always)]
    fn idle_taken<const ENDS: bool>(&self, block: &Block, bytes: Bytes) -> (u64, bool) {
        let Some(range) = &self.ranges[block.range as usize] else {
            return (0, false);
        };
        let (from, to) = block.idle_granules();
        let front_end = range.view_over(block.start + bytes - 1).1 / GRANULE;
        let front = front_end.min(to) - from;
        if ENDS {
            let last = range.view_over(block.end() - bytes).0 / GRANULE;
            let back = to.saturating_sub(last.max(from));
            return (front.min(back), back < front);
        }
        (front, false)
    }

    /// As [`allocate`](Heap::allocate), from any block that fits, however long it takes to find.
    pub(crate) fn allocate_any(&mut self, requested: Bytes, bytes: Bytes) -> Option<Address> {
        let free = &self.arenas[ArenaKind::of(bytes) as usize].free;
        let fits = |(id, _): &(BlockId, &Block)| self.taken(*id, bytes).is_some();
        let (id, _) = free.at_least(&self.blocks, bytes).find(fits)?;
        let taken = self.taken(id, bytes)?;
        Some(self.carve(id, requested, taken))
    }

    /// What a request takes of a free block that is long enough for it: its size, or all of a block
    /// that is not to be split; nothing of such a block if too much of it were unused.
    fn taken(&self, id: BlockId, bytes: Bytes) -> Option<Bytes> {
        let size = self.blocks[id].bytes;
        match self.whole {
            Some((limit, rounding)) if size >= limit => {
                (bytes >= limit && size - bytes < rounding).then_some(size)
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
    #[inline(never)]
    fn carve(&mut self, id: BlockId, requested: Bytes, bytes: Bytes) -> Address {
        match self.blocks[id].arena {
            ArenaKind::Small => self.carve_small(id, requested, class_of(bytes), bytes),
            ArenaKind::Large => self.carve_large(id, requested, bytes),
        }
    }

    #[inline(always)]
    fn carve_small(&mut self, id: BlockId, requested: Bytes, class: u8, bytes: Bytes) -> Address {
        let higher = self.tally.allocate_small(bytes, requested);
        let start = self.take_front(id, requested, (ArenaKind::Small, class), bytes);
        if higher {
            self.tally.look_into();
        }
        start
    }

    #[inline(always)]
    fn carve_large(&mut self, id: BlockId, requested: Bytes, bytes: Bytes) -> Address {
        let higher = self.tally.allocate_large(bytes, requested);
        let start = self.take_front(id, requested, (ArenaKind::Large, LARGE_CLASS), bytes);
        if higher {
            self.tally.look_into();
        }
        start
    }

    /// Takes the front of a free block, uncounted.
    #[inline(always)]
    pub(super) fn take_front(
        &mut self,
        id: BlockId,
        requested: Bytes,
        (kind, class): (ArenaKind, u8),
        bytes: Bytes,
    ) -> Address {
        let block = &mut self.blocks[id];
        block.state = State::Live;
        block.requested = requested;
        block.class = class;
        let (start, size, range) = (block.start, block.bytes, block.range);
        self.set_start(range, start, kind, id + 1);
        let free = &mut self.arenas[kind as usize].free;
        free.bytes -= bytes;
        free.low = free.low.min(free.bytes);
        let (table, _) = self.blocks.parts();
        free.unlink(table, id);
        if size == bytes {
            free.count -= 1;
            return start;
        }
        let block = &mut table[id as usize];
        let (next, since) = (block.next, block.since);
        block.bytes = bytes;
        let rest = self.blocks.reserve();
        let (table, _) = self.blocks.parts();
        table[id as usize].next = rest;
        if let Some(behind) = table.get_mut(next as usize) {
            behind.previous = rest;
        }
        let (at, bytes) = (start + bytes, size - bytes);
        let new = &mut table[rest as usize];
        *new = Block { start: at, bytes, previous: id, next, since, ..Block::of(kind, range) };
        if kind == ArenaKind::Large {
            new.set_idle(idle_between(&self.ranges, range, at, at + bytes));
        }
        free.link(table, rest);
        start
    }

    /// Takes `bytes` at `start`, which lies behind the front of a free block.
    #[inline(never)]
    fn carve_at(&mut self, id: BlockId, start: Address, requested: Bytes, bytes: Bytes) -> Address {
        let rest = self.cut_front(id, start);
        self.carve(rest, requested, bytes)
    }

    /// Cuts a free block before `start`, which lies behind its front; gives the second part.
    pub(super) fn cut_front(&mut self, id: BlockId, start: Address) -> BlockId {
        let kind = self.blocks[id].arena;
        let front = start - self.blocks[id].start;
        self.arenas[kind as usize].free.remove(&mut self.blocks, id);
        let rest = self.split(id, front);
        self.index(id);
        self.index(rest);
        rest
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

/// What of two blocks the better one has less of: idle memory taken, in granules, then length.
#[inline(always)]
fn thrift(taken: u64, block: &Block) -> u64 {
    (taken << 36) | (block.bytes / LARGE_UNIT)
}

const _: () = assert!((1 << 47) / LARGE_UNIT < 1 << 36, "an address space is shorter than that");

#[cfg(test)]
mod tests {
    use super::super::rounded;
    use super::*;
    use crate::units::MIB;

    const BASE: Address = 512 * GRANULE;

    /// What [`Heap::thriftiest`] is to find, by looking at the views of every block.
    fn by_looking_at_all(heap: &Heap, bytes: Bytes, ends: bool) -> Option<(BlockId, bool)> {
        let views: Vec<_> = heap.views().map(|(_, view)| (view.address, view.end())).collect();
        let mut best: Option<((Bytes, Bytes), BlockId, bool)> = None;
        let free = &heap.arenas[ArenaKind::Large as usize].free;
        for (id, block) in free.at_least(&heap.blocks, bytes).take(COMPARED) {
            let taken_from = |start: Address| -> Bytes {
                let idle = views.iter().filter(|v| block.start <= v.0 && v.1 <= block.end());
                let over = idle.filter(|view| view.0 < start + bytes && start < view.1);
                over.map(|view| view.1 - view.0).sum()
            };
            let (front, back) = (taken_from(block.start), taken_from(block.end() - bytes));
            let taken = if ends { front.min(back) } else { front };
            if best.is_none_or(|(least, ..)| (taken, block.bytes) < least) {
                best = Some(((taken, block.bytes), id, ends && back < front));
            }
            if taken == 0 {
                break;
            }
        }
        best.map(|(_, id, end)| (id, end))
    }

    #[test]
    fn the_block_with_the_least_idle_memory_is_found_without_a_look_at_most_views() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut heap = Heap::new(None);
        heap.add_range(BASE, 256 * GRANULE, 0, ArenaKind::Large);
        let mut slots = std::collections::HashMap::new();
        let (mut at, mut handle) = (BASE, 0);
        while at < BASE + 200 * GRANULE {
            let bytes = GRANULE << next(4);
            slots.extend(heap.attach(at, bytes, handle).unwrap().1);
            (at, handle) = (at + bytes, handle + 1);
        }
        let mut live = Vec::new();
        let mut at_ends = 0;
        for _ in 0..3000 {
            let bytes = rounded(MIB + 1 + next(12 * MIB));
            let (front, any) = (heap.thriftiest::<false>(bytes), heap.thriftiest::<true>(bytes));
            assert_eq!(front, by_looking_at_all(&heap, bytes, false));
            assert_eq!(any, by_looking_at_all(&heap, bytes, true));
            at_ends += usize::from(any.is_some_and(|(_, end)| end));
            heap.moves = next(2) as usize * heap.views.len();
            match heap.allocate(bytes, bytes) {
                Some(address) => live.push(address),
                None => assert!(front.is_none()),
            }
            while live.len() > 40 || (front.is_none() && !live.is_empty()) {
                let address = live.swap_remove(next(live.len() as u64) as usize);
                assert!(heap.free(slots[&(address / GRANULE * GRANULE)], address));
                if next(3) > 0 {
                    break;
                }
            }
        }
        assert!(at_ends > 100, "{at_ends}");
        heap.is_valid().unwrap();
    }
}
