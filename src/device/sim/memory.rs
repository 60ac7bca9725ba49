//! What memory there is: the banks of the devices, the regions of address space, and who may access
//! what. `malloc` and `free` stand here; handles and mappings in `vmm`, what other processes are
//! given in `ipc`.

use std::collections::BTreeMap;

use super::handles::Handles;
use super::ipc::Opened;
use super::os::{self, HostRange, MemoryFile, SpareMappings};
use super::queue::Node;
use super::refusal::{Outcome, host_failure, misuse, out_of_memory, unsupported};
use super::regions::{Region, RegionKind, Regions};
use crate::device::{IpcHandle, MemoryInfo};
use crate::units::{Address, Bytes, GRANULE, align_up};

/// The memory of all devices of one machine. Addresses are the host's own, so none occurs twice.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) virtual_memory: bool,
    /// Whether there is memory of the host behind what is mapped.
    pub(super) backed: bool,
    pub(super) banks: Vec<Bank>,
    pub(super) regions: Regions,
    pub(super) handles: Handles,
    pub(super) spare: SpareMappings,
    /// Memory of other processes, by its legacy handle.
    pub(super) opened: BTreeMap<IpcHandle, Opened>,
}

/// The physical memory of one device.
#[derive(Debug)]
pub(super) struct Bank {
    pub(super) file: MemoryFile,
    /// Where the next handle's bytes start in the file. Offsets are never used twice: handles made
    /// one after the other lie side by side, so that the kernel joins their mappings where they are
    /// mapped side by side too, and no byte of an old handle shows in a new one.
    pub(super) next_offset: Bytes,
    capacity: Bytes,
    used: Bytes,
    used_peak: Bytes,
    /// The devices whose memory this device may reach.
    pub(super) reaches: Vec<bool>,
    /// What was given back here while somebody to whom it was exported still held it: offset and
    /// length. It counts as used until they let it go.
    held_elsewhere: Vec<(Bytes, Bytes)>,
}

impl Bank {
    fn new(index: usize, devices: usize, capacity: Bytes) -> Outcome<Bank> {
        let file = MemoryFile::new().map_err(|error| host_failure("make a memory file", &error))?;
        let reaches = (0..devices).map(|peer| peer == index).collect();
        let held_elsewhere = Vec::new();
        Ok(Bank { file, next_offset: 0, capacity, used: 0, used_peak: 0, reaches, held_elsewhere })
    }

    pub(super) fn used(&self) -> Bytes {
        self.used
    }

    pub(super) fn used_peak(&self) -> Bytes {
        self.used_peak
    }

    pub(super) fn forget_peak(&mut self) {
        self.used_peak = self.used;
    }

    pub(super) fn set_capacity(&mut self, capacity: Bytes) {
        self.capacity = capacity;
    }

    pub(super) fn info(&self) -> MemoryInfo {
        // The capacity may have been shrunk below what is in use.
        let free = self.capacity.saturating_sub(self.used);
        MemoryInfo { free, total: self.capacity }
    }

    /// Fails where `bytes` more do not fit.
    pub(super) fn check_room(&mut self, bytes: Bytes) -> Outcome<()> {
        self.settle();
        let MemoryInfo { free, total } = self.info();
        if bytes <= free {
            return Ok(());
        }
        Err(out_of_memory(format!("{bytes} bytes asked for, {free} of {total} free")))
    }

    /// Takes memory of which there is room, and returns its offset in the file.
    pub(super) fn take(&mut self, bytes: Bytes) -> Bytes {
        self.used += bytes;
        self.used_peak = self.used_peak.max(self.used);
        let offset = self.next_offset;
        self.next_offset += bytes;
        offset
    }

    /// Memory ends here. Where it was exported, it ends once nobody else holds it.
    pub(super) fn give_back(&mut self, offset: Bytes, bytes: Bytes, exported: bool) {
        // Where the kernel does not tell, nobody can know when it ends.
        if exported && self.file.is_held(offset, bytes).unwrap_or(true) {
            self.held_elsewhere.push((offset, bytes));
            return;
        }
        debug_assert!(bytes <= self.used, "{bytes} bytes given back of {}", self.used);
        self.used -= bytes;
        // Its offset is never used again, so where the host does not take the pages back nothing
        // but its own memory is lost.
        let _lost = self.file.discard(offset, bytes);
    }

    /// Looks whether others have let go what was given back here.
    pub(super) fn settle(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.held_elsewhere) {
            self.give_back(offset, bytes, true);
        }
    }
}

impl Memory {
    pub(super) fn new(devices: usize, capacity: Bytes, virtual_memory: bool) -> Outcome<Memory> {
        let banks: Outcome<Vec<Bank>> =
            (0..devices).map(|index| Bank::new(index, devices, capacity)).collect();
        Ok(Memory {
            backed: true,
            virtual_memory,
            banks: banks?,
            regions: Regions::default(),
            handles: Handles::default(),
            spare: SpareMappings::new()
                .map_err(|error| host_failure("reserve address space", &error))?,
            opened: BTreeMap::new(),
        })
    }

    /// Makes memory. A real device takes it from the system in granules, and so does this one.
    pub(super) fn malloc(&mut self, device: usize, bytes: Bytes) -> Outcome<Address> {
        if bytes == 0 {
            return Err(misuse("malloc of 0 bytes"));
        }
        let bank = &mut self.banks[device];
        bank.check_room(bytes)?;
        let taken = align_up(bytes, GRANULE);
        bank.check_room(taken)?;
        let range = HostRange::reserve(taken)
            .map_err(|error| host_failure("reserve address space", &error))?;
        let offset = bank.next_offset;
        if self.backed {
            range
                .map_open(&bank.file, offset)
                .map_err(|error| host_failure("map memory", &error))?;
        }
        bank.take(taken);
        let start = range.start();
        self.regions
            .insert(Region { offset, ..Region::new(device, range, RegionKind::Allocation) });
        Ok(start)
    }

    /// The length of the allocation that starts at the address, which `free` could free.
    pub(super) fn allocation(&self, device: usize, address: Address) -> Outcome<Bytes> {
        let Some(region) = self.regions.at(address) else {
            return Err(misuse(format!(
                "{address:#x} is no memory of malloc, or was freed before"
            )));
        };
        let start = region.range.start();
        if region.kind != RegionKind::Allocation {
            let place = match region.kind {
                RegionKind::Opened => "memory of another process, which is closed, not freed",
                _ => "a reservation, not in memory of malloc",
            };
            return Err(misuse(format!("{address:#x} lies in {place}")));
        }
        if region.device != device {
            let owner = region.device;
            return Err(misuse(format!("the memory at {address:#x} belongs to device {owner}")));
        }
        if start != address {
            return Err(misuse(format!(
                "{address:#x} lies inside the memory that starts at {start:#x}"
            )));
        }
        Ok(region.range.bytes())
    }

    /// Frees memory of `malloc` and returns its length. The host gets the pages back at once.
    pub(super) fn free(&mut self, device: usize, address: Address) -> Outcome<Bytes> {
        let bytes = self.allocation(device, address)?;
        if let Some(region) = self.regions.remove(address) {
            let exported = region.held.is_some();
            let offset = region.offset;
            // From here on its legacy handle names nothing any more.
            drop(region);
            self.banks[device].give_back(offset, bytes, exported);
        }
        Ok(bytes)
    }

    /// Fails unless the device may do this work on memory now. Only a copy may be with the host's,
    /// for which whoever queues it answers.
    pub(super) fn check_node(&self, device: usize, node: &Node) -> Outcome<()> {
        if let Node::Fill { at, bytes, .. } = *node {
            return self.check_own(device, at, bytes);
        }
        for (at, bytes) in node.spans().into_iter().filter(|&(_, bytes)| bytes > 0) {
            self.check_backed()?;
            self.check_access(device, at, bytes)?;
        }
        Ok(())
    }

    /// Fails unless the span is memory of a device that work of `device` may read and write.
    pub(super) fn check_own(&self, device: usize, at: Address, bytes: Bytes) -> Outcome<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.check_backed()?;
        self.check_access(device, at, bytes)?;
        match self.regions.at(at) {
            Some(_) => Ok(()),
            None => Err(misuse(format!("{at:#x} is no memory of a device"))),
        }
    }

    fn check_backed(&self) -> Outcome<()> {
        match self.backed {
            true => Ok(()),
            false => Err(unsupported("the simulated device was made without memory behind it")),
        }
    }

    /// Fails unless work of `device` may read and write the span. What lies in no region of the
    /// machine counts as memory of the host, if it is there at all.
    pub(super) fn check_access(&self, device: usize, at: Address, bytes: Bytes) -> Outcome<()> {
        let span = || format!("{bytes} bytes at {at:#x}");
        let Some(end) = at.checked_add(bytes) else {
            return Err(misuse(format!("{} exceed the address space", span())));
        };
        let Some(region) = self.regions.at(at) else {
            return self.check_host(at, end);
        };
        if end > region.range.end() {
            let region_end = region.range.end();
            return Err(misuse(format!(
                "{} run past the end of their region, {region_end:#x}",
                span()
            )));
        }
        if !self.banks[device].reaches[region.device] {
            let owner = region.device;
            return Err(misuse(format!(
                "{} belong to device {owner}, and device {device} has no access to this peer",
                span()
            )));
        }
        match region.kind {
            RegionKind::Allocation | RegionKind::Opened => Ok(()),
            RegionKind::Reservation => check_mapped(region, at, end),
        }
    }

    fn check_host(&self, at: Address, end: Address) -> Outcome<()> {
        if let Some(start) = self.regions.first_start_in(at, end) {
            return Err(misuse(format!(
                "the span from {at:#x} to {end:#x} runs from host memory into a device's at \
                 {start:#x}"
            )));
        }
        if !os::is_present(at, end - at) {
            return Err(misuse(format!(
                "the span from {at:#x} to {end:#x} is neither memory of a device nor of the host"
            )));
        }
        Ok(())
    }
}

/// Fails unless accessible mappings cover the span, which lies in a reservation, without a gap.
fn check_mapped(region: &Region, at: Address, end: Address) -> Outcome<()> {
    let mut covered = at;
    while covered < end {
        let Some((start, mapping)) = region.mapping_over(covered) else {
            return Err(misuse(format!("access to {covered:#x}, where nothing is mapped")));
        };
        if !mapping.accessible {
            return Err(misuse(format!(
                "access to {covered:#x}, which is mapped but was not made accessible"
            )));
        }
        covered = start + mapping.bytes;
    }
    Ok(())
}
