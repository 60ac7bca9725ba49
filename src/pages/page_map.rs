//! From an address to the heap that it belongs to, in constant time and without a lock: a two-level
//! table over 47 bits of address, one entry a granule, shared by all devices (whose addresses never
//! overlap).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::{Address, GRANULE};

const LEAF_BITS: u32 = 13;
const LEAF: usize = 1 << LEAF_BITS;
const ROOT: usize = 1 << (47 - LEAF_BITS - GRANULE.trailing_zeros());

type Leaf = Box<[AtomicU64]>;

/// To whom a granule belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageEntry {
    /// The device's place among the allocator's devices; up to 255.
    pub(crate) device: u32,
    /// The heap's place among the device's shards; below 2^23.
    pub(crate) shard: u32,
    /// The page slot in the heap.
    pub(crate) slot: u32,
}

/// The table.
pub(crate) struct PageMap {
    root: Box<[OnceLock<Leaf>]>,
}

impl std::fmt::Debug for PageMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let leaves = self.root.iter().filter(|leaf| leaf.get().is_some()).count();
        f.debug_struct("PageMap").field("leaves", &leaves).finish()
    }
}

impl PageMap {
    pub(crate) fn new() -> Self {
        PageMap { root: (0..ROOT).map(|_| OnceLock::new()).collect() }
    }

    /// To whom the granule around `address` belongs.
    #[inline]
    pub(crate) fn get(&self, address: Address) -> Option<PageEntry> {
        let page = (address / GRANULE) as usize;
        let leaf = self.root.get(page >> LEAF_BITS)?.get()?;
        let packed = leaf[page & (LEAF - 1)].load(Ordering::Acquire);
        if packed == 0 {
            return None;
        }
        let shard = ((packed >> 32) & 0x7f_ffff) as u32;
        Some(PageEntry { device: ((packed >> 55) & 0xff) as u32, shard, slot: packed as u32 })
    }

    /// Gives the granule at `address` to a heap; false where the address is beyond 47 bits.
    pub(crate) fn set(&self, address: Address, entry: PageEntry) -> bool {
        debug_assert!(entry.device < 256 && entry.shard < 1 << 23);
        let packed = (1 << 63)
            | (u64::from(entry.device) << 55)
            | (u64::from(entry.shard) << 32)
            | u64::from(entry.slot);
        self.store(address, packed)
    }

    /// Takes the granule at `address` from its heap.
    pub(crate) fn clear(&self, address: Address) {
        self.store(address, 0);
    }

    fn store(&self, address: Address, packed: u64) -> bool {
        let page = (address / GRANULE) as usize;
        let Some(root) = self.root.get(page >> LEAF_BITS) else {
            return false;
        };
        let leaf = root.get_or_init(|| (0..LEAF).map(|_| AtomicU64::new(0)).collect());
        leaf[page & (LEAF - 1)].store(packed, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_set_and_nothing_else() {
        let map = PageMap::new();
        let entry = PageEntry { device: 255, shard: (1 << 23) - 1, slot: u32::MAX };
        assert!(map.set(0x7fff_ffe0_0000, entry));
        assert_eq!(map.get(0x7fff_ffe0_1234), Some(entry));
        assert_eq!(map.get(0x7fff_ffc0_0000), None);
        map.clear(0x7fff_ffe0_0000);
        assert_eq!(map.get(0x7fff_ffe0_0000), None);
        assert_eq!(map.get(u64::MAX), None);
        assert!(!map.set(u64::MAX, entry));
    }
}
