//! Telling a tool of allocations, where there is one.

use super::{Engine, PageEntry};
use crate::heap::Lookup;
use crate::units::{Address, Bytes};

impl Engine {
    /// Tells of a new allocation. Its block counts as shared with others, so that its free leaves
    /// the hot path, which asks for nothing else.
    pub(super) fn tell_allocated(&self, address: Address, bytes: Bytes) {
        let Some(announcer) = self.announcer.as_ref().filter(|_| address != 0) else {
            return;
        };
        announcer.allocated(address, bytes);
        let Some((shard, slot)) = self.map.get(address) else {
            return;
        };
        let at = PageEntry { shard, slot };
        let mut heap = at.shard.heap.lock();
        if let Lookup::Live(block) = heap.lookup(at.slot, address) {
            heap.set_shared(block);
        }
    }

    /// Tells that an allocation ends, before its memory can be used again.
    pub(super) fn tell_freed(&self, address: Address) {
        if let Some(announcer) = &self.announcer {
            announcer.freed(address);
        }
    }
}
