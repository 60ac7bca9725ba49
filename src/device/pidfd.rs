//! File descriptors of other processes.

use std::ffi::{c_int, c_long, c_uint};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

unsafe extern "C" {
    /// The C library has no functions for the two calls below, only the way to make any.
    fn syscall(number: c_long, ...) -> c_long;
    fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
}

// The numbers are the same on every architecture.
const PIDFD_OPEN: c_long = 434;
const PIDFD_GETFD: c_long = 438;
/// Linux's number of the command.
const F_DUPFD_CLOEXEC: c_int = 1030;

/// The new file descriptor that a call gave, or its error.
fn owned(result: c_long) -> Result<OwnedFd> {
    match c_int::try_from(result) {
        // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(Error::last_os_error()),
    }
}

/// Duplicates a file descriptor of a process. Of this one that always works.
pub(crate) fn fetch(process: u32, descriptor: i32) -> Result<OwnedFd> {
    if process != std::process::id() {
        return fetch_from(process, descriptor);
    }
    // SAFETY: the kernel checks the number, and makes a new descriptor.
    owned(unsafe { fcntl(descriptor, F_DUPFD_CLOEXEC, 0 as c_int) }.into())
}

/// Fetches a file descriptor of another process, as this one may have them that it could trace:
/// Linux 5.6, the same user, and in a container the same process namespace.
fn fetch_from(process: u32, descriptor: i32) -> Result<OwnedFd> {
    let flags: c_uint = 0;
    // SAFETY: two integers, as the call has them.
    let opened = unsafe { syscall(PIDFD_OPEN, process as c_int, flags) };
    let opened = owned(opened)?;
    // SAFETY: three integers, as the call has them.
    let fetched = unsafe { syscall(PIDFD_GETFD, opened.as_raw_fd(), descriptor as c_int, flags) };
    owned(fetched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek};

    /// Fetches a descriptor of this process, whose position goes with it.
    fn try_out(fetch: impl Fn(u32, i32) -> Result<OwnedFd>) -> Result<()> {
        let mut file = File::open("/proc/self/exe").unwrap();
        file.seek(std::io::SeekFrom::Start(1)).unwrap();
        let fetched = fetch(std::process::id(), file.as_raw_fd())?;
        let mut mark = [0; 3];
        File::from(fetched).read_exact(&mut mark).unwrap();
        assert_eq!(&mark, b"ELF");
        Ok(())
    }

    #[test]
    fn fetches_a_descriptor_with_its_position() {
        try_out(fetch).unwrap();
        if let Err(error) = try_out(fetch_from) {
            // A kernel or a container that has no such call.
            println!("skipped: {error}");
        }
        for number in [1 << 20, -1] {
            assert!(fetch(std::process::id(), number).is_err());
        }
        assert!(fetch(u32::MAX, 0).is_err());
    }
}
