//! Memory shared between processes.

use std::sync::Arc;

use crate::allocator::Allocator;
use crate::engine::foreign;
use crate::error::{Error, PointerUse, Result};
use crate::units::{Address, Bytes, DeviceId};

/// Memory as another process opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedMemory {
    /// How many bytes into the opened memory the shared address lies.
    pub offset: Bytes,
    /// What the other process passes to [`Allocator::open_shared`]. It begins with `plug`, the
    /// version of the format, which is 1, and a letter for the kind of handles: `e` file
    /// descriptors, `f` fabric handles, `c` a legacy handle. Otherwise opaque.
    pub handle: Vec<u8>,
}

/// Memory of another process, until this is dropped. Opening the same memory again gives the same
/// address.
///
/// The last one of the same memory that is dropped waits for the device; during a capture the
/// memory is unmapped later. The process that shared the memory frees it after that.
#[derive(Debug)]
pub struct ImportedMemory {
    allocator: Arc<Allocator>,
    device: DeviceId,
    address: Address,
    bytes: Bytes,
}

impl ImportedMemory {
    /// Where the memory starts: what was shared lies at an offset from there.
    pub fn address(&self) -> Address {
        self.address
    }

    /// How long the memory is.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The device that it was opened for.
    pub fn device(&self) -> DeviceId {
        self.device
    }
}

impl Drop for ImportedMemory {
    fn drop(&mut self) {
        // It is open as long as this is there.
        let _ = self.allocator.close_shared(self.device, self.address);
    }
}

impl Allocator {
    /// Shares the live allocation around `address` with other processes. What is shared is the
    /// memory under it: whole handles or a segment, with whatever else lies there. It stays in
    /// place until the allocation is freed, which must not be before the others have closed it.
    /// Sharing an allocation again gives the same handle.
    ///
    /// Where the device exports file descriptors, the handle names this process and the numbers of
    /// descriptors that stay open here until the allocation is freed, one for each physical handle;
    /// the other process fetches them with `pidfd_getfd` (Linux 5.6), for which it needs the right
    /// to trace this one.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`] where nothing is live at the address; [`Error::Unsupported`] where
    /// the device cannot share this memory; [`Error::Device`] where the driver fails.
    pub fn share(&self, address: Address) -> Result<SharedMemory> {
        self.check_outside()?;
        if let Some((engine, entry)) = self.owner(address) {
            let shared = engine.share(entry, address);
            let (handle, offset) =
                shared.map_err(|error| error.when_asked_to(PointerUse::Share))?;
            return Ok(SharedMemory { offset, handle });
        }
        if self.direct_around(address).is_none() {
            return Err(foreign(address).when_asked_to(PointerUse::Share));
        }
        Err(Error::Unsupported {
            operation: "sharing memory with another process".to_owned(),
            by: "an allocation without caching".to_owned(),
            why: "nothing keeps it in place; turn caching on".to_owned(),
        })
    }

    /// Opens memory that another process has [shared](Allocator::share), for use on `device`, which
    /// must be the same device there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for bytes that are no such handle, or of another version;
    /// [`Error::Unsupported`] where a file descriptor cannot be fetched, because the process has
    /// ended for instance; [`Error::Device`] where the driver refuses. Legacy handles cannot be
    /// opened by the process that they come from.
    pub fn open_shared(
        self: &Arc<Self>,
        device: DeviceId,
        handle: &[u8],
    ) -> Result<ImportedMemory> {
        let (address, bytes) = self.open_raw(device, handle)?;
        Ok(ImportedMemory { allocator: Arc::clone(self), device, address, bytes })
    }

    pub(crate) fn open_raw(&self, device: DeviceId, handle: &[u8]) -> Result<(Address, Bytes)> {
        self.enter(device)?.open_shared(handle)
    }

    pub(crate) fn close_shared(&self, device: DeviceId, address: Address) -> Result<()> {
        self.enter(device)?.close_shared(address)
    }
}
