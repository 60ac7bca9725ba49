//! From an address to the heap that it belongs to, in constant time and without a lock: a two-level
//! table over 47 bits of address, one entry a granule, shared by all devices (whose addresses never
//! overlap).

#![allow(
    unsafe_code,
    reason = "an entry is a pointer: numbers cost a quarter of a free to resolve"
)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::sync::{AtomicPtr, AtomicU32, MODEL, Mutex, Ordering};
use crate::units::{Address, GRANULE, boxed};

const ADDRESS_BITS: u32 = if MODEL { 23 } else { 47 };
/// Of a heap's addresses the first are used most: a leaf is of few pages, since each costs a fault
/// when the leaf is made.
const LEAF_BITS: u32 = if MODEL { 1 } else { 11 };
const LEAF: usize = 1 << LEAF_BITS;
const ROOT: usize = 1 << (ADDRESS_BITS - LEAF_BITS - GRANULE.trailing_zeros());

/// To whom a granule belongs: the owner, or null, and the page slot in its heap. The slot is
/// written before the owner and read after it: a new owner comes with its own slot. Who reads the
/// old owner may read a newer slot with it, and sees that in that heap it describes another place.
/// A granule has a heap's address only as long as it is the heap's, so that this happens to
/// addresses alone that are not live.
struct Entry<T> {
    owner: AtomicPtr<T>,
    slot: AtomicU32,
}

type Leaf<T> = [Entry<T>; LEAF];

/// The table. It keeps each owner that it ever named, and each leaf, so that what its pointers lead
/// to is there as long as the map.
pub(crate) struct PageMap<T> {
    /// Leaves by the upper bits of an address. Those without an entry are all the same one, so that
    /// a look-up need not ask whether there is a leaf.
    root: Box<[AtomicPtr<Leaf<T>>; ROOT]>,
    /// The address of that one.
    empty: usize,
    kept: Mutex<Kept<T>>,
}

/// What the pointers of a map lead to. Nothing is ever removed.
struct Kept<T> {
    /// By the place in the root; the empty leaf is at `ROOT`.
    leaves: HashMap<usize, Arc<Leaf<T>>>,
    /// By address; and the one that was named last, mostly the next one, too.
    owners: HashMap<usize, Arc<T>>,
    last_owner: usize,
}

impl<T> std::fmt::Debug for PageMap<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageMap").field("leaves", &self.kept.lock().leaves.len()).finish()
    }
}

impl<T> PageMap<T> {
    pub(crate) fn new() -> Self {
        let empty = new_leaf();
        let pointer = Arc::as_ptr(&empty).cast_mut();
        let root = boxed((0..ROOT).map(|_| AtomicPtr::new(pointer)));
        let leaves = HashMap::from([(ROOT, empty)]);
        let kept = Kept { leaves, owners: HashMap::new(), last_owner: 0 };
        PageMap { root, kept: Mutex::new(kept), empty: pointer.addr() }
    }

    /// To whom the granule around `address` belongs, and its page slot there.
    #[inline(always)]
    pub(crate) fn get(&self, address: Address) -> Option<(&T, u32)> {
        let page = (address / GRANULE) as usize;
        let leaf = self.root.get(page >> LEAF_BITS)?.load(Ordering::Acquire);
        // SAFETY: every pointer in the root was taken from an `Arc` in `kept`, from which nothing
        // is removed before the map goes, and the map is borrowed for as long as the reference.
        let leaf = unsafe { &*leaf };
        let entry = &leaf[page & (LEAF - 1)];
        let owner = entry.owner.load(Ordering::Acquire);
        // SAFETY: it is null or was taken from an `Arc` in `kept`, as above.
        let owner = unsafe { owner.as_ref() }?;
        Some((owner, entry.slot.load(Ordering::Relaxed)))
    }

    /// Gives the granule at `address` to an owner, which lives as long as the map from now on;
    /// false where the address is beyond 47 bits.
    #[cfg(test)]
    pub(crate) fn set(&self, address: Address, owner: &Arc<T>, slot: u32) -> bool {
        self.set_row(owner, address, std::iter::once(slot))
    }

    /// Gives granules, each with its page slot, to an owner, which lives as long as the map from
    /// now on; false where one of them is beyond 47 bits.
    pub(crate) fn set_all(&self, owner: &Arc<T>, granules: &[(Address, u32)]) -> bool {
        let mut within = true;
        for row in granules.chunk_by(|one, next| next.0.checked_sub(one.0) == Some(GRANULE)) {
            within &= self.set_row(owner, row[0].0, row.iter().map(|granule| granule.1));
        }
        within
    }

    /// The same of granules side by side, the first of which is at `address`.
    pub(crate) fn set_row(
        &self,
        owner: &Arc<T>,
        address: Address,
        mut slots: impl ExactSizeIterator<Item = u32>,
    ) -> bool {
        let pointer = Arc::as_ptr(owner);
        let mut kept = self.kept.lock();
        if kept.last_owner != pointer.addr() {
            kept.owners.entry(pointer.addr()).or_insert_with(|| Arc::clone(owner));
            kept.last_owner = pointer.addr();
        }
        let mut at = address;
        while slots.len() > 0 {
            let Some(leaf) = self.leaf(&mut kept, place_of(at)) else {
                return false;
            };
            let here = &leaf[entry_of(at)..];
            for (entry, slot) in here.iter().zip(&mut slots) {
                entry.set(pointer.cast_mut(), slot);
            }
            at += here.len() as u64 * GRANULE;
        }
        true
    }

    /// Takes the granule at `address` from its owner.
    #[cfg(test)]
    pub(crate) fn clear(&self, address: Address) {
        self.clear_all(address, 1);
    }

    /// Takes so many granules from `address` on from their owners.
    pub(crate) fn clear_all(&self, address: Address, granules: u64) {
        let mut kept = self.kept.lock();
        let (mut at, end) = (address, address + granules * GRANULE);
        while at < end {
            let entry = entry_of(at);
            let here = (LEAF - entry).min(((end - at) / GRANULE) as usize);
            if let Some(leaf) = self.leaf(&mut kept, place_of(at)) {
                for entry in &leaf[entry..entry + here] {
                    entry.set(std::ptr::null_mut(), 0);
                }
            }
            at += here as u64 * GRANULE;
        }
    }

    /// The leaf at a place in the root, which is made if there is none yet.
    fn leaf(&self, kept: &mut Kept<T>, place: usize) -> Option<&Leaf<T>> {
        let root = self.root.get(place)?;
        // Leaves are put there under this lock.
        let mut leaf = root.load(Ordering::Relaxed);
        if leaf.addr() == self.empty {
            leaf = Arc::as_ptr(kept.leaves.entry(place).or_insert_with(new_leaf)).cast_mut();
            root.store(leaf, Ordering::Release);
        }
        // SAFETY: it was taken from an `Arc` in `kept`, from which nothing is removed before the
        // map goes, and the map is borrowed for as long as the reference.
        Some(unsafe { &*leaf })
    }
}

impl<T> Entry<T> {
    fn set(&self, owner: *mut T, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
        self.owner.store(owner, Ordering::Release);
    }
}

/// Where the leaf of an address is in the root.
fn place_of(address: Address) -> usize {
    (address / GRANULE) as usize >> LEAF_BITS
}

/// Where the entry of an address is in its leaf.
fn entry_of(address: Address) -> usize {
    (address / GRANULE) as usize & (LEAF - 1)
}

/// Made where it stays: it is long.
fn new_leaf<T>() -> Arc<Leaf<T>> {
    let vacant = |_| Entry { owner: AtomicPtr::default(), slot: AtomicU32::new(0) };
    let entries: Arc<[Entry<T>]> = (0..LEAF).map(vacant).collect();
    match entries.try_into() {
        Ok(leaf) => leaf,
        Err(_) => unreachable!("as many entries as there are places"),
    }
}

#[cfg(all(test, loom))]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_set_and_nothing_else() {
        let map = PageMap::new();
        let owner = Arc::new("owner");
        assert!(map.set(0x7fff_ffe0_0000, &owner, u32::MAX));
        assert_eq!(map.get(0x7fff_ffe0_1234), Some((&"owner", u32::MAX)));
        assert_eq!(map.get(0x7fff_ffc0_0000), None);
        map.clear(0x7fff_ffe0_0000);
        assert_eq!(map.get(0x7fff_ffe0_0000), None);
        assert_eq!(map.get(u64::MAX), None);
        assert!(!map.set(u64::MAX, &owner, 0));
    }

    #[test]
    fn granules_in_a_row_are_entered_over_the_border_of_leaves() {
        let map = PageMap::new();
        let owner = Arc::new(7);
        let leaf = LEAF as u64 * GRANULE;
        assert!(map.set_row(&owner, 2 * leaf - 2 * GRANULE, 0..4));
        let beyond = (u64::MAX / GRANULE * GRANULE, 9);
        assert!(!map.set_all(&owner, &[(leaf, 8), beyond, (leaf + GRANULE, 10)]));
        let slot = |at: u64| map.get(at * GRANULE).map(|(_, slot)| slot);
        let first = 2 * LEAF as u64 - 3;
        let found: Vec<_> = (first..first + 6).map(slot).collect();
        assert_eq!(found, [None, Some(0), Some(1), Some(2), Some(3), None]);
        assert_eq!([LEAF as u64, LEAF as u64 + 1].map(slot), [Some(8), Some(10)]);
        assert_eq!(map.kept.lock().leaves.len(), 3, "the empty one and the two of these");
    }

    #[test]
    fn an_owner_stays_as_long_as_the_map() {
        let map = PageMap::new();
        let owner = Arc::new(7);
        assert!(map.set(0, &owner, 1));
        let kept = Arc::downgrade(&owner);
        drop(owner);
        assert_eq!(map.get(0), Some((&7, 1)));
        map.clear(0);
        assert!(kept.upgrade().is_some(), "a reader may still hold what it was");
        drop(map);
        assert!(kept.upgrade().is_none());
    }
}
