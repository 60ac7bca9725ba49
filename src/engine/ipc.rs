//! Memory shared with other processes: exports, which keep memory in place until its allocation is
//! freed, and imports, which are opened once and counted.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::allocate::foreign;
use super::ipc_format::{Piece, Shared};
use super::pins::Pinned;
use super::{Engine, PageEntry};
use crate::device::{DeviceResult, HandleId, HandleType, ShareableHandle, fetch_descriptor};
use crate::error::{Error, InvalidPointer, PointerFault, PointerUse, Result};
use crate::heap::Lookup;
use crate::units::{Address, Bytes};

/// What one device shares with other processes.
#[derive(Debug, Default)]
pub(crate) struct Ipc {
    /// By the start of the allocation.
    exports: HashMap<Address, Export>,
    imports: HashMap<Vec<u8>, Import>,
    /// What is still to be given back of others: closed by everybody, but the device could not be
    /// waited for; or something failed.
    left: Vec<Left>,
}

/// An allocation that was shared.
#[derive(Debug)]
struct Export {
    pinned: Pinned,
    bytes: Vec<u8>,
    /// File descriptors stay open, since their numbers are what was shared.
    _open: Vec<ShareableHandle>,
}

/// How many exports this process has made, of all its allocators.
static EXPORTS: AtomicU64 = AtomicU64::new(0);

/// Memory of another process.
#[derive(Clone, Copy, Debug)]
struct Import {
    at: Address,
    bytes: Bytes,
    times: usize,
    legacy: bool,
}

/// What there is of memory of another process that nobody uses.
#[derive(Debug, Default)]
struct Left {
    at: Address,
    /// How many bytes are reserved there, and how many are mapped of them.
    reserved: Bytes,
    mapped: Bytes,
    /// Handles that could not be given back when they were mapped.
    handles: Vec<HandleId>,
    legacy: bool,
}

impl From<Import> for Left {
    fn from(Import { at, bytes, legacy, .. }: Import) -> Left {
        Left { at, reserved: bytes, mapped: bytes, handles: Vec::new(), legacy }
    }
}

impl Ipc {
    /// Whether the live allocation that starts there was shared.
    pub(super) fn is_exported(&self, start: Address) -> bool {
        self.exports.contains_key(&start)
    }
}

impl Engine {
    /// Shares the live allocation around an address: the bytes with which another process opens the
    /// memory, and how far into it the address lies.
    pub(crate) fn share(&self, at: PageEntry<'_>, address: Address) -> Result<(Vec<u8>, Bytes)> {
        let start = start_of(at, address)?;
        if let Some(export) = self.ipc.lock().exports.get(&start) {
            return Ok((export.bytes.clone(), address - export.pinned.address));
        }
        // The allocation may begin in another granule.
        let Some((shard, slot)) = self.map.get(start) else {
            return Err(foreign(address));
        };
        let at = PageEntry { shard, slot };
        let pinned = self.pin(at, start)?;
        let shared = self.export(at, pinned).and_then(|(shared, open)| {
            // A free of the allocation passes by `end_export` from now on.
            set_shared(at, start)?;
            let bytes = shared.to_bytes(EXPORTS.fetch_add(1, Ordering::Relaxed));
            Ok(Export { pinned, bytes, _open: open })
        });
        let export = match shared {
            Ok(export) => export,
            Err(error) => {
                self.unpin(pinned.number)?;
                return Err(error);
            }
        };
        let (bytes, number) = {
            let mut ipc = self.ipc.lock();
            // What another thread shared meanwhile stays, since that may be on its way already.
            let kept = ipc.exports.entry(start).or_insert(export);
            (kept.bytes.clone(), kept.pinned.number)
        };
        if number != pinned.number {
            self.unpin(pinned.number)?;
        }
        Ok((bytes, address - pinned.address))
    }

    /// Exports what is pinned, which is a segment or whole handles.
    fn export(&self, at: PageEntry<'_>, pinned: Pinned) -> Result<(Shared, Vec<ShareableHandle>)> {
        let growth = self.growth.lock();
        let views = at.shard.heap.lock().handles_under(pinned.address, pinned.bytes);
        let abilities = self.device.capabilities();
        if views.is_empty() {
            if !abilities.legacy_ipc {
                return Err(self.cannot_share("it has no legacy handles for whole segments"));
            }
            let handle = self.device.ipc_get_handle(pinned.address)?;
            return Ok((Shared::Legacy(Piece { bytes: pinned.bytes, handle }), Vec::new()));
        }
        let handle_type = if abilities.handle_types.file_descriptor {
            HandleType::FileDescriptor
        } else if abilities.handle_types.fabric {
            HandleType::Fabric
        } else {
            return Err(self.cannot_share("its physical handles cannot be exported"));
        };
        let (mut numbers, mut fabric, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for (number, bytes) in views {
            let Some(handle) = growth.store.handle(number) else {
                return Err(foreign(pinned.address));
            };
            let made = self.device.export_handle(handle.id(), handle_type)?;
            match &made {
                ShareableHandle::FileDescriptor(descriptor) => {
                    numbers.push(Piece { bytes, handle: descriptor.as_raw_fd() });
                }
                ShareableHandle::Fabric(handle) => fabric.push(Piece { bytes, handle: *handle }),
            }
            open.push(made);
        }
        let shared = match handle_type {
            HandleType::FileDescriptor => Shared::Descriptors(std::process::id(), numbers),
            HandleType::Fabric => Shared::Fabric(fabric),
        };
        Ok((shared, open))
    }

    fn cannot_share(&self, why: &str) -> Error {
        Error::Unsupported {
            operation: "sharing memory with another process".to_owned(),
            by: self.device.name(),
            why: why.to_owned(),
        }
    }

    /// The allocation is freed: what was shared of it is not kept in place any more.
    pub(super) fn end_export(&self, address: Address) {
        let ended = self.ipc.lock().exports.remove(&address);
        if let Some(export) = ended {
            // It was pinned for as long as it was in the table.
            let _ = self.unpin(export.pinned.number);
        }
    }

    /// Opens memory that another process has shared: its start and its length.
    pub(crate) fn open_shared(&self, bytes: &[u8]) -> Result<(Address, Bytes)> {
        let shared = Shared::from_bytes(bytes)?;
        let mut ipc = self.ipc.lock();
        self.close_left(&mut ipc);
        if let Some(import) = ipc.imports.get_mut(bytes) {
            import.times += 1;
            return Ok((import.at, import.bytes));
        }
        let import = match shared {
            Shared::Legacy(Piece { bytes, handle }) => {
                Import { at: self.device.ipc_open_handle(handle)?, bytes, times: 1, legacy: true }
            }
            Shared::Descriptors(process, pieces) => {
                let fetch = |piece: Piece<i32>| {
                    let fetched = fetch_descriptor(process, piece.handle);
                    let fetched = fetched.map_err(|error| cannot_fetch(process, &error))?;
                    Ok((ShareableHandle::FileDescriptor(fetched), piece.bytes))
                };
                self.import(&mut ipc, &pieces.into_iter().map(fetch).collect::<Result<Vec<_>>>()?)?
            }
            Shared::Fabric(pieces) => {
                let whole = |p: Piece<[u8; 64]>| (ShareableHandle::Fabric(p.handle), p.bytes);
                self.import(&mut ipc, &pieces.into_iter().map(whole).collect::<Vec<_>>())?
            }
        };
        ipc.imports.insert(bytes.to_vec(), import);
        Ok((import.at, import.bytes))
    }

    /// Maps imported memory side by side.
    fn import(&self, ipc: &mut Ipc, pieces: &[(ShareableHandle, Bytes)]) -> Result<Import> {
        let bytes = pieces.iter().map(|(_, bytes)| bytes).sum();
        let at = self.device.reserve(bytes)?;
        let mut made = Left { at, reserved: bytes, ..Left::default() };
        for (shared, length) in pieces {
            if let Err(error) = self.import_next(&mut made, shared, *length) {
                if !self.give_import_back(&mut made) {
                    ipc.left.push(made);
                }
                return Err(error.into());
            }
        }
        Ok(Import { at, bytes, times: 1, legacy: false })
    }

    /// Maps imported memory behind what is mapped of it.
    fn import_next(
        &self,
        made: &mut Left,
        shared: &ShareableHandle,
        bytes: Bytes,
    ) -> DeviceResult<()> {
        let handle = self.device.import_handle(shared)?;
        let at = made.at + made.mapped;
        let mapped = self.device.map(at, bytes, handle).and_then(|()| {
            made.mapped += bytes;
            self.device.set_access(at, bytes)
        });
        // Mapped memory does not need its handle.
        let released = self.device.release(handle);
        if released.is_err() {
            made.handles.push(handle);
        }
        mapped.and(released)
    }

    /// Gives back as much as can be; true where that is all.
    fn give_import_back(&self, left: &mut Left) -> bool {
        if left.legacy {
            return self.device.ipc_close_handle(left.at).is_ok();
        }
        left.handles.retain(|&handle| self.device.release(handle).is_err());
        if left.mapped > 0 && self.device.unmap(left.at, left.mapped).is_ok() {
            left.mapped = 0;
        }
        if left.mapped == 0
            && left.reserved > 0
            && self.device.free_address(left.at, left.reserved).is_ok()
        {
            left.reserved = 0;
        }
        left.reserved == 0 && left.handles.is_empty()
    }

    /// Closes one opening. The last one waits for the device, and unmaps.
    pub(crate) fn close_shared(&self, address: Address) -> Result<()> {
        let mut ipc = self.ipc.lock();
        let found = ipc.imports.iter_mut().find(|(_, import)| import.at == address);
        let Some((key, import)) = found else {
            return Err(foreign(address).when_asked_to(PointerUse::Close));
        };
        import.times -= 1;
        if import.times == 0 {
            let key = key.clone();
            let ended = ipc.imports.remove(&key);
            ipc.left.extend(ended.map(Left::from));
        }
        self.close_left(&mut ipc);
        Ok(())
    }

    /// Gives back what nobody has open, if the device can be waited for now; true where there was
    /// any.
    fn close_left(&self, ipc: &mut Ipc) -> bool {
        if ipc.left.is_empty() || self.may_be_capturing() || self.device.synchronize().is_err() {
            return false;
        }
        ipc.left.retain_mut(|left| !self.give_import_back(left));
        true
    }

    /// The same of what failed before, where somebody empties the cache, or a request would fail.
    pub(super) fn close_all_left(&self) -> bool {
        self.close_left(&mut self.ipc.lock())
    }
}

/// The start of the live allocation around an address.
fn start_of(at: PageEntry<'_>, address: Address) -> Result<Address> {
    match at.shard.heap.lock().lookup(at.slot, address) {
        Lookup::Live(_) => Ok(address),
        Lookup::Interior(start, _) => Ok(start),
        Lookup::Freed => Err(InvalidPointer::new(address, PointerFault::DoubleFree).into()),
        Lookup::Nothing => Err(foreign(address)),
    }
}

/// Marks a live allocation as one whose free is not only its own.
fn set_shared(at: PageEntry<'_>, address: Address) -> Result<()> {
    let mut heap = at.shard.heap.lock();
    match heap.lookup(at.slot, address) {
        Lookup::Live(block) => heap.set_shared(block),
        _ => return Err(foreign(address)),
    }
    Ok(())
}

fn cannot_fetch(process: u32, error: &std::io::Error) -> Error {
    Error::Unsupported {
        operation: "opening memory of another process".to_owned(),
        by: "this system".to_owned(),
        why: format!(
            "a file descriptor of process {process} cannot be fetched ({error}); pidfd_getfd needs \
             Linux 5.6, the same user and process namespace, and in a container CAP_SYS_PTRACE"
        ),
    }
}
