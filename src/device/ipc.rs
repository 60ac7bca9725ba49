//! Memory as other processes can be given it.

use std::os::fd::OwnedFd;

/// A way to hand physical memory to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandleType {
    /// A POSIX file descriptor, for processes of the same machine. It is sent over a Unix socket,
    /// inherited, or fetched with `pidfd_getfd`.
    FileDescriptor,
    /// A fabric handle: 64 bytes that a process of any machine of the same NVLink fabric can open.
    Fabric,
}

impl std::fmt::Display for HandleType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            HandleType::FileDescriptor => "file descriptor",
            HandleType::Fabric => "fabric handle",
        })
    }
}

/// Which types a device's physical memory can be exported as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandleTypes {
    /// [`HandleType::FileDescriptor`].
    pub file_descriptor: bool,
    /// [`HandleType::Fabric`].
    pub fabric: bool,
}

impl HandleTypes {
    /// Memory that cannot be exported.
    pub const NONE: HandleTypes = HandleTypes { file_descriptor: false, fabric: false };

    /// Whether memory can be exported as this type.
    pub fn contains(self, handle_type: HandleType) -> bool {
        match handle_type {
            HandleType::FileDescriptor => self.file_descriptor,
            HandleType::Fabric => self.fabric,
        }
    }
}

/// Physical memory in the form in which it is sent to another process, which
/// [imports](super::Device::import_handle) it. The memory lives for as long as this does, or a
/// handle anywhere that was imported from it, or a mapping of such a handle; a fabric handle keeps
/// nothing alive by itself.
#[derive(Debug)]
#[non_exhaustive]
pub enum ShareableHandle {
    /// A file descriptor, closed when dropped. What is imported from it does not need it any more.
    FileDescriptor(OwnedFd),
    /// A fabric handle.
    Fabric([u8; 64]),
}

impl ShareableHandle {
    /// Which type it is.
    pub fn handle_type(&self) -> HandleType {
        match self {
            ShareableHandle::FileDescriptor(_) => HandleType::FileDescriptor,
            ShareableHandle::Fabric(_) => HandleType::Fabric,
        }
    }
}

/// Memory of [`malloc`](super::Device::malloc) in the form in which it is sent to another process
/// of the same machine: the legacy handle of CUDA IPC (`cudaIpcMemHandle_t`). Plain bytes, which
/// own nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpcHandle(pub [u8; 64]);

impl std::fmt::Debug for IpcHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IpcHandle(")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}
