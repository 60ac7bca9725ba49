//! What other processes are given. A bank's memory is a file, and a part of it is sent as an
//! opening of that file whose position says which part, and whose lock says that it is held.

use super::memory::Memory;
use super::os::{HostRange, MemoryFile};
use super::refusal::{Outcome, host_failure, misuse, unsupported};
use super::regions::{Region, RegionKind};
use crate::device::{HandleId, HandleType, IpcHandle, ShareableHandle};
use crate::units::{Address, Bytes, GRANULE};

/// A part of a memory file that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: Bytes,
    bytes: Bytes,
}

impl Part {
    /// Offsets are multiples of the granule, so that the bits below have room for the length, as a
    /// number of granules.
    fn position(self) -> Option<u64> {
        let granules = self.bytes / GRANULE;
        (granules < GRANULE).then_some(self.offset | granules)
    }

    fn at(position: u64) -> Option<Part> {
        let granules = position % GRANULE;
        (granules > 0).then(|| Part { offset: position - granules, bytes: granules * GRANULE })
    }

    /// Opens the file once more, there, and holds the part until that is closed.
    fn open(self, file: &MemoryFile) -> Outcome<MemoryFile> {
        let Some(position) = self.position() else {
            return Err(unsupported(format!("{} bytes are too many to be shared", self.bytes)));
        };
        let open = || {
            let opened = file.reopen()?;
            opened.set_position(position)?;
            opened.hold(self.offset, self.bytes)?;
            Ok(opened)
        };
        open().map_err(|error| host_failure("share memory", &error))
    }
}

/// Memory of another process.
#[derive(Debug)]
pub(super) struct Opened {
    at: Address,
    times: usize,
}

/// What stands in a legacy handle: which process has the memory's file open under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    process: u32,
    number: i32,
    part: Part,
}

impl Name {
    const MARK: u64 = u64::from_le_bytes(*b"plug-sim");

    fn to_handle(self) -> IpcHandle {
        let Part { offset, bytes } = self.part;
        let words = [Self::MARK, self.process.into(), self.number as u64, offset, bytes];
        let mut handle = [0; 64];
        for (place, word) in handle.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        IpcHandle(handle)
    }

    fn of_handle(handle: IpcHandle) -> Option<Name> {
        let mut words = [0; 8];
        for (word, place) in words.iter_mut().zip(handle.0.chunks_exact(8)) {
            *word = u64::from_le_bytes(place.try_into().ok()?);
        }
        let [mark, process, number, offset, bytes, rest @ ..] = words;
        let part = Part { offset, bytes };
        let process = u32::try_from(process).ok()?;
        let number = i32::try_from(number).ok()?;
        (mark == Self::MARK && rest == [0; 3]).then_some(Name { process, number, part })
    }

    /// Opens the memory, if it is still there.
    fn open(self) -> Option<MemoryFile> {
        let file = MemoryFile::open_of(self.process, self.number).ok()?;
        // Held first: if it is still named afterwards, it was not given back before.
        file.hold(self.part.offset, self.part.bytes).ok()?;
        let path = format!("/proc/{}/fdinfo/{}", self.process, self.number);
        let position = std::fs::read_to_string(path).ok()?;
        let position = position.lines().find_map(|line| line.strip_prefix("pos:"))?;
        (position.trim().parse().ok() == self.part.position()).then_some(file)
    }
}

impl Memory {
    pub(super) fn export_handle(
        &mut self,
        device: usize,
        id: HandleId,
        handle_type: HandleType,
    ) -> Outcome<ShareableHandle> {
        self.require_virtual_memory()?;
        if handle_type == HandleType::Fabric {
            return Err(unsupported("a simulated device is connected to no fabric"));
        }
        self.live_handle(device, id)?.exported = true;
        let Some(handle) = self.handles.get(id) else {
            return Err(misuse(format!("handle {} does not exist", id.0)));
        };
        let part = Part { offset: handle.offset, bytes: handle.bytes };
        let file = handle.imported.as_ref().unwrap_or(&self.banks[device].file);
        let opened = part.open(file)?;
        Ok(ShareableHandle::FileDescriptor(opened.into_descriptor()))
    }

    pub(super) fn import_handle(
        &mut self,
        device: usize,
        shared: &ShareableHandle,
    ) -> Outcome<HandleId> {
        self.require_virtual_memory()?;
        let ShareableHandle::FileDescriptor(descriptor) = shared else {
            return Err(unsupported("a simulated device is connected to no fabric"));
        };
        let own = descriptor
            .try_clone()
            .map_err(|error| host_failure("duplicate a file descriptor", &error))?;
        let foreign = || misuse("this file descriptor is no memory that a simulated device shared");
        let file = MemoryFile::from_descriptor(own).ok_or_else(foreign)?;
        let position = file.position().map_err(|_| foreign())?;
        let Part { offset, bytes } = Part::at(position).ok_or_else(foreign)?;
        Ok(self.add_handle(device, bytes, offset, Some(file)))
    }

    pub(super) fn ipc_get_handle(&mut self, device: usize, at: Address) -> Outcome<IpcHandle> {
        let bytes = self.allocation(device, at)?;
        let file = &self.banks[device].file;
        let Some(region) = self.regions.get_mut(at) else {
            return Err(misuse(format!("{at:#x} is no memory of malloc")));
        };
        let part = Part { offset: region.offset, bytes };
        let opened = match region.held.take() {
            Some(opened) => opened,
            None => part.open(file)?,
        };
        let number = region.held.insert(opened).number();
        Ok(Name { process: std::process::id(), number, part }.to_handle())
    }

    pub(super) fn ipc_open_handle(&mut self, device: usize, handle: IpcHandle) -> Outcome<Address> {
        if let Some(opened) = self.opened.get_mut(&handle) {
            opened.times += 1;
            return Ok(opened.at);
        }
        let Some(name) = Name::of_handle(handle) else {
            return Err(misuse("these bytes are no handle of a simulated device's memory"));
        };
        if name.process == std::process::id() {
            return Err(misuse("this is a handle of this process, which only others can open"));
        }
        let Some(file) = name.open() else {
            return Err(misuse("the memory of this handle was freed, or its process has ended"));
        };
        let range = HostRange::reserve(name.part.bytes)
            .map_err(|error| host_failure("reserve address space", &error))?;
        range
            .map_open(&file, name.part.offset)
            .map_err(|error| host_failure("map shared memory", &error))?;
        let at = range.start();
        let region = Region::new(device, range, RegionKind::Opened);
        self.regions.insert(Region { held: Some(file), ..region });
        self.opened.insert(handle, Opened { at, times: 1 });
        Ok(at)
    }

    /// The length of the memory of another process that starts at the address.
    pub(super) fn opened(&self, device: usize, at: Address) -> Outcome<Bytes> {
        match self.regions.get(at) {
            Some(region) if region.kind == RegionKind::Opened && region.device == device => {
                Ok(region.range.bytes())
            }
            _ => Err(misuse(format!(
                "{at:#x} is no memory of another process that device {device} has opened, or it \
                 was closed before"
            ))),
        }
    }

    /// Takes one opening back, where it is the last one only if `unused` does not fail.
    pub(super) fn ipc_close_handle(
        &mut self,
        device: usize,
        at: Address,
        unused: impl FnOnce(Bytes) -> Outcome<()>,
    ) -> Outcome<()> {
        let bytes = self.opened(device, at)?;
        let found = self.opened.iter_mut().find(|(_, opened)| opened.at == at);
        let Some((&handle, opened)) = found else {
            return Err(misuse(format!("{at:#x} was closed before")));
        };
        if opened.times > 1 {
            opened.times -= 1;
            return Ok(());
        }
        unused(bytes)?;
        self.opened.remove(&handle);
        self.regions.remove(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_read_from_its_position() {
        let part = Part { offset: 6 * GRANULE, bytes: 17 * GRANULE };
        assert_eq!(Part::at(part.position().unwrap()), Some(part));
        assert_eq!(Part::at(6 * GRANULE), None);
        assert_eq!(Part { offset: 0, bytes: GRANULE * GRANULE }.position(), None);
    }

    #[test]
    fn a_name_is_read_from_its_handle() {
        let part = Part { offset: 4 * GRANULE, bytes: GRANULE };
        let name = Name { process: 77, number: 5, part };
        assert_eq!(Name::of_handle(name.to_handle()), Some(name));
        assert_eq!(Name::of_handle(IpcHandle([7; 64])), None);
        assert_eq!(Name::of_handle(IpcHandle([0; 64])), None);
    }
}
