//! Allocations while caching is off: each is the device's own.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::{DeviceErrorKind, Result};
use crate::heap::{ArenaKind, Heap};
use crate::streams::Guest;
use crate::units::{Address, Bytes, StreamId};

/// One allocation of the device's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectBlock {
    pub(crate) shard: u32,
    pub(crate) bytes: Bytes,
    pub(crate) kind: ArenaKind,
    pub(crate) requested: Bytes,
    pub(crate) stream: StreamId,
}

/// All of them, by address.
#[derive(Default)]
pub(crate) struct Direct {
    blocks: Mutex<HashMap<Address, DirectBlock>>,
    /// Which other devices use some of them.
    guests: Mutex<HashMap<Address, Vec<Guest>>>,
    /// Those that observers have freed and that are the device's still: observers are told first.
    left: Mutex<Vec<(Address, DirectBlock)>>,
}

impl Engine {
    pub(super) fn allocate_direct(
        &self,
        shard: u32,
        requested: Bytes,
        stream: StreamId,
    ) -> Result<Address> {
        let result = self.allocate_direct_untold(shard, requested, stream);
        self.tell_observers();
        result
    }

    fn allocate_direct_untold(
        &self,
        shard: u32,
        requested: Bytes,
        stream: StreamId,
    ) -> Result<Address> {
        let (kind, bytes) = self.size_of(requested);
        let mut growth = self.growth.lock();
        let mut address = self.take_direct(&growth, bytes)?;
        if address.is_none() {
            // What was cached before caching was turned off may be what is missing.
            growth.counters.retries += 1;
            growth.store.forget_ceiling();
            self.give_cache_back(&mut growth)?;
            address = self.take_direct(&growth, bytes)?;
        }
        let Some(address) = address else {
            self.count_out_of_memory();
            let request = super::grow::Request { shard, requested, bytes, kind };
            return Err(self.out_of_memory(&mut growth, request));
        };
        growth.store.count_taken(bytes);
        growth.store.count_serving(kind, bytes);
        let block = DirectBlock { shard, bytes, kind, requested, stream };
        self.direct.blocks.lock().insert(address, block);
        self.note_mapped(address, bytes);
        growth.store.note_segment(address);
        self.record_outside(address, block, None);
        drop(growth);
        self.count_direct(shard, |heap| heap.allocate_outside(kind, bytes, requested));
        Ok(address)
    }

    /// Takes memory from the device; `None` where the limit or the device has no room.
    fn take_direct(&self, growth: &Growth, bytes: Bytes) -> Result<Option<Address>> {
        if bytes > growth.store.headroom() {
            return Ok(None);
        }
        match self.device.malloc(bytes) {
            Ok(address) => Ok(Some(address)),
            Err(error) if error.kind == DeviceErrorKind::OutOfMemory => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Frees an allocation of the device's own; false where there is none at that address.
    pub(crate) fn free_direct(&self, address: Address) -> Result<bool> {
        let Some(block) = self.direct_block(address) else {
            return Ok(false);
        };
        self.check_outside()?;
        let is_untold = self.announce_direct(address, block.bytes);
        let context = self.gather_for_free();
        // Held for as long as the table and the counts differ.
        let mut growth = self.growth.lock();
        let Some(block) = self.direct.blocks.lock().remove(&address) else {
            return Ok(false);
        };
        self.record_outside_freed(address, block, context);
        if is_untold {
            // In the middle of a call of an observer: whoever calls that tells of this next.
            self.note_closed(&mut growth, address);
            self.direct.left.lock().push((address, block));
        } else if let Err(error) = self.give_direct(&mut growth, address, block) {
            self.direct.blocks.lock().insert(address, block);
            self.note_mapped(address, block.bytes);
            self.record_outside(address, block, Some(block.requested));
            drop(growth);
            self.tell_observers();
            return Err(error.into());
        }
        drop(growth);
        self.count_direct(block.shard, |heap| {
            heap.free_outside(block.kind, block.bytes, block.requested);
        });
        Ok(true)
    }

    /// Gives an allocation of the device's own back, of which observers were told.
    fn give_direct(
        &self,
        growth: &mut Growth,
        address: Address,
        block: DirectBlock,
    ) -> DeviceResult<()> {
        self.wait_for_guests(address)?;
        self.device.free(address)?;
        self.direct.guests.lock().remove(&address);
        self.tell_freed(address);
        growth.store.forget_segment(address);
        growth.store.count_given(block.bytes);
        growth.store.count_idle(block.kind, block.bytes);
        Ok(())
    }

    /// Gives back what observers have freed themselves and have been told of since; what fails
    /// stays for the next time. True where there was any.
    pub(super) fn give_left(&self, growth: &mut Growth) -> bool {
        let left = std::mem::take(&mut *self.direct.left.lock());
        let before = left.len();
        // A capture that has begun since would be spoilt.
        let may = before > 0 && !self.may_be_capturing();
        let goes = |growth: &mut Growth, (address, block): (Address, DirectBlock)| {
            let told = may && self.may_unmap(growth, address, block.bytes);
            let gone = told && self.give_direct(growth, address, block).is_ok();
            if gone {
                self.note_unmapped(growth, address);
            }
            gone
        };
        let kept: Vec<_> = left.into_iter().filter(|&each| !goes(growth, each)).collect();
        let given = kept.len() < before;
        self.direct.left.lock().extend(kept);
        given
    }

    /// Whether there is anything of the kind.
    pub(super) fn has_left(&self) -> bool {
        !self.direct.left.lock().is_empty()
    }

    /// Notes that a stream of another device uses an allocation of the device's own. Streams of
    /// the device itself need no note: its free waits for all of them.
    pub(crate) fn record_direct(&self, address: Address, guest: Guest) {
        let mut guests = self.direct.guests.lock();
        let users = guests.entry(address).or_default();
        if !users.iter().any(|user| user.index == guest.index) {
            users.push(guest);
        }
    }

    fn wait_for_guests(&self, address: Address) -> DeviceResult<()> {
        let guests = self.direct.guests.lock().get(&address).cloned();
        guests.iter().flatten().try_for_each(|guest| guest.device.synchronize())
    }

    /// An allocation of the device's own.
    pub(crate) fn direct_block(&self, address: Address) -> Option<DirectBlock> {
        self.direct.blocks.lock().get(&address).copied()
    }

    /// The allocation of the device's own around an address, and where it starts.
    pub(crate) fn direct_around(&self, address: Address) -> Option<(Address, DirectBlock)> {
        let blocks = self.direct.blocks.lock();
        let mut all = blocks.iter().map(|(start, block)| (*start, *block));
        all.find(|(start, block)| {
            address.checked_sub(*start).is_some_and(|inside| inside < block.bytes)
        })
    }

    /// What is taken from the device for direct allocations, by address, also where observers freed
    /// them.
    pub(super) fn direct_spans(&self) -> Vec<(Address, Bytes)> {
        let mut spans: Vec<_> = self
            .direct_blocks_by_address()
            .map(|(address, block)| (address, block.bytes))
            .collect();
        spans
            .extend(self.direct.left.lock().iter().map(|(address, block)| (*address, block.bytes)));
        spans
    }

    /// Direct allocations by address.
    pub(super) fn direct_blocks_by_address(&self) -> impl Iterator<Item = (Address, DirectBlock)> {
        let blocks = self.direct.blocks.lock().clone();
        blocks.into_iter()
    }

    fn count_direct(&self, shard: u32, count: impl FnOnce(&mut Heap)) {
        if let Some(found) = self.shards.get(shard) {
            let mut heap = found.heap.lock();
            self.peaks.enter(&mut heap);
            count(&mut heap);
            self.peaks.leave(&self.shards, &mut heap);
        }
    }
}
