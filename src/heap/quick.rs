//! Blocks that were freed a moment ago, kept aside at their exact size: what is freed and asked for again
//! at once is neither merged with its neighbours nor searched for. Everything here is given back to the
//! free index before any memory is taken for the heap, so that it hides nothing.
//!
//! Of large blocks only the one freed last is kept, and only until the next request for another size: a
//! block that is kept does not join its neighbours, so that later requests would cut up larger blocks than
//! they need. For large blocks that costs several percent of the memory in use.

use super::block::{BlockId, NONE};
use crate::units::Bytes;

const SLOTS: usize = 64;
const DEPTH: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Slot {
    bytes: Bytes,
    ids: [BlockId; DEPTH],
    len: u32,
}

/// A small hash table from sizes to blocks.
#[derive(Debug)]
pub(crate) struct QuickList {
    slots: Box<[Slot; SLOTS]>,
    /// The large block that was freed last, or [`NONE`], and its size, or 0.
    last: (BlockId, Bytes),
    /// How many blocks are kept, and their bytes.
    pub(crate) count: u32,
    pub(crate) bytes: Bytes,
}

#[inline]
fn slot_of(bytes: Bytes) -> usize {
    // Sizes are multiples of 512; large ones often of much more.
    let n = bytes >> 9;
    ((n ^ (n >> 6) ^ (n >> 12)) as usize) & (SLOTS - 1)
}

impl QuickList {
    pub(crate) fn new() -> Self {
        let empty = Slot { bytes: 0, ids: [0; DEPTH], len: 0 };
        QuickList { slots: Box::new([empty; SLOTS]), last: (NONE, 0), count: 0, bytes: 0 }
    }

    /// A block of exactly `bytes`.
    #[inline]
    pub(crate) fn take(&mut self, bytes: Bytes) -> Option<BlockId> {
        let slot = &mut self.slots[slot_of(bytes)];
        if slot.bytes != bytes || slot.len == 0 {
            return None;
        }
        slot.len -= 1;
        self.count -= 1;
        self.bytes -= bytes;
        Some(slot.ids[slot.len as usize % DEPTH])
    }

    /// Keeps a block; false where there is no room for it.
    #[inline]
    pub(crate) fn keep(&mut self, bytes: Bytes, id: BlockId) -> bool {
        let slot = &mut self.slots[slot_of(bytes)];
        if slot.len == 0 {
            slot.bytes = bytes;
        } else if slot.bytes != bytes || slot.len as usize == DEPTH {
            return false;
        }
        slot.ids[slot.len as usize] = id;
        slot.len += 1;
        self.count += 1;
        self.bytes += bytes;
        true
    }

    /// Keeps a large block, in place of the one kept until now.
    #[inline]
    pub(crate) fn keep_last(&mut self, bytes: Bytes, id: BlockId) -> Option<BlockId> {
        let before = self.take_last();
        self.last = (id, bytes);
        self.count += 1;
        self.bytes += bytes;
        before
    }

    /// The large block that was freed last.
    #[inline]
    pub(crate) fn take_last(&mut self) -> Option<BlockId> {
        let (id, bytes) = std::mem::replace(&mut self.last, (NONE, 0));
        if id == NONE {
            return None;
        }
        self.count -= 1;
        self.bytes -= bytes;
        Some(id)
    }

    /// The large block that was freed last, where it has exactly `bytes`.
    #[inline]
    pub(crate) fn take_last_of(&mut self, bytes: Bytes) -> Option<BlockId> {
        if self.last.1 == bytes { self.take_last() } else { None }
    }

    /// Takes any block out.
    pub(crate) fn pop(&mut self) -> Option<BlockId> {
        if self.count == 0 {
            return None;
        }
        if let Some(id) = self.take_last() {
            return Some(id);
        }
        let slot = self.slots.iter_mut().find(|slot| slot.len > 0)?;
        slot.len -= 1;
        self.count -= 1;
        self.bytes -= slot.bytes;
        Some(slot.ids[slot.len as usize])
    }

    /// Every block kept.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let last = (self.last.0 != NONE).then_some(self.last.0);
        let slots = self.slots.iter();
        slots.flat_map(|slot| slot.ids[..slot.len as usize].iter().copied()).chain(last)
    }
}
