//! The host's memory: address space, files of memory and raw bytes. All unsafe code of the
//! simulated device stands here, behind functions that check what can be checked.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::units::{Address, Bytes, GRANULE, align_up};

// The few functions of the C library that are needed, with the types of 64-bit Linux.
unsafe extern "C" {
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn mprotect(address: *mut c_void, length: usize, protection: c_int) -> c_int;
    fn munmap(address: *mut c_void, length: usize) -> c_int;
    // With MS_ASYNC this only looks at the address range, so it is sound for any argument.
    safe fn msync(address: *mut c_void, length: usize, flags: c_int) -> c_int;
    fn fcntl(file: c_int, command: c_int, ...) -> c_int;
    safe fn ftruncate(file: c_int, length: i64) -> c_int;
    safe fn fallocate(file: c_int, mode: c_int, offset: i64, length: i64) -> c_int;
    safe fn getpagesize() -> c_int;
}

const PROT_NONE: c_int = 0;
const PROT_READ: c_int = 1;
const PROT_READ_WRITE: c_int = 1 | 2;
const MAP_SHARED: c_int = 0x01;
const MAP_PRIVATE: c_int = 0x02;
const MAP_FIXED: c_int = 0x10;
const MAP_ANONYMOUS: c_int = 0x20;
const MAP_NORESERVE: c_int = 0x4000;
const MFD_CLOEXEC: c_uint = 1;
const FALLOC_FL_KEEP_SIZE: c_int = 1;
const FALLOC_FL_PUNCH_HOLE: c_int = 2;
const MS_ASYNC: c_int = 1;
const F_OFD_GETLK: c_int = 36;
const F_OFD_SETLK: c_int = 37;
const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;
/// The error of a kernel that is out of memory, address space or mappings.
pub(super) const ENOMEM: i32 = 12;

/// The length of a [`MemoryFile`]: so long that offsets never need to be used twice. It costs
/// nothing, because only touched pages exist.
const FILE_BYTES: i64 = 1 << 62;

/// The result of a call of the C library that returns 0 or -1.
fn check(status: c_int) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// What the kernel calls a memory file of this name.
const LINK: &str = "/memfd:plugalloc-sim (deleted)";

/// The kernel's `struct flock`.
#[repr(C)]
struct FileLock {
    kind: i16,
    whence: i16,
    start: i64,
    length: i64,
    process: c_int,
}

/// A sparse file that lives in host memory: what a device's physical memory is made of.
///
/// This is one opening of the file: it has a position and locks of its own, which go along when its
/// descriptor is duplicated or sent to another process.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: File,
}

impl MemoryFile {
    /// An empty file.
    pub(super) fn new() -> Result<MemoryFile> {
        let name = c"plugalloc-sim";
        // SAFETY: the name is a string that ends in a zero byte and outlives the call.
        let descriptor = unsafe { memfd_create(name.as_ptr(), MFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the call above has just made this descriptor, so nobody else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        check(ftruncate(descriptor.as_raw_fd(), FILE_BYTES))?;
        Ok(MemoryFile { file: File::from(descriptor) })
    }

    /// The file behind a descriptor, if it is such a file.
    pub(super) fn from_descriptor(descriptor: OwnedFd) -> Option<MemoryFile> {
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let link = std::fs::read_link(path).ok()?;
        (link.to_str() == Some(LINK)).then(|| MemoryFile { file: File::from(descriptor) })
    }

    /// Opens the file again which a process has open under this number.
    pub(super) fn open_of(process: u32, number: c_int) -> Result<MemoryFile> {
        let path = format!("/proc/{process}/fd/{number}");
        let opened = OpenOptions::new().read(true).write(true).open(path)?;
        MemoryFile::from_descriptor(OwnedFd::from(opened))
            .ok_or_else(|| Error::other("it is another file"))
    }

    /// Opens this file again.
    pub(super) fn reopen(&self) -> Result<MemoryFile> {
        MemoryFile::open_of(std::process::id(), self.number())
    }

    /// The number of its descriptor.
    pub(super) fn number(&self) -> c_int {
        self.file.as_raw_fd()
    }

    /// Gives the descriptor up.
    pub(super) fn into_descriptor(self) -> OwnedFd {
        OwnedFd::from(self.file)
    }

    /// Where this opening of the file stands.
    pub(super) fn position(&self) -> Result<u64> {
        (&self.file).stream_position()
    }

    /// Moves this opening of the file to a place.
    pub(super) fn set_position(&self, position: u64) -> Result<()> {
        (&self.file).seek(SeekFrom::Start(position)).map(drop)
    }

    /// Holds a part of the file for as long as this opening of it lasts, in whichever process.
    pub(super) fn hold(&self, offset: Bytes, bytes: Bytes) -> Result<()> {
        self.lock(F_OFD_SETLK, F_RDLCK, offset, bytes).map(drop)
    }

    /// Whether another opening of the file [holds](MemoryFile::hold) anything of this part.
    pub(super) fn is_held(&self, offset: Bytes, bytes: Bytes) -> Result<bool> {
        self.lock(F_OFD_GETLK, F_WRLCK, offset, bytes).map(|found| found != F_UNLCK)
    }

    /// Sets or tests a lock, and returns its kind as the kernel left it.
    fn lock(&self, command: c_int, kind: i16, offset: Bytes, bytes: Bytes) -> Result<i16> {
        let (start, length) = (offset as i64, bytes as i64);
        // Zero is the whence of the start of the file; the process must be 0 for these locks.
        let mut lock = FileLock { kind, whence: 0, start, length, process: 0 };
        // SAFETY: for these commands the kernel reads and writes one lock.
        check(unsafe { fcntl(self.number(), command, &raw mut lock) })?;
        Ok(lock.kind)
    }

    /// Gives the host back what the bytes at `offset` occupy. They read as zero afterwards.
    pub(super) fn discard(&self, offset: Bytes, bytes: Bytes) -> Result<()> {
        check(fallocate(
            self.number(),
            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            offset as i64,
            bytes as i64,
        ))
    }
}

/// Address space of this process that belongs to its holder: nothing else is ever placed there. It
/// is inaccessible until [`open`](HostRange::open)ed, and starts at a multiple of the granule.
#[derive(Debug)]
pub(super) struct HostRange {
    start: Address,
    bytes: Bytes,
}

impl HostRange {
    /// Takes address space. Opened without a mapping, it is ordinary memory.
    pub(super) fn reserve(bytes: Bytes) -> Result<HostRange> {
        let too_long = || Error::other("the length exceeds the address space");
        // The system aligns to its own small pages: take one granule more, and trim both ends.
        let taken = bytes.checked_add(GRANULE).ok_or_else(too_long)?;
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        let length = taken as usize;
        // SAFETY: without MAP_FIXED and with no address the system chooses one that nobody uses.
        let taken_at = unsafe { mmap(std::ptr::null_mut(), length, PROT_NONE, flags, -1, 0) };
        if taken_at as isize == -1 {
            return Err(Error::last_os_error());
        }
        let taken_at = taken_at as Address;
        let start = align_up(taken_at, GRANULE);
        let (head, tail) = (start - taken_at, GRANULE - (start - taken_at));
        // Dropping an unwanted end gives it back.
        drop(HostRange { start: taken_at, bytes: head });
        drop(HostRange { start: start + bytes, bytes: tail });
        Ok(HostRange { start, bytes })
    }

    /// Where the range starts.
    pub(super) fn start(&self) -> Address {
        self.start
    }

    /// How long it is.
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Where it ends.
    pub(super) fn end(&self) -> Address {
        self.start + self.bytes
    }

    /// Makes the bytes of a file from `offset` appear at `at`, readable and writable: a second call
    /// to open them would double the time of a mapping.
    pub(super) fn map(
        &self,
        at: Address,
        bytes: Bytes,
        file: &MemoryFile,
        offset: Bytes,
    ) -> Result<()> {
        let descriptor = file.number();
        let flags = MAP_SHARED | MAP_NORESERVE;
        self.place(at, bytes, PROT_READ_WRITE, flags, (descriptor, offset))
    }

    /// Makes the bytes of a file from `offset` appear in the whole range, readable and writable.
    pub(super) fn map_open(&self, file: &MemoryFile, offset: Bytes) -> Result<()> {
        self.map(self.start, self.bytes, file, offset)
    }

    /// Makes nothing appear at `at` again.
    pub(super) fn unmap(&self, at: Address, bytes: Bytes, spare: &SpareMappings) -> Result<()> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        let place = || self.place(at, bytes, PROT_NONE, flags, (-1, 0));
        match place() {
            Err(error) if error.raw_os_error() == Some(ENOMEM) => spare.lend(place),
            other => other,
        }
    }

    fn place(
        &self,
        at: Address,
        bytes: Bytes,
        protection: c_int,
        flags: c_int,
        (descriptor, offset): (c_int, Bytes),
    ) -> Result<()> {
        self.assert_inside(at, bytes);
        let (place, length) = (at as *mut c_void, bytes as usize);
        let flags = flags | MAP_FIXED;
        // SAFETY: the span lies inside this range, which belongs to its holder alone, so nothing of
        // anyone else is replaced.
        let placed = unsafe { mmap(place, length, protection, flags, descriptor, offset as i64) };
        if placed as isize == -1 {
            return Err(Error::last_os_error());
        }
        Ok(())
    }

    fn protect(&self, at: Address, bytes: Bytes, protection: c_int) -> Result<()> {
        self.assert_inside(at, bytes);
        // SAFETY: the span lies inside this range, which belongs to its holder alone.
        check(unsafe { mprotect(at as *mut c_void, bytes as usize, protection) })
    }

    fn assert_inside(&self, at: Address, bytes: Bytes) {
        assert!(at >= self.start, "{at:#x} lies before the range");
        assert!(bytes <= self.bytes, "{bytes} bytes are longer than the range");
        assert!(at - self.start <= self.bytes - bytes, "{at:#x} ends after the range");
    }
}

impl Drop for HostRange {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: the range belongs to this value alone, which ends here.
        let _status = unsafe { munmap(self.start as *mut c_void, self.bytes as usize) };
        // It fails only where the kernel has no mapping left to split one; the addresses then stay
        // taken, which harms nobody.
    }
}

/// Mappings that serve nothing but to be given up. At its limit (`vm.max_map_count`) the kernel
/// refuses even the call that takes a mapping away, so a process there could not unmap its way out.
#[derive(Debug)]
pub(super) struct SpareMappings {
    range: HostRange,
}

impl SpareMappings {
    /// Each adds two mappings: itself, and the part of the range that it cuts off.
    const COUNT: u64 = 8;

    pub(super) fn new() -> Result<SpareMappings> {
        let spare = SpareMappings { range: HostRange::reserve(GRANULE)? };
        spare.protect_all(PROT_READ)?;
        Ok(spare)
    }

    /// Makes a call while the spare mappings are given up.
    fn lend(&self, call: impl FnOnce() -> Result<()>) -> Result<()> {
        self.protect_all(PROT_NONE)?;
        let result = call();
        // If there is no room for them yet, those that are missing are taken at the next occasion.
        let _ = self.protect_all(PROT_READ);
        result
    }

    /// Sets every second page apart by its protection, or joins them again.
    fn protect_all(&self, protection: c_int) -> Result<()> {
        let page = getpagesize() as u64;
        for index in 0..Self::COUNT {
            let at = self.range.start() + (2 * index + 1) * page;
            self.range.protect(at, page, protection)?;
        }
        Ok(())
    }
}

/// Whether every page of the span exists in this process.
pub(super) fn is_present(at: Address, bytes: Bytes) -> bool {
    let page = getpagesize() as u64;
    let start = at & !(page - 1);
    let Some(length) = (at - start).checked_add(bytes) else {
        return false;
    };
    msync(start as *mut c_void, length as usize, MS_ASYNC) == 0
}

/// Copies bytes; the spans may overlap, as they may where one handle is mapped at two addresses.
///
/// The caller has checked that each span is accessible memory of the machine, or present host
/// memory, which `Device::copy_async` obliges its caller to keep valid and writable.
pub(super) fn copy(to: Address, from: Address, bytes: Bytes) {
    // SAFETY: the spans are valid by the checks and the contract that the function names; a copy
    // that allows overlap needs no more.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) }
}

/// Sets bytes. The caller has checked that the span is accessible memory of the machine.
pub(super) fn fill(at: Address, value: u8, bytes: Bytes) {
    // SAFETY: the span is valid by the checks that the function names.
    unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_start_at_a_granule_and_are_absent_after_the_drop() {
        let range = HostRange::reserve(3 * GRANULE).unwrap();
        assert_eq!(range.start() % GRANULE, 0);
        assert!(is_present(range.start(), 3 * GRANULE));
    }

    #[test]
    fn discarded_bytes_read_as_zero() {
        let file = MemoryFile::new().unwrap();
        let range = HostRange::reserve(GRANULE).unwrap();
        range.map(range.start(), GRANULE, &file, 0).unwrap();
        fill(range.start(), 7, 64);
        file.discard(0, GRANULE).unwrap();
        let mut byte = 9u8;
        copy(&raw mut byte as Address, range.start(), 1);
        assert_eq!(byte, 0);
    }

    #[test]
    #[should_panic(expected = "ends after the range")]
    fn a_span_outside_the_range_is_never_touched() {
        let range = HostRange::reserve(GRANULE).unwrap();
        let file = MemoryFile::new().unwrap();
        let _ = range.map(range.start() + GRANULE, GRANULE, &file, 0);
    }
}
