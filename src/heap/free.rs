//! Freeing: from an address to its block, which is kept aside or goes back.

use super::Heap;
use super::block::{Block, BlockId, NONE, State};
use super::idle::idle_between;
use super::size::{ArenaKind, LARGE_CLASS};
use super::slots::LARGE_PAGE;
use crate::units::{Address, GRANULE};

impl Heap {
    /// Frees the allocation that starts at `address`, in the granule of `slot`, if it is live and
    /// no other stream uses it. Else nothing changes, and it says false.
    pub(crate) fn free(&mut self, slot: u32, address: Address) -> bool {
        debug_assert!(!self.has_at_hand());
        match slot & LARGE_PAGE {
            0 => match self.live_at(ArenaKind::Small, slot, address) {
                Some(id) => self.keep_aside(id),
                None => return false,
            },
            _ => return self.keep_large(slot, address),
        }
        true
    }

    /// Does so in a page of small requests; or it leaves it to [`free`](Heap::free), as it does
    /// where the block is not to be at hand. There may be one at hand, which is laid down for
    /// others.
    #[inline(always)]
    pub(crate) fn keep_small(&mut self, slot: u32, address: Address) -> bool {
        if self.recent_start == address {
            return self.keep_at_hand();
        }
        // Else it would come to lie on top of what is freed after it.
        if self.has_at_hand() {
            self.lay_down_here();
        }
        let Some(id) = self.starting_at(ArenaKind::Small, slot, address) else {
            return false;
        };
        match self.blocks.get(id) {
            Some(block) if block.start == address && block.state == State::Live => {
                self.keep_aside(id);
                true
            }
            _ => false,
        }
    }

    /// Keeps a small block aside that was live.
    #[inline(always)]
    fn keep_aside(&mut self, id: BlockId) {
        let block = &mut self.blocks[id];
        let class = block.class;
        debug_assert!(class < LARGE_CLASS);
        block.state = State::Quick;
        block.bin_next = self.quick.first(class);
        self.quick.set_first(class, id);
        self.tally.free_small(block.bytes, block.requested);
    }

    /// Does so in a page of large requests, of which the last block alone is kept.
    #[inline(always)]
    pub(crate) fn keep_large(&mut self, slot: u32, address: Address) -> bool {
        let Some(id) = self.live_at(ArenaKind::Large, slot, address) else {
            return false;
        };
        let block = &mut self.blocks[id];
        debug_assert_eq!(block.class, LARGE_CLASS);
        block.state = State::Quick;
        block.bin_next = NONE;
        self.tally.free_large(block.bytes, block.requested);
        let displaced = self.quick.first(LARGE_CLASS);
        self.quick.set_first(LARGE_CLASS, id);
        if displaced != NONE {
            self.give_back_to(ArenaKind::Large, displaced);
        }
        true
    }

    /// The block that starts at `address`, in a page of that arena, if it is live and no other
    /// stream uses it.
    #[inline(always)]
    fn live_at(&self, kind: ArenaKind, slot: u32, address: Address) -> Option<BlockId> {
        let id = match self.recent_start == address {
            true => self.blocks.recent,
            false => self.starting_at(kind, slot, address)?,
        };
        let block = self.blocks.get(id)?;
        (block.start == address && block.state == State::Live).then_some(id)
    }

    /// What is noted to start at an address in the granule of a slot; whatever page that is, so
    /// that the block may be another or none.
    #[inline(always)]
    fn starting_at(&self, kind: ArenaKind, slot: u32, address: Address) -> Option<BlockId> {
        let page = self.slots.get((slot & !LARGE_PAGE) as usize)?;
        let offset = (address & (GRANULE - 1)) >> kind.unit_shift();
        Some(page.starts.get(offset as usize)?.wrapping_sub(1))
    }

    /// Turns a live block into one that waits for other streams.
    pub(crate) fn defer(&mut self, id: BlockId) {
        let block = &mut self.blocks[id];
        debug_assert_eq!(block.state, State::Shared);
        block.state = State::Pending;
        self.tally.defer(block.arena, block.bytes);
    }

    /// Ends the wait of a deferred block.
    pub(crate) fn complete(&mut self, id: BlockId) {
        let block = &self.blocks[id];
        debug_assert_eq!(block.state, State::Pending);
        self.tally.complete(block.arena, block.bytes, block.requested);
        self.give_back(id);
    }

    /// Puts a block that nobody uses into the free index, joined with its free neighbours; gives
    /// the block that they come to.
    #[inline(never)]
    pub(crate) fn give_back(&mut self, id: BlockId) -> BlockId {
        // Each on its own: the compiler leaves out what the other needs.
        match self.blocks[id].arena {
            ArenaKind::Small => self.give_back_to(ArenaKind::Small, id),
            ArenaKind::Large => self.give_back_to(ArenaKind::Large, id),
        }
    }

    #[inline(always)]
    pub(super) fn give_back_to(&mut self, kind: ArenaKind, id: BlockId) -> BlockId {
        let block = &mut self.blocks[id];
        block.state = State::Free;
        block.since = self.marks;
        let (start, range) = (block.start, block.range);
        if start == self.recent_start {
            self.recent_start = Address::MAX;
        }
        self.set_start(range, start, kind, 0);
        self.insert_free(kind, id)
    }

    /// Joins a free block that is in no index with its free neighbours and indexes the result.
    #[inline(always)]
    pub(super) fn insert_free(&mut self, kind: ArenaKind, id: BlockId) -> BlockId {
        let free = &mut self.arenas[kind as usize].free;
        let (table, vacant) = self.blocks.parts();
        let Block { mut start, mut bytes, mut since, previous, range, next: mut after, .. } =
            table[id as usize];
        let mut first = id;
        free.count += 1;
        free.bytes += bytes;
        if let Some(before) = table.get(previous as usize)
            && before.state == State::Free
        {
            start = before.start;
            bytes += before.bytes;
            since = since.max(before.since);
            free.count -= 1;
            free.unlink(table, previous);
            table[id as usize].bin_next = std::mem::replace(vacant, id);
            first = previous;
        }
        if let Some(behind) = table.get(after as usize)
            && behind.state == State::Free
        {
            let (gone, next) = (after, behind.next);
            bytes += behind.bytes;
            since = since.max(behind.since);
            free.count -= 1;
            free.unlink(table, gone);
            table[gone as usize].bin_next = std::mem::replace(vacant, gone);
            after = next;
        }
        if let Some(after) = table.get_mut(after as usize) {
            after.previous = first;
        }
        let block = &mut table[first as usize];
        (block.bytes, block.since, block.next) = (bytes, since, after);
        if kind == ArenaKind::Large {
            block.set_idle(idle_between(&self.ranges, range, start, start + bytes));
        }
        free.link(table, first);
        first
    }
}
