//! Blocks: the pieces into which address ranges are divided, in one table by number.

use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE, make_room};

/// The number of a block in its heap's table.
pub(crate) type BlockId = u32;
/// No block.
pub(crate) const NONE: BlockId = u32::MAX;

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
    /// For a dormant block: its view.
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
    pub(crate) fn end(&self) -> Address {
        self.start + self.bytes
    }

    /// Of a free block in the arena of large requests: the part that is idle memory, which is whole
    /// views, as start and end; none is an end that is not beyond the start.
    pub(crate) fn idle(&self) -> (Address, Address) {
        let (start, end) = self.idle_granules();
        (start * GRANULE, end * GRANULE)
    }

    /// The same in granules from address 0 on.
    #[inline(always)]
    pub(crate) fn idle_granules(&self) -> (u64, u64) {
        (self.requested >> 32, self.requested & u64::from(u32::MAX))
    }

    /// Notes that. Views begin and end at granules, of which an address space has 2^27.
    pub(crate) fn set_idle(&mut self, (start, end): (Address, Address)) {
        debug_assert!(start.is_multiple_of(GRANULE) && end.is_multiple_of(GRANULE));
        debug_assert!(start.max(end) / GRANULE <= u64::from(u32::MAX));
        self.requested = ((start / GRANULE) << 32) | (end / GRANULE);
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
        let id = self.vacant;
        if let Some(vacant) = self.blocks.get_mut(id as usize) {
            self.vacant = vacant.bin_next;
            *vacant = block;
            return id;
        }
        debug_assert!(self.blocks.len() < NONE as usize);
        make_room(&mut self.blocks, 1);
        self.blocks.push(block);
        (self.blocks.len() - 1) as BlockId
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
