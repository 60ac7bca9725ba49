//! From an address to the block that starts there, or lies around it.

use super::Heap;
use super::block::{BlockId, State};
use super::slots::LARGE_PAGE;
use crate::units::{Address, Bytes, GRANULE, align_down};

/// What a lookup by address found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The start of a live allocation.
    Live(BlockId),
    /// The start of one that was freed and waits for other streams, or is kept for reuse.
    Freed,
    /// Inside a live allocation (start, bytes asked for).
    Interior(Address, Bytes),
    /// Not in use.
    Nothing,
}

impl Heap {
    /// What is at `address`, which lies in the granule of `slot`, a number of the page map.
    #[inline]
    pub(crate) fn lookup(&self, slot: u32, address: Address) -> Lookup {
        let Some(page) = self.slots.get((slot & !LARGE_PAGE) as usize) else {
            return Lookup::Nothing;
        };
        if page.base != align_down(address, GRANULE) {
            return Lookup::Nothing;
        }
        let shift = page.unit_shift;
        let offset = ((address - page.base) >> shift) as usize;
        let entry = page.starts.get(offset).copied().unwrap_or(0);
        if entry != 0 {
            let block = &self.blocks[entry - 1];
            if block.start == address {
                return if block.state.is_live() { Lookup::Live(entry - 1) } else { Lookup::Freed };
            }
        }
        self.lookup_inside(address)
    }

    /// The cold part of a lookup: which block the address lies in.
    #[cold]
    fn lookup_inside(&self, address: Address) -> Lookup {
        let Some(block) = self.block_over(address) else {
            return Lookup::Nothing;
        };
        match block.state {
            State::Live | State::Shared => Lookup::Interior(block.start, block.requested),
            State::Quick | State::Pending | State::Free => Lookup::Freed,
            State::Hole | State::Dormant | State::Ceded | State::Lent | State::Blocked => {
                Lookup::Nothing
            }
        }
    }
}
