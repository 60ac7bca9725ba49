//! What a real device has given out, kept beside it: its driver counts the memory of other programs
//! too.

use std::collections::{BTreeMap, HashMap};

use plugalloc::device::HandleId;
use plugalloc::{Address, Bytes};

/// Physical memory by what holds it.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    handles: HashMap<HandleId, Handle>,
    /// What is mapped, by address.
    mappings: BTreeMap<Address, HandleId>,
    allocations: HashMap<Address, Bytes>,
    used: Bytes,
    used_peak: Bytes,
}

#[derive(Debug)]
struct Handle {
    bytes: Bytes,
    mappings: usize,
    released: bool,
}

impl Accounts {
    pub(crate) fn used(&self) -> Bytes {
        self.used
    }

    pub(crate) fn used_peak(&self) -> Bytes {
        self.used_peak
    }

    /// Makes the peak what is used now.
    pub(crate) fn reset_peak(&mut self) {
        self.used_peak = self.used;
    }

    pub(crate) fn create(&mut self, handle: HandleId, bytes: Bytes) {
        self.handles.insert(handle, Handle { bytes, mappings: 0, released: false });
        self.take(bytes);
    }

    /// The handle is gone once nothing maps it.
    pub(crate) fn release(&mut self, handle: HandleId) {
        if let Some(entry) = self.handles.get_mut(&handle) {
            entry.released = true;
            self.forget_unused(handle);
        }
    }

    pub(crate) fn map(&mut self, address: Address, handle: HandleId) {
        if let Some(entry) = self.handles.get_mut(&handle) {
            entry.mappings += 1;
            self.mappings.insert(address, handle);
        }
    }

    /// Takes away the mappings that begin within the span.
    pub(crate) fn unmap(&mut self, address: Address, bytes: Bytes) {
        let span = address..address + bytes;
        while let Some((&at, &handle)) = self.mappings.range(span.clone()).next() {
            self.mappings.remove(&at);
            if let Some(entry) = self.handles.get_mut(&handle) {
                entry.mappings -= 1;
                self.forget_unused(handle);
            }
        }
    }

    pub(crate) fn malloc(&mut self, address: Address, bytes: Bytes) {
        self.allocations.insert(address, bytes);
        self.take(bytes);
    }

    pub(crate) fn free(&mut self, address: Address) {
        self.used -= self.allocations.remove(&address).unwrap_or(0);
    }

    fn take(&mut self, bytes: Bytes) {
        self.used += bytes;
        self.used_peak = self.used_peak.max(self.used);
    }

    fn forget_unused(&mut self, handle: HandleId) {
        let unused = |entry: &Handle| entry.released && entry.mappings == 0;
        if self.handles.get(&handle).is_some_and(unused) {
            self.used -= self.handles.remove(&handle).map_or(0, |entry| entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_counts_until_it_is_released_and_unmapped() {
        let mut accounts = Accounts::default();
        accounts.create(HandleId(1), 10);
        accounts.map(100, HandleId(1));
        accounts.map(200, HandleId(1));
        accounts.release(HandleId(1));
        accounts.unmap(100, 10);
        assert_eq!(accounts.used(), 10);
        accounts.unmap(200, 10);
        assert_eq!((accounts.used(), accounts.used_peak()), (0, 10));
    }

    #[test]
    fn a_span_of_several_mappings_is_unmapped_at_once() {
        let mut accounts = Accounts::default();
        for handle in 0..3 {
            accounts.create(HandleId(handle), 10);
            accounts.map(handle * 10, HandleId(handle));
            accounts.release(HandleId(handle));
        }
        accounts.unmap(0, 20);
        assert_eq!(accounts.used(), 10);
    }

    #[test]
    fn allocations_count_until_they_are_freed() {
        let mut accounts = Accounts::default();
        accounts.malloc(512, 7);
        accounts.malloc(1024, 8);
        accounts.free(512);
        assert_eq!((accounts.used(), accounts.used_peak()), (8, 15));
        accounts.reset_peak();
        assert_eq!(accounts.used_peak(), 8);
    }
}
