//! Virtual memory management: address space, physical handles, and what is mapped where.

use super::memory::{Memory, Region, RegionKind};
use super::os::{HostRange, MemoryFile};
use super::refusal::{Outcome, host_failure, misuse, unsupported};
use crate::device::HandleId;
use crate::units::{Address, Bytes, GRANULE};

/// Physical memory.
#[derive(Debug)]
pub(super) struct Handle {
    device: usize,
    pub(super) bytes: Bytes,
    /// Where its bytes start in their file.
    pub(super) offset: Bytes,
    /// The file of the bank that they were imported from; `None`: that of its own.
    pub(super) imported: Option<MemoryFile>,
    /// It was exported, so that others may hold it.
    pub(super) exported: bool,
    /// Network cards reach it. There is none here, but it has its price.
    rdma: bool,
    /// At how many addresses it is mapped.
    mappings: usize,
    /// The caller has given it back; it lives on while it is mapped.
    released: bool,
}

/// A handle at an address.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) bytes: Bytes,
    pub(super) handle: HandleId,
    /// `set_access` was called for it.
    pub(super) accessible: bool,
}

impl Memory {
    pub(super) fn require_virtual_memory(&self) -> Outcome<()> {
        if self.virtual_memory {
            return Ok(());
        }
        Err(unsupported("this device has no virtual memory management"))
    }

    pub(super) fn reserve(&mut self, device: usize, bytes: Bytes) -> Outcome<Address> {
        self.require_virtual_memory()?;
        check_granules("a reservation", bytes)?;
        let range = HostRange::reserve(bytes)
            .map_err(|error| host_failure("reserve address space", &error))?;
        let start = range.start();
        let kind = RegionKind::Reservation;
        self.regions.insert(start, Region { device, range, kind, offset: 0, held: None });
        Ok(start)
    }

    pub(super) fn free_address(
        &mut self,
        device: usize,
        address: Address,
        bytes: Bytes,
    ) -> Outcome<()> {
        self.require_virtual_memory()?;
        let region = self.reservation(device, address, bytes)?;
        let (start, length) = (region.range.start(), region.range.bytes());
        if (start, length) != (address, bytes) {
            return Err(misuse(format!(
                "{bytes} bytes at {address:#x} are only a part of the reservation of \
                 {length} bytes at {start:#x}"
            )));
        }
        if let Some((mapped, _)) = self.mappings.range(address..address + bytes).next() {
            return Err(misuse(format!(
                "the reservation at {address:#x} is still in use: something is mapped at \
                 {mapped:#x}"
            )));
        }
        self.regions.remove(&address);
        Ok(())
    }

    pub(super) fn create(&mut self, device: usize, bytes: Bytes, rdma: bool) -> Outcome<HandleId> {
        self.require_virtual_memory()?;
        check_granules("a handle", bytes)?;
        let bank = &mut self.banks[device];
        bank.check_room(bytes)?;
        let offset = bank.take(bytes);
        let id = self.add_handle(device, bytes, offset, None);
        if let Some(handle) = self.handles.get_mut(&id) {
            handle.rdma = rdma;
        }
        Ok(id)
    }

    /// Notes a handle of memory that is there.
    pub(super) fn add_handle(
        &mut self,
        device: usize,
        bytes: Bytes,
        offset: Bytes,
        imported: Option<MemoryFile>,
    ) -> HandleId {
        let id = HandleId(self.next_handle);
        self.next_handle += 1;
        let handle = Handle {
            device,
            bytes,
            offset,
            imported,
            exported: false,
            rdma: false,
            mappings: 0,
            released: false,
        };
        self.handles.insert(id, handle);
        id
    }

    /// Gives a handle back and returns its length.
    pub(super) fn release(&mut self, device: usize, id: HandleId) -> Outcome<Bytes> {
        self.require_virtual_memory()?;
        let handle = self.live_handle(device, id)?;
        handle.released = true;
        let (bytes, mappings) = (handle.bytes, handle.mappings);
        if mappings == 0 {
            self.end_handle(id);
        }
        Ok(bytes)
    }

    /// Maps a handle, and returns whether network cards reach it.
    pub(super) fn map(
        &mut self,
        device: usize,
        address: Address,
        bytes: Bytes,
        id: HandleId,
    ) -> Outcome<bool> {
        self.require_virtual_memory()?;
        let handle = self.live_handle(device, id)?;
        let (whole, rdma) = (handle.bytes, handle.rdma);
        if bytes != whole {
            return Err(misuse(format!(
                "a handle of {whole} bytes is mapped whole or not at all, not {bytes} bytes of it"
            )));
        }
        if !address.is_multiple_of(GRANULE) {
            return Err(misuse(format!("{address:#x} is not a multiple of the granularity")));
        }
        let region = self.reservation(device, address, bytes)?;
        if let Some(mapped) = self.first_mapping_in(address, bytes) {
            return Err(misuse(format!(
                "{bytes} bytes at {address:#x} overlap with what is mapped at {mapped:#x}"
            )));
        }
        if self.backed
            && let Some(handle) = self.handles.get(&id)
        {
            let file = handle.imported.as_ref().unwrap_or(&self.banks[device].file);
            region
                .range
                .map(address, bytes, file, handle.offset)
                .map_err(|error| host_failure("map memory", &error))?;
        }
        let mapping = Mapping { bytes, handle: id, accessible: false };
        self.mappings.insert(address, mapping);
        if let Some(handle) = self.handles.get_mut(&id) {
            handle.mappings += 1;
        }
        Ok(rdma)
    }

    /// Opens whole mappings. `each` is told the length of every one.
    pub(super) fn set_access(
        &mut self,
        device: usize,
        address: Address,
        bytes: Bytes,
        mut each: impl FnMut(Bytes),
    ) -> Outcome<()> {
        self.require_virtual_memory()?;
        self.reservation(device, address, bytes)?;
        // Mostly it is one, which needs no further look: no two overlap.
        if let Some(mapping) = self.mappings.get_mut(&address)
            && mapping.bytes == bytes
        {
            mapping.accessible = true;
            each(bytes);
            return Ok(());
        }
        self.check_whole_mappings(address, bytes)?;
        for mapping in self.mappings.range_mut(address..address + bytes).map(|(_, mapping)| mapping)
        {
            mapping.accessible = true;
            each(mapping.bytes);
        }
        Ok(())
    }

    /// Unmaps whole mappings. `each` is told the length of every one, and whether network cards
    /// reached it.
    pub(super) fn unmap(
        &mut self,
        device: usize,
        address: Address,
        bytes: Bytes,
        mut each: impl FnMut(Bytes, bool),
    ) -> Outcome<()> {
        self.require_virtual_memory()?;
        let region = self.reservation(device, address, bytes)?;
        if self.mappings.get(&address).is_none_or(|mapping| mapping.bytes != bytes) {
            self.check_whole_mappings(address, bytes)?;
        }
        if self.backed {
            let range = &region.range;
            let unmapped = range.unmap(address, bytes, &self.spare);
            unmapped.map_err(|error| host_failure("unmap memory", &error))?;
        }
        let end = address + bytes;
        while let Some((&start, _)) = self.mappings.range(address..end).next() {
            let Some(mapping) = self.mappings.remove(&start) else {
                break;
            };
            let rdma = self.handles.get(&mapping.handle).is_some_and(|handle| handle.rdma);
            each(mapping.bytes, rdma);
            self.forget_mapping(mapping.handle);
        }
        Ok(())
    }

    /// One mapping of the handle has ended.
    fn forget_mapping(&mut self, id: HandleId) {
        let Some(handle) = self.handles.get_mut(&id) else {
            debug_assert!(false, "{id:?} was mapped and does not exist");
            return;
        };
        handle.mappings -= 1;
        if handle.mappings == 0 && handle.released {
            self.end_handle(id);
        }
    }

    /// The handle is released and mapped nowhere: its memory ends.
    fn end_handle(&mut self, id: HandleId) {
        let Some(handle) = self.handles.remove(&id) else {
            return;
        };
        // What is imported ends with its file.
        if handle.imported.is_none() {
            let Handle { device, offset, bytes, exported, .. } = handle;
            self.banks[device].give_back(offset, bytes, exported);
        }
    }

    /// The handle, if it is this device's and was not released.
    pub(super) fn live_handle(&mut self, device: usize, id: HandleId) -> Outcome<&mut Handle> {
        let number = id.0;
        match self.handles.get_mut(&id) {
            None => Err(misuse(format!("handle {number} does not exist, or was released before"))),
            Some(handle) if handle.released => {
                Err(misuse(format!("handle {number} was released before")))
            }
            Some(handle) if handle.device != device => {
                let owner = handle.device;
                Err(misuse(format!("handle {number} belongs to device {owner}")))
            }
            Some(handle) => Ok(handle),
        }
    }

    /// The reservation of this device in which the whole span lies.
    fn reservation(&self, device: usize, address: Address, bytes: Bytes) -> Outcome<&Region> {
        let span = || format!("{bytes} bytes at {address:#x}");
        if bytes == 0 {
            return Err(misuse(format!("{} are no span", span())));
        }
        match self.region_at(address) {
            Some(region) if region.kind == RegionKind::Reservation => {
                if region.device != device {
                    let owner = region.device;
                    return Err(misuse(format!(
                        "{} lie in a reservation of device {owner}",
                        span()
                    )));
                }
                if bytes > region.range.end() - address {
                    return Err(misuse(format!(
                        "{} run past the end of their reservation",
                        span()
                    )));
                }
                Ok(region)
            }
            _ => Err(misuse(format!("{} lie in no reservation", span()))),
        }
    }

    /// Where something is mapped in the span.
    fn first_mapping_in(&self, address: Address, bytes: Bytes) -> Option<Address> {
        // The last that begins before the end of the span lies beyond all others of before it.
        let (start, last) = self.mappings.range(..address + bytes).next_back()?;
        if start + last.bytes <= address {
            return None;
        }
        let before = self.mappings.range(..address).next_back();
        let before = before.filter(|(start, mapping)| *start + mapping.bytes > address);
        let inside = || self.mappings.range(address..address + bytes).next();
        before.or_else(inside).map(|(&start, _)| start)
    }

    /// Fails unless the span consists of mappings, each of them whole.
    fn check_whole_mappings(&self, address: Address, bytes: Bytes) -> Outcome<()> {
        let end = address + bytes;
        let mut covered = address;
        if let Some(start) = self.first_mapping_in(address, 1).filter(|&start| start < address) {
            return Err(misuse(format!(
                "{address:#x} lies inside the mapping at {start:#x}, which is whole or not at all"
            )));
        }
        for (&start, mapping) in self.mappings.range(address..end) {
            if start != covered {
                break;
            }
            covered += mapping.bytes;
            if covered > end {
                return Err(misuse(format!(
                    "{end:#x} lies inside the mapping at {start:#x}, which is whole or not at all"
                )));
            }
        }
        if covered < end {
            return Err(misuse(format!("nothing is mapped at {covered:#x}")));
        }
        Ok(())
    }
}

fn check_granules(what: &str, bytes: Bytes) -> Outcome<()> {
    if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
        return Err(misuse(format!(
            "{what} of {bytes} bytes: a multiple of {GRANULE} bytes is needed"
        )));
    }
    Ok(())
}
