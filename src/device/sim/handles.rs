//! The physical handles of one machine, by their ids.

use super::os::MemoryFile;
use crate::device::HandleId;
use crate::units::{Bytes, make_room};

/// Physical memory.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) device: usize,
    pub(super) bytes: Bytes,
    /// Where its bytes start in their file.
    pub(super) offset: Bytes,
    /// The file of the bank that they were imported from; `None`: that of its own.
    pub(super) imported: Option<MemoryFile>,
    /// It was exported, so that others may hold it.
    pub(super) exported: bool,
    /// Network cards reach it. There is none here, but it has its price.
    pub(super) rdma: bool,
    /// At how many addresses it is mapped.
    pub(super) mappings: usize,
    /// The caller has given it back; it lives on while it is mapped.
    pub(super) released: bool,
}

/// All handles, each in a slot whose number plus one is the lower half of its id. The upper half
/// counts those that the slot served before, so that no id is given twice.
#[derive(Debug, Default)]
pub(super) struct Handles {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    before: u32,
    handle: Option<Handle>,
}

fn slot_of(id: HandleId) -> usize {
    (id.0 as u32).wrapping_sub(1) as usize
}

impl Handles {
    pub(super) fn insert(&mut self, handle: Handle) -> HandleId {
        let number = match self.vacant.pop() {
            Some(number) => {
                self.slots[number as usize].handle = Some(handle);
                number
            }
            None => {
                make_room(&mut self.slots, 1);
                self.slots.push(Slot { before: 0, handle: Some(handle) });
                (self.slots.len() - 1) as u32
            }
        };
        let before = self.slots[number as usize].before;
        HandleId(u64::from(before) << 32 | u64::from(number + 1))
    }

    pub(super) fn get(&self, id: HandleId) -> Option<&Handle> {
        let slot = self.slots.get(slot_of(id))?;
        slot.handle.as_ref().filter(|_| u64::from(slot.before) == id.0 >> 32)
    }

    pub(super) fn get_mut(&mut self, id: HandleId) -> Option<&mut Handle> {
        let slot = self.slots.get_mut(slot_of(id))?;
        slot.handle.as_mut().filter(|_| u64::from(slot.before) == id.0 >> 32)
    }

    pub(super) fn remove(&mut self, id: HandleId) -> Option<Handle> {
        self.get(id)?;
        let slot = &mut self.slots[slot_of(id)];
        // A slot that has served so many is left alone.
        if let Some(before) = slot.before.checked_add(1) {
            slot.before = before;
            self.vacant.push(slot_of(id) as u32);
        }
        slot.handle.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_one_handle_and_none_after_it() {
        let mut handles = Handles::default();
        let handle = |bytes| Handle {
            device: 0,
            bytes,
            offset: 0,
            imported: None,
            exported: false,
            rdma: false,
            mappings: 0,
            released: false,
        };
        let (first, second) = (handles.insert(handle(1)), handles.insert(handle(2)));
        assert_eq!(handles.remove(first).map(|handle| handle.bytes), Some(1));
        assert!(handles.get(first).is_none() && handles.remove(first).is_none());
        assert_eq!(handles.remove(second).map(|handle| handle.bytes), Some(2));
        let third = handles.insert(handle(3));
        assert_eq!(handles.get_mut(third).map(|handle| handle.bytes), Some(3));
        assert!(handles.get(second).is_none() && third != second);
        assert!(handles.get(HandleId(0)).is_none());
    }
}
