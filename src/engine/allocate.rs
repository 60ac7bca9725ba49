//! The hot path, and the frees that leave it.

use std::sync::atomic::Ordering;

use super::shards::thread_number;
use super::{Engine, PageEntry, flag};
use crate::device::DeviceResult;
use crate::error::{Error, InvalidPointer, PointerFault, PointerUse, Result};
use crate::heap::{BlockView, Heap, Lookup, class_bytes_of, class_of};
use crate::lock::MutexGuard;
use crate::streams::{Deferred, Guest, Ticket};
use crate::units::{Address, Bytes, DeviceId, MAX_REQUEST, StreamId};

/// How far an allocation got on the hot path.
pub(crate) enum Look<'a> {
    /// To its address.
    Found(Address),
    /// To its address, and the heap may have exceeded a lease.
    Higher(MutexGuard<'a, Heap>, Address),
    /// To the heap, where no block of the size is kept aside.
    Locked(MutexGuard<'a, Heap>),
    /// To the heap, which has a block at hand that does not serve.
    Held(MutexGuard<'a, Heap>),
    /// Not even there: [`allocate`](Engine::allocate) does or explains what there is to it.
    Nothing,
}

impl Engine {
    /// The hot path: a block that the stream's heap has kept aside. It calls nothing, and its
    /// caller nothing after which it goes on, so that no register is saved on the way. `LARGE` says
    /// which requests it serves: in one function, the two would get into each other's way.
    #[inline(always)]
    pub(crate) fn look<const LARGE: bool>(&self, bytes: Bytes, stream: StreamId) -> Look<'_> {
        // Zero bytes are beyond, too. Requests that are rounded in steps of their own have a flag
        // up.
        let beyond = LARGE && bytes.wrapping_sub(1) >= MAX_REQUEST - 1;
        if beyond || self.flags.load(Ordering::Relaxed) != 0 {
            return Look::Nothing;
        }
        let class = if LARGE { 0 } else { class_of(bytes) };
        let Some(shard) = self.shards.find_alone(stream) else {
            return Look::Nothing;
        };
        let Some(mut heap) = shard.heap.try_lock_as_left() else {
            return Look::Nothing;
        };
        if !heap.turn.allocates_with_none_at_hand() {
            if !heap.turn.allocates() {
                return Look::Nothing;
            }
            let held = if LARGE { None } else { heap.take_at_hand(class_bytes_of(class), bytes) };
            return match held {
                Some((address, false)) => Look::Found(address),
                Some((address, true)) => Look::Higher(heap, address),
                None => Look::Held(heap),
            };
        }
        let kept =
            if LARGE { heap.take_kept_large(bytes, bytes) } else { heap.take_kept(class, bytes) };
        match kept {
            Some((address, false)) => Look::Found(address),
            Some((address, true)) => Look::Higher(heap, address),
            None => Look::Locked(heap),
        }
    }

    /// The next stage, also for streams with lanes or not found at the first look: what the heap
    /// finds by searching; or 0. Without an error, since a `Result` would go out through memory.
    pub(crate) fn search(&self, bytes: Bytes, stream: StreamId) -> Address {
        if bytes == 0 || self.flags.load(Ordering::Relaxed) != 0 {
            return 0;
        }
        let Some(first) = self.shards.find_any(stream) else {
            return 0;
        };
        match self.shards.lane(first).heap.try_lock_as_left() {
            Some(mut heap) if heap.turn.allocates() => self.search_heap(&mut heap, bytes),
            _ => 0,
        }
    }

    /// What a heap that allocates and is locked has, at hand or else; or 0.
    pub(crate) fn search_heap(&self, heap: &mut Heap, bytes: Bytes) -> Address {
        let found = heap.allocate_held(bytes).unwrap_or(0);
        self.peaks.leave(&self.shards, heap);
        found
    }

    /// What a heap, which allocates and is locked, has where nothing of the size is kept aside; or
    /// 0.
    #[inline(always)]
    pub(crate) fn search_index<const LARGE: bool>(&self, heap: &mut Heap, bytes: Bytes) -> Address {
        let found = if LARGE {
            heap.allocate_large_indexed(bytes, bytes)
        } else {
            heap.allocate_small(bytes, class_of(bytes))
        };
        self.peaks.leave(&self.shards, heap);
        found.unwrap_or(0)
    }

    /// Ends an allocation by which the heap may have exceeded a lease.
    pub(crate) fn settle(&self, heap: &mut Heap) {
        heap.tally.look_into();
        self.peaks.leave(&self.shards, heap);
    }

    /// Allocates `bytes` for use on `stream`. Zero bytes give address 0.
    #[cold]
    pub(crate) fn allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        let result = match self.is_recorded() {
            false => self.allocate_untold(bytes, stream),
            true => self.allocate_recorded(bytes, stream),
        };
        match result {
            Ok(address) => self.tell_allocated(address, bytes),
            Err(ref error) => self.tell_out_of_memory(error, stream),
        }
        result
    }

    pub(super) fn allocate_untold(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        if bytes == 0 {
            return Ok(0);
        }
        if bytes >= MAX_REQUEST {
            return Err(Error::SizeTooLarge { bytes, max: MAX_REQUEST - 1 });
        }
        let Some(first) = self.shards.for_stream(stream) else {
            return Err(too_many_streams());
        };
        let shard = self.shards.lane(first);
        let index = shard.number;
        if self.flags.load(Ordering::Relaxed) & flag::BEFORE != 0
            && let Some(address) = self.allocate_flagged(index, bytes, stream)?
        {
            return Ok(address);
        }
        let (_, rounded) = self.size_of(bytes);
        let mut heap = shard.heap.try_lock().unwrap_or_else(|| {
            self.shards.collide(first, thread_number());
            shard.heap.lock()
        });
        if self.peaks.enter(&mut heap) {
            let mut found = heap.allocate(bytes, rounded);
            if found.is_none() && heap.flush_near(rounded) {
                found = heap.allocate(bytes, rounded);
            }
            self.peaks.leave(&self.shards, &mut heap);
            if let Some(address) = found {
                return Ok(address);
            }
        }
        drop(heap);
        self.allocate_slow(index, bytes)
    }

    /// What has to be done before an allocation while a flag is up.
    #[cold]
    fn allocate_flagged(
        &self,
        index: u32,
        bytes: Bytes,
        stream: StreamId,
    ) -> Result<Option<Address>> {
        let flags = self.flags.load(Ordering::Relaxed);
        if flags & flag::DEFERRED != 0 {
            // An event costs half a microsecond to ask: not every call does. Whoever finds no
            // memory asks before taking more.
            if self.polls.fetch_add(1, Ordering::Relaxed).is_multiple_of(4) {
                self.poll_deferred()?;
            }
        }
        if flags & flag::UNCACHED != 0 {
            return self.allocate_direct(index, bytes, stream).map(Some);
        }
        if flags & flag::DIVERTED != 0 {
            return self.allocate_diverted(bytes, stream);
        }
        Ok(None)
    }

    /// Frees the allocation at `address`, which lies in the granule that `at` describes.
    #[cold]
    pub(crate) fn free(&self, at: PageEntry<'_>, address: Address) -> Result<()> {
        let number = at.shard.number;
        self.check_outside()?;
        let context = self.gather_for_free();
        let mut heap = at.shard.heap.lock();
        let found = heap.lookup(at.slot, address);
        let Lookup::Live(block) = found else {
            drop(heap);
            return Err(self.refused(address, found));
        };
        self.peaks.enter(&mut heap);
        self.tell_freed(address);
        self.record_freed(number, heap.block(block), context);
        if heap.is_shared(block) {
            heap.defer(block);
            drop(heap);
            self.end_export(address);
            self.wait_for_users(address, Ticket { shard: number, block });
            return Ok(());
        }
        let freed = heap.free(at.slot, address);
        debug_assert!(freed, "a live block that nobody shares");
        Ok(())
    }

    #[cold]
    fn wait_for_users(&self, address: Address, ticket: Ticket) {
        let mut deferred = self.deferred.lock();
        if deferred.defer(address, ticket) {
            self.flags.fetch_or(flag::DEFERRED, Ordering::Relaxed);
            return;
        }
        drop(deferred);
        self.complete(&[ticket]);
    }

    #[cold]
    fn refused(&self, address: Address, found: Lookup) -> Error {
        let fault = match found {
            Lookup::Interior(start, bytes) => PointerFault::Interior { start, bytes },
            Lookup::Freed => PointerFault::DoubleFree,
            Lookup::Live(_) | Lookup::Nothing => PointerFault::Foreign,
        };
        InvalidPointer::new(address, fault).into()
    }

    /// Notes that `stream`, of another device where a guest is given, uses the live allocation at
    /// `address` too. Its own stream needs no note.
    pub(crate) fn record_stream(
        &self,
        at: PageEntry<'_>,
        address: Address,
        (stream, guest): (StreamId, Option<Guest>),
    ) -> Result<()> {
        self.check_outside()?;
        let mut heap = at.shard.heap.lock();
        let found = heap.lookup(at.slot, address);
        let Lookup::Live(block) = found else {
            drop(heap);
            return Err(self.refused(address, found).when_asked_to(PointerUse::RecordStream));
        };
        let mut deferred = self.deferred.lock();
        // Another stream may have got the name of the one that the block is of.
        let renamed = guest.is_none() && deferred.is_retired(stream);
        if renamed {
            deferred.revive(stream)?;
        }
        if stream != at.shard.stream || guest.is_some() {
            heap.set_shared(block);
            deferred.record(address, stream, guest);
        }
        Ok(())
    }

    /// The live allocation at `address`, and its stream.
    pub(crate) fn block_at(
        &self,
        at: PageEntry<'_>,
        address: Address,
    ) -> Result<(BlockView, StreamId)> {
        let heap = at.shard.heap.lock();
        match heap.lookup(at.slot, address) {
            Lookup::Live(block) => Ok((heap.block(block), at.shard.stream)),
            found => Err(self.refused(address, found).when_asked_to(PointerUse::Find)),
        }
    }

    /// The range of addresses in which an address of this device lies: its start and its bytes.
    pub(crate) fn range_at(at: PageEntry<'_>, address: Address) -> Option<(Address, Bytes)> {
        at.shard.heap.lock().memory_around(address)
    }

    /// Takes note that `stream` is about to be destroyed.
    pub(crate) fn retire_stream(&self, stream: StreamId) -> Result<()> {
        self.deferred.lock().retire(stream)?;
        for (_, shard) in self.shards.iter().filter(|(_, shard)| shard.stream == stream) {
            self.peaks.retire(&mut shard.heap.lock());
        }
        Ok(())
    }

    /// Takes note that a stream of another device is about to be destroyed.
    pub(crate) fn retire_guest(&self, device: DeviceId, stream: StreamId) -> Result<()> {
        Ok(self.deferred.lock().retire_guest(device.0 as u32, stream)?)
    }

    /// Looks which deferred frees have completed, and completes them.
    pub(crate) fn poll_deferred(&self) -> Result<bool> {
        self.complete_deferred(Deferred::poll)
    }

    /// Waits until no free waits for a stream any more; true where there was one.
    pub(super) fn wait_for_deferred(&self) -> Result<bool> {
        self.complete_deferred(Deferred::wait_all)
    }

    /// Completes the frees that are found to be over; also those that were found before an error.
    fn complete_deferred(
        &self,
        find: fn(&mut Deferred, &mut Vec<Ticket>) -> DeviceResult<()>,
    ) -> Result<bool> {
        let mut done = Vec::new();
        let mut deferred = self.deferred.lock();
        let result = find(&mut deferred, &mut done);
        self.lower_flag(deferred.waiting());
        drop(deferred);
        self.complete(&done);
        result?;
        Ok(!done.is_empty())
    }

    fn lower_flag(&self, waiting: usize) {
        if waiting == 0 {
            self.flags.fetch_and(!flag::DEFERRED, Ordering::Relaxed);
        }
    }

    /// Gives blocks back that no stream uses any more.
    fn complete(&self, tickets: &[Ticket]) {
        for ticket in tickets {
            if let Some(shard) = self.shards.get(ticket.shard) {
                let mut heap = shard.heap.lock();
                self.peaks.enter(&mut heap);
                self.record_completed(&heap, *ticket);
                heap.complete(ticket.block);
            }
        }
    }
}

#[cold]
pub(crate) fn foreign(address: Address) -> Error {
    InvalidPointer::new(address, PointerFault::Foreign).into()
}

#[cold]
pub(super) fn too_many_streams() -> Error {
    Error::Unsupported {
        operation: "allocating on another stream".to_owned(),
        by: "plugalloc".to_owned(),
        why: "a device has at most 1048576 streams".to_owned(),
    }
}
