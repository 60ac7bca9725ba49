//! Virtual memory management: address space, physical handles, and what is mapped where.

use super::handles::{Handle, Handles};
use super::memory::Memory;
use super::os::{HostRange, MemoryFile};
use super::refusal::{Outcome, host_failure, misuse, unsupported};
use super::regions::{Region, RegionKind};
use crate::device::HandleId;
use crate::units::{Address, Bytes, GRANULE};

/// A handle at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) bytes: Bytes,
    pub(super) handle: HandleId,
    /// `set_access` was called for it.
    pub(super) accessible: bool,
}

impl Default for Mapping {
    fn default() -> Mapping {
        Mapping { bytes: 0, handle: HandleId(0), accessible: false }
    }
}

impl Mapping {
    pub(super) fn granules(&self) -> usize {
        (self.bytes / GRANULE) as usize
    }
}

impl Region {
    fn granule_of(&self, address: Address) -> usize {
        ((address - self.range.start()) / GRANULE) as usize
    }

    fn address_of(&self, granule: usize) -> Address {
        self.range.start() + granule as u64 * GRANULE
    }

    /// Where the mapping over an address starts, and the mapping.
    pub(super) fn mapping_over(&self, address: Address) -> Option<(Address, &Mapping)> {
        let (first, mapping) = self.pages.over(self.granule_of(address))?;
        Some((self.address_of(first), mapping))
    }

    /// Where the first mapping starts that touches a span.
    fn first_mapping_in(&self, address: Address, bytes: Bytes) -> Option<Address> {
        let (from, to) = (self.granule_of(address), self.granule_of(address + bytes - 1) + 1);
        self.pages.first_in(from, to).map(|first| self.address_of(first))
    }

    /// The mapping that is exactly the span; mostly there is one.
    fn mapping_mut(&mut self, address: Address, bytes: Bytes) -> Option<&mut Mapping> {
        let first = self.granule_of(address);
        let mapping = self.pages.get_mut(first).filter(|mapping| mapping.bytes == bytes)?;
        address.is_multiple_of(GRANULE).then_some(mapping)
    }

    /// Fails unless the span consists of mappings, each of them whole; gives where they start.
    fn whole_mappings(&self, address: Address, bytes: Bytes) -> Outcome<Vec<usize>> {
        let end = address + bytes;
        let mut covered = address;
        let mut found = Vec::new();
        while covered < end {
            let Some((start, mapping)) = self.mapping_over(covered) else {
                return Err(misuse(format!("nothing is mapped at {covered:#x}")));
            };
            let mapping_end = start + mapping.bytes;
            let cut = if start < covered { covered } else { end };
            if start < covered || mapping_end > end {
                return Err(misuse(format!(
                    "{cut:#x} lies inside the mapping at {start:#x}, which is whole or not at all"
                )));
            }
            found.push(self.granule_of(start));
            covered = mapping_end;
        }
        Ok(found)
    }
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
        self.regions.insert(Region::new(device, range, RegionKind::Reservation));
        Ok(start)
    }

    pub(super) fn free_address(
        &mut self,
        device: usize,
        address: Address,
        bytes: Bytes,
    ) -> Outcome<()> {
        self.require_virtual_memory()?;
        let region = self.regions.reservation(device, address, bytes)?;
        let (start, length) = (region.range.start(), region.range.bytes());
        if (start, length) != (address, bytes) {
            return Err(misuse(format!(
                "{bytes} bytes at {address:#x} are only a part of the reservation of \
                 {length} bytes at {start:#x}"
            )));
        }
        if let Some(mapped) = region.first_mapping_in(address, bytes) {
            return Err(misuse(format!(
                "the reservation at {address:#x} is still in use: something is mapped at \
                 {mapped:#x}"
            )));
        }
        self.regions.remove(address);
        Ok(())
    }

    pub(super) fn create(&mut self, device: usize, bytes: Bytes, rdma: bool) -> Outcome<HandleId> {
        self.require_virtual_memory()?;
        check_granules("a handle", bytes)?;
        let bank = &mut self.banks[device];
        bank.check_room(bytes)?;
        let offset = bank.take(bytes);
        let id = self.add_handle(device, bytes, offset, None);
        if let Some(handle) = self.handles.get_mut(id) {
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
        self.handles.insert(Handle {
            device,
            bytes,
            offset,
            imported,
            exported: false,
            rdma: false,
            mappings: 0,
            released: false,
        })
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
        let handle = live(&mut self.handles, device, id)?;
        if bytes != handle.bytes {
            let whole = handle.bytes;
            return Err(misuse(format!(
                "a handle of {whole} bytes is mapped whole or not at all, not {bytes} bytes of it"
            )));
        }
        if !address.is_multiple_of(GRANULE) {
            return Err(misuse(format!("{address:#x} is not a multiple of the granularity")));
        }
        let region = self.regions.reservation(device, address, bytes)?;
        if let Some(mapped) = region.first_mapping_in(address, bytes) {
            return Err(misuse(format!(
                "{bytes} bytes at {address:#x} overlap with what is mapped at {mapped:#x}"
            )));
        }
        if self.backed {
            let file = handle.imported.as_ref().unwrap_or(&self.banks[device].file);
            region
                .range
                .map(address, bytes, file, handle.offset)
                .map_err(|error| host_failure("map memory", &error))?;
        }
        let first = region.granule_of(address);
        region.pages.insert(first, Mapping { bytes, handle: id, accessible: false });
        handle.mappings += 1;
        Ok(handle.rdma)
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
        let region = self.regions.reservation(device, address, bytes)?;
        if let Some(mapping) = region.mapping_mut(address, bytes) {
            mapping.accessible = true;
            each(bytes);
            return Ok(());
        }
        for first in region.whole_mappings(address, bytes)? {
            if let Some(mapping) = region.pages.get_mut(first) {
                mapping.accessible = true;
                each(mapping.bytes);
            }
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
        let region = self.regions.reservation(device, address, bytes)?;
        let whole = match region.mapping_mut(address, bytes) {
            Some(_) => Vec::new(),
            None => region.whole_mappings(address, bytes)?,
        };
        if self.backed {
            let range = &region.range;
            let unmapped = range.unmap(address, bytes, &self.spare);
            unmapped.map_err(|error| host_failure("unmap memory", &error))?;
        }
        if whole.is_empty() {
            let gone = region.pages.remove(region.granule_of(address));
            gone.into_iter().for_each(|mapping| self.forget_mapping(mapping, &mut each));
            return Ok(());
        }
        let gone: Vec<_> = whole.iter().filter_map(|&first| region.pages.remove(first)).collect();
        gone.into_iter().for_each(|mapping| self.forget_mapping(mapping, &mut each));
        Ok(())
    }

    /// A mapping has ended, of which `each` is told.
    fn forget_mapping(&mut self, mapping: Mapping, each: &mut impl FnMut(Bytes, bool)) {
        let id = mapping.handle;
        let Some(handle) = self.handles.get_mut(id) else {
            debug_assert!(false, "{id:?} was mapped and does not exist");
            return;
        };
        each(mapping.bytes, handle.rdma);
        handle.mappings -= 1;
        if handle.mappings == 0 && handle.released {
            self.end_handle(id);
        }
    }

    /// The handle is released and mapped nowhere: its memory ends.
    fn end_handle(&mut self, id: HandleId) {
        let Some(handle) = self.handles.remove(id) else {
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
        live(&mut self.handles, device, id)
    }
}

/// The handle, if it is this device's and was not released.
#[inline]
fn live(handles: &mut Handles, device: usize, id: HandleId) -> Outcome<&mut Handle> {
    let number = id.0;
    match handles.get_mut(id) {
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

fn check_granules(what: &str, bytes: Bytes) -> Outcome<()> {
    if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
        return Err(misuse(format!(
            "{what} of {bytes} bytes: a multiple of {GRANULE} bytes is needed"
        )));
    }
    Ok(())
}
