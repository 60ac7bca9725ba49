//! The lock of a heap, as those take it who want the heap as a whole, and those who want a block.

use crate::heap::Heap;
use crate::lock::{Mutex, MutexGuard};

/// A heap behind its lock.
#[derive(Debug)]
pub(crate) struct HeapLock(Mutex<Heap>);

impl HeapLock {
    pub(super) fn new(heap: Heap) -> Self {
        HeapLock(Mutex::new(heap))
    }

    /// Waits for the heap, which then has no block at hand.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Heap> {
        without_hand(self.0.lock())
    }

    /// The same if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Heap>> {
        self.0.try_lock().map(without_hand)
    }

    /// The same, with the block at hand that there may be: of a heap that has one, only what takes
    /// or frees one block can be called, and what it has counted.
    #[inline(always)]
    pub(crate) fn try_lock_as_left(&self) -> Option<MutexGuard<'_, Heap>> {
        self.0.try_lock()
    }
}

#[inline]
fn without_hand(mut heap: MutexGuard<'_, Heap>) -> MutexGuard<'_, Heap> {
    if heap.has_at_hand() {
        heap.lay_down();
    }
    heap
}
