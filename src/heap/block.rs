//! Blocks: the pieces into which address ranges are divided, in one table by number.

use super::size::{ArenaKind, LARGE_CLASS, LARGE_UNIT};
use crate::units::{Address, Bytes, GRANULE, make_room};

/// The number of a block in its heap's table.
pub(crate) type BlockId = u32;
/// No block.
pub(crate) const NONE: BlockId = u32::MAX;
/// What stands for the room beside idle memory where there is none of that.
const NO_IDLE: u32 = u32::MAX;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Memory that nobody uses, in the free index.
    Free,
    /// Memory that nobody uses, kept aside for the next request of its size class.
    Quick,
    /// Handed out.
    Live,
    /// Handed out, and other streams were recorded as users.
    Shared,
    /// Freed by its owner, but other streams may still use it.
    Pending,
    /// Addresses with no memory behind them.
    Hole,
    /// Addresses that are still mapped to a handle which is in use at another address now.
    Dormant,
    /// Addresses that serve another heap now, with whatever is mapped there.
    Ceded,
    /// Memory that is in use at other addresses (see `lend`).
    Lent,
    /// The part of a borrowed view that was not borrowed.
    Blocked,
}

/// One block. Neighbours by address are linked; free blocks are linked in their bin as well, and
/// blocks kept aside in their class. Each has a cache line of its own.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) start: Address,
    pub(crate) bytes: Bytes,
    /// The bytes asked for, while live or pending. While free in the arena of large requests it is
    /// [`idle`](Block::idle).
    pub(crate) requested: Bytes,
    pub(crate) previous: BlockId,
    pub(crate) next: BlockId,
    pub(crate) bin_previous: BlockId,
    pub(crate) bin_next: BlockId,
    /// While free: the mark of the stream that comes after its last use (see `engine::marks`).
    pub(crate) since: u64,
    /// The range that it lies in.
    pub(crate) range: u32,
    /// For a dormant block: its view. While free in the arena of large requests: how much a request
    /// may take at one end without any idle memory.
    pub(crate) view: u32,
    pub(crate) state: State,
    pub(crate) arena: ArenaKind,
    /// The size class, while handed out or kept aside.
    pub(crate) class: u8,
    /// While free: its bin.
    pub(crate) bin: u16,
}

impl State {
    /// Whether it is handed out.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, State::Live | State::Shared)
    }

    /// Whether other streams were recorded as its users.
    pub(crate) fn is_shared(self) -> bool {
        self == State::Shared
    }
}

impl Block {
    /// A free block of nothing, which is to be given what is not here.
    #[inline(always)]
    pub(super) fn of(arena: ArenaKind, range: u32) -> Block {
        Block {
            start: 0,
            bytes: 0,
            requested: 0,
            previous: NONE,
            next: NONE,
            bin_previous: NONE,
            bin_next: NONE,
            since: 0,
            range,
            view: NO_IDLE,
            state: State::Free,
            arena,
            class: LARGE_CLASS,
            bin: 0,
        }
    }

    pub(crate) fn end(&self) -> Address {
        self.start + self.bytes
    }

    /// Of a free block in the arena of large requests: the part that is idle memory, which is whole
    /// views, as start and end; none is an end that is not beyond the start.
    pub(crate) fn idle(&self) -> (Address, Address) {
        let (start, end) = self.idle_granules();
        (start * GRANULE, end * GRANULE)
    }

    /// The same in granules, from address 0 on.
    #[inline(always)]
    pub(crate) fn idle_granules(&self) -> (u64, u64) {
        let start = self.requested >> 32;
        (start, start + self.idle_count())
    }

    /// How many granules that are.
    #[inline(always)]
    fn idle_count(&self) -> u64 {
        u64::from(self.requested as u32)
    }

    /// Notes that. Views begin and end at granules, of which an address space has 2^27.
    #[inline(always)]
    pub(crate) fn set_idle(&mut self, (start, end): (Address, Address)) {
        (self.requested, self.view) = (0, NO_IDLE);
        if start < end {
            debug_assert!(start.is_multiple_of(GRANULE) && end.is_multiple_of(GRANULE));
            debug_assert!(end / GRANULE <= u64::from(u32::MAX));
            let beside = (start - self.start).max(self.end() - end) / LARGE_UNIT;
            debug_assert!(beside < u64::from(NO_IDLE), "that is less than a view");
            self.requested = ((start / GRANULE) << 32) | ((end - start) / GRANULE);
            self.view = beside as u32;
        }
    }

    /// Whether what is noted of idle memory is what this comes to.
    pub(super) fn notes_idle(&self, idle: (Address, Address)) -> bool {
        let mut block = self.clone();
        block.set_idle(idle);
        (block.requested, block.view) == (self.requested, self.view)
    }

    /// The most that a request may have without any of the idle memory: of the front, or of either
    /// end. In units of the arena; more than any request where there is no idle memory.
    #[inline(always)]
    fn beside_idle<const ENDS: bool>(&self) -> i64 {
        if ENDS || self.view == NO_IDLE {
            return i64::from(self.view);
        }
        ((self.idle().0 - self.start) / LARGE_UNIT) as i64
    }

    /// How many granules of its idle memory a request of so many units takes at least, at the front
    /// or where it takes less: as many as if each were a view. `None` where it takes none.
    #[inline(always)]
    pub(crate) fn idle_taken_at_least<const ENDS: bool>(&self, units: u64) -> Option<u64> {
        const UNITS: i64 = (GRANULE / LARGE_UNIT) as i64;
        // Rounded down below zero, too.
        let taken = (units as i64 + UNITS - 1 - self.beside_idle::<ENDS>()) >> UNITS.ilog2();
        (taken > 0).then_some((taken as u64).min(self.idle_count()))
    }

    /// Whether a request takes idle memory at the front.
    pub(crate) fn begins_idle(&self, bytes: Bytes) -> bool {
        let (start, end) = self.idle();
        start < end && self.start + bytes > start
    }
}

/// All blocks of a heap; numbers are reused.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct BlockTable {
    blocks: Vec<Block>,
    /// The first of the numbers that are not in use, which are linked as blocks of a bin are.
    vacant: BlockId,
    /// The block that was last taken from those kept aside (see `Heap::recent_start`). It is here
    /// to fill a gap.
    pub(crate) recent: BlockId,
}

impl BlockTable {
    pub(crate) fn new() -> Self {
        BlockTable { blocks: Vec::new(), vacant: NONE, recent: NONE }
    }

    pub(crate) fn insert(&mut self, block: Block) -> BlockId {
        let id = self.reserve();
        self.blocks[id as usize] = block;
        id
    }

    /// A number for a block that is still to be written.
    #[inline(always)]
    pub(super) fn reserve(&mut self) -> BlockId {
        let id = self.vacant;
        match self.blocks.get(id as usize) {
            Some(vacant) => {
                self.vacant = vacant.bin_next;
                id
            }
            None => self.append(),
        }
    }

    #[cold]
    fn append(&mut self) -> BlockId {
        debug_assert!(self.blocks.len() < NONE as usize);
        make_room(&mut self.blocks, 1);
        self.blocks.push(Block::of(ArenaKind::Small, 0));
        (self.blocks.len() - 1) as BlockId
    }

    /// All of them, so that many are found with one look at where they are, and the first of the
    /// numbers that are not in use. [`NONE`] is beyond the end.
    #[inline(always)]
    pub(super) fn parts(&mut self) -> (&mut [Block], &mut BlockId) {
        (&mut self.blocks, &mut self.vacant)
    }

    /// A block, where there is one of that number.
    pub(crate) fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize)
    }

    /// The same, to be changed.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: BlockId) -> Option<&mut Block> {
        self.blocks.get_mut(id as usize)
    }

    /// The block that was last taken from those kept aside.
    #[inline(always)]
    pub(super) fn recent_mut(&mut self) -> Option<&mut Block> {
        self.blocks.get_mut(self.recent as usize)
    }

    pub(crate) fn remove(&mut self, id: BlockId) {
        self.blocks[id as usize].bin_next = self.vacant;
        self.vacant = id;
    }

    /// How many blocks there are, counted.
    pub(crate) fn count(&self) -> usize {
        let next = |&id: &BlockId| self.get(id).map(|block| block.bin_next);
        let vacant = std::iter::successors(Some(self.vacant), next).count() - 1;
        self.blocks.len() - vacant
    }
}

impl std::ops::Index<BlockId> for BlockTable {
    type Output = Block;

    #[inline]
    fn index(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }
}

impl std::ops::IndexMut<BlockId> for BlockTable {
    #[inline]
    fn index_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }
}
