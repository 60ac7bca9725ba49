//! What most calls run: from a request to a block that is kept aside, and from an address back.
//!
//! These functions call nothing after which they go on: whatever is not quick is called last, and
//! gets the lock of the heap where that is held already. So they need no registers saved and no
//! stack. Each holds the lock of one heap for some tens of instructions.

use super::Allocator;
use crate::engine::{Engine, Look, Shard};
use crate::heap::{Heap, LARGE_PAGE, SMALL_MAX};
use crate::lock::MutexGuard;
use crate::units::{Address, Bytes, DeviceId, StreamId};

/// What does all that there is to an allocation where the hot path does not end in an address.
pub(crate) type Otherwise = fn(&Allocator, DeviceId, Bytes, StreamId) -> Address;

impl Allocator {
    /// Memory that is at hand, or what `otherwise` gives.
    #[inline(always)]
    pub(crate) fn allocate_or(
        &self,
        device: DeviceId,
        bytes: Bytes,
        stream: StreamId,
        otherwise: Otherwise,
    ) -> Address {
        // A negative number is larger than any index.
        let Some(engine) = self.engines.get(device.0 as u32 as usize) else {
            return otherwise(self, device, bytes, stream);
        };
        // Zero bytes, of which nothing is looked for, go the longer way with what is large.
        if bytes.wrapping_sub(1) >= SMALL_MAX {
            return self.allocate_large_or(engine, bytes, stream, otherwise);
        }
        match engine.look::<false>(bytes, stream) {
            Look::Found(address) => address,
            Look::Higher(heap, address) => settle(engine, heap, address),
            Look::Locked(heap) => self.search_small(engine, heap, bytes, stream, otherwise),
            Look::Held(heap) => self.search_held(engine, heap, bytes, stream, otherwise),
            Look::Nothing => self.search(device, bytes, stream, otherwise),
        }
    }

    #[inline(never)]
    fn allocate_large_or(
        &self,
        engine: &Engine,
        bytes: Bytes,
        stream: StreamId,
        otherwise: Otherwise,
    ) -> Address {
        match engine.look::<true>(bytes, stream) {
            Look::Found(address) => address,
            Look::Higher(heap, address) => settle(engine, heap, address),
            Look::Locked(heap) => {
                self.search_locked::<true>(engine, heap, bytes, stream, otherwise)
            }
            Look::Held(heap) => self.search_held(engine, heap, bytes, stream, otherwise),
            Look::Nothing => self.search(engine.id(), bytes, stream, otherwise),
        }
    }

    #[inline(never)]
    fn search_small(
        &self,
        engine: &Engine,
        heap: MutexGuard<'_, Heap>,
        bytes: Bytes,
        stream: StreamId,
        otherwise: Otherwise,
    ) -> Address {
        self.search_locked::<false>(engine, heap, bytes, stream, otherwise)
    }

    #[inline(always)]
    fn search_locked<const LARGE: bool>(
        &self,
        engine: &Engine,
        mut heap: MutexGuard<'_, Heap>,
        bytes: Bytes,
        stream: StreamId,
        otherwise: Otherwise,
    ) -> Address {
        match engine.search_index::<LARGE>(&mut heap, bytes) {
            0 => {
                drop(heap);
                otherwise(self, engine.id(), bytes, stream)
            }
            address => address,
        }
    }

    #[inline(never)]
    fn search_held(
        &self,
        engine: &Engine,
        mut heap: MutexGuard<'_, Heap>,
        bytes: Bytes,
        stream: StreamId,
        otherwise: Otherwise,
    ) -> Address {
        match engine.search_heap(&mut heap, bytes) {
            0 => {
                drop(heap);
                otherwise(self, engine.id(), bytes, stream)
            }
            address => address,
        }
    }

    #[inline(never)]
    fn search(
        &self,
        device: DeviceId,
        bytes: Bytes,
        stream: StreamId,
        otherwise: Otherwise,
    ) -> Address {
        match self.engines[device.0 as usize].search(bytes, stream) {
            0 => otherwise(self, device, bytes, stream),
            address => address,
        }
    }

    /// Frees memory where nothing more is to be done; else it is what `otherwise` says.
    #[inline(always)]
    pub(crate) fn free_or(
        &self,
        address: Address,
        otherwise: fn(&Allocator, Address) -> bool,
    ) -> bool {
        let Some((shard, slot)) = self.map.get(address) else {
            return otherwise(self, address);
        };
        if slot & LARGE_PAGE != 0 {
            return self.free_large_or(shard, slot, address, otherwise);
        }
        let Some(mut heap) = shard.heap.try_lock_as_left() else {
            return otherwise(self, address);
        };
        if !(heap.turn.is_ready() && heap.keep_small(slot, address)) {
            drop(heap);
            return otherwise(self, address);
        }
        true
    }

    #[inline(never)]
    fn free_large_or(
        &self,
        shard: &Shard,
        slot: u32,
        address: Address,
        otherwise: fn(&Allocator, Address) -> bool,
    ) -> bool {
        let Some(mut heap) = shard.heap.try_lock_as_left() else {
            return otherwise(self, address);
        };
        if !(heap.turn.is_ready() && heap.keep_large(slot, address)) {
            drop(heap);
            return otherwise(self, address);
        }
        true
    }
}

#[inline(never)]
fn settle(engine: &Engine, mut heap: MutexGuard<'_, Heap>, address: Address) -> Address {
    engine.settle(&mut heap);
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::device::sim::{SimMachine, SimOptions};
    use crate::error::{Error, InvalidPointer, PointerFault};

    fn allocator() -> Allocator {
        let machine = SimMachine::new(SimOptions::default()).unwrap();
        Allocator::new(machine.as_devices(), Config::default()).unwrap()
    }

    /// A block that is at hand (see `heap::hand`) is for all others what it would be else.
    #[test]
    fn a_block_at_hand_is_told_of_as_any_other() {
        let allocator = allocator();
        let take = |bytes| allocator.allocate(DeviceId(0), bytes, StreamId(64)).unwrap();
        let address = take(1000);
        for bytes in [1000, 900, 800, 700] {
            allocator.free(address).unwrap();
            assert_eq!(take(bytes), address);
            let block = allocator.block(address).unwrap();
            assert_eq!((block.bytes, block.requested, block.stream), (1024, bytes, StreamId(64)));
        }
        // Nobody looks in between, so that it is at hand when it is freed twice.
        allocator.free(address).unwrap();
        assert_eq!(take(600), address);
        allocator.free(address).unwrap();
        match allocator.free(address) {
            Err(Error::InvalidPointer(InvalidPointer {
                fault: PointerFault::DoubleFree, ..
            })) => {}
            other => panic!("{other:?}"),
        }
        let now = allocator.statistics(DeviceId(0)).unwrap();
        assert_eq!(now.requested_bytes.all.current, 0);
        assert_eq!(now.allocation.all.allocated, 6);
        assert_eq!((now.allocation.all.peak, now.requested_bytes.all.peak), (1, 1000));
    }
}
