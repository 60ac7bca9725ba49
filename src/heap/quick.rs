//! Blocks that were freed a moment ago, kept aside at their exact size: what is freed and asked for
//! again at once is neither merged with its neighbours nor searched for.
//!
//! Small blocks are kept by size, a few of each. Of large ones only the last is: a large block that
//! is not merged costs memory, since requests are cut from others meanwhile (2 to 6 % of the peak
//! on recorded models), so that it goes back as soon as a large request of another size comes.
//! Everything here goes back before any memory is taken for the heap.

use super::block::BlockId;
use super::size::SMALL_MAX;
use crate::units::Bytes;

const SLOTS: usize = 64;
const DEPTH: usize = 4;
/// The place of the last large block, after those of small ones.
const LARGE: usize = SLOTS;

#[derive(Clone, Copy, Debug)]
struct Slot {
    bytes: Bytes,
    ids: [BlockId; DEPTH],
    len: u32,
}

/// A small hash table from sizes to blocks.
#[derive(Debug)]
pub(crate) struct QuickList {
    slots: Box<[Slot; SLOTS + 1]>,
}

#[inline]
fn slot_of(bytes: Bytes) -> usize {
    if bytes > SMALL_MAX {
        return LARGE;
    }
    // Sizes are multiples of 512.
    let n = bytes >> 9;
    ((n ^ (n >> 6)) as usize) & (SLOTS - 1)
}

impl QuickList {
    pub(crate) fn new() -> Self {
        let empty = Slot { bytes: 0, ids: [0; DEPTH], len: 0 };
        QuickList { slots: Box::new([empty; SLOTS + 1]) }
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

    /// Keeps a block. Gives the block that has to go back to the index for that: this one where
    /// there is no room for it, or another of which it takes the place.
    #[inline]
    pub(crate) fn keep(&mut self, bytes: Bytes, id: BlockId) -> Option<BlockId> {
        let place = slot_of(bytes);
        let slot = &mut self.slots[place];
        if place == LARGE && slot.len > 0 {
            let last = std::mem::replace(&mut slot.ids[0], id);
            slot.bytes = bytes;
            return Some(last);
        }
        if slot.len == 0 {
            slot.bytes = bytes;
        } else if slot.bytes != bytes || slot.len as usize == DEPTH {
            return Some(id);
        }
        slot.ids[slot.len as usize % DEPTH] = id;
        slot.len += 1;
        None
    }

    /// Takes the large block out that is kept.
    #[inline]
    pub(crate) fn pop_large(&mut self) -> Option<BlockId> {
        let slot = &mut self.slots[LARGE];
        (std::mem::take(&mut slot.len) > 0).then_some(slot.ids[0])
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
