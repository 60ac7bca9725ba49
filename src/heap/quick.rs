//! Blocks that were freed a moment ago, kept aside at their exact size: what is freed and asked for
//! again at once is neither merged with its neighbours nor searched for. Everything here is given
//! back to the free index before any memory is taken for the heap, so that it hides nothing.

use super::block::BlockId;
use crate::units::Bytes;

const SLOTS: usize = 64;
const DEPTH: usize = 4;

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
        QuickList { slots: Box::new([empty; SLOTS]) }
    }

    /// A block of exactly `bytes`.
    #[inline]
    pub(crate) fn take(&mut self, bytes: Bytes) -> Option<BlockId> {
        let slot = &mut self.slots[slot_of(bytes)];
        if slot.bytes != bytes || slot.len == 0 {
            return None;
        }
        slot.len -= 1;
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
        slot.ids[slot.len as usize % DEPTH] = id;
        slot.len += 1;
        true
    }

    /// Takes any block out.
    pub(crate) fn pop(&mut self) -> Option<BlockId> {
        let slot = self.slots.iter_mut().find(|slot| slot.len > 0)?;
        slot.len -= 1;
        Some(slot.ids[slot.len as usize])
    }

    /// Bytes of all blocks kept.
    pub(crate) fn bytes(&self) -> Bytes {
        self.slots.iter().map(|slot| slot.bytes * Bytes::from(slot.len)).sum()
    }

    /// Every block kept.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.slots.iter().flat_map(|slot| slot.ids[..slot.len as usize].iter().copied())
    }
}
