//! What an allocator does on every device, as scenarios that run on a simulated device and on a
//! GPU: memory shared between processes, private pools with captured graphs, several devices.
//!
//! A scenario knows no more than [`Device`] and [`Allocator`]; how memory is painted on a device is
//! told by a [`Brush`], which is a kernel on a GPU. It says what it does when it fails, because the
//! machine on which it does may not be at hand.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

pub(crate) mod graphs;
pub(crate) mod history;
pub(crate) mod others;
pub(crate) mod peers;
pub(crate) mod processes;
pub(crate) mod sharing;

use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use plugalloc::device::Device;
use plugalloc::units::{Address, Bytes, DeviceId, MIB, StreamId};
use plugalloc::{Allocator, Config};

use crate::blocked::while_blocked;

/// How work on memory is queued on one device.
pub(crate) trait Brush: Send + Sync {
    /// Queues what sets every byte of a span, a multiple of four bytes, on a stream of the device.
    fn paint(&self, at: Address, bytes: Bytes, value: u8, stream: StreamId);
}

/// A device and its brush.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) brush: Arc<dyn Brush>,
}

/// Which memory an allocator takes from its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Physical handles, mapped where they are needed.
    Handles,
    /// Whole segments.
    Segments,
}

impl Kind {
    pub(crate) fn config(self) -> Config {
        let expandable = if self == Kind::Handles { "True" } else { "False" };
        Config::parse(&format!("expandable_segments:{expandable}")).unwrap()
    }
}

/// An allocator over some places, as seen from one of its devices.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) place: Place,
    pub(crate) id: DeviceId,
}

/// An allocator over these places, as seen from each.
pub(crate) fn sites(places: &[Place], kind: Kind) -> Vec<Site> {
    let devices = places.iter().map(|place| Arc::clone(&place.device)).collect();
    let allocator = Arc::new(Allocator::new(devices, kind.config()).unwrap());
    let site = |(index, place): (usize, &Place)| Site {
        allocator: Arc::clone(&allocator),
        place: place.clone(),
        id: DeviceId(index as i32),
    };
    places.iter().enumerate().map(site).collect()
}

impl Site {
    /// An allocator over one place alone.
    pub(crate) fn new(place: &Place, kind: Kind) -> Site {
        sites(std::slice::from_ref(place), kind).remove(0)
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &*self.place.device
    }

    pub(crate) fn stream(&self) -> StreamId {
        self.device().stream_create().unwrap()
    }

    /// Ends a stream on which nothing is queued any more.
    pub(crate) fn end_stream(&self, stream: StreamId) {
        self.device().stream_synchronize(stream).unwrap();
        self.allocator.retire_stream(self.id, stream).unwrap();
        self.device().stream_destroy(stream).unwrap();
    }

    #[track_caller]
    pub(crate) fn allocate(&self, bytes: Bytes, stream: StreamId) -> Address {
        match self.allocator.allocate(self.id, bytes, stream) {
            Ok(at) => at,
            Err(error) => panic!("{bytes} bytes on {} and {stream}: {error}", self.id),
        }
    }

    #[track_caller]
    pub(crate) fn free(&self, at: Address) {
        if let Err(error) = self.allocator.free(at) {
            panic!("{error}");
        }
    }

    pub(crate) fn paint(&self, at: Address, bytes: Bytes, value: u8, stream: StreamId) {
        self.place.brush.paint(at, bytes, value, stream);
    }

    #[track_caller]
    pub(crate) fn copy(&self, to: Address, from: Address, bytes: Bytes, stream: StreamId) {
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        if let Err(error) = unsafe { self.device().copy_async(to, from, bytes, stream) } {
            panic!("{bytes} bytes from {from:#x} to {to:#x}: {error}");
        }
    }

    /// Fails unless every byte of a span is `value` once `stream`, which is one of this device, has
    /// run.
    #[track_caller]
    pub(crate) fn assert_painted(
        &self,
        (at, bytes): (Address, Bytes),
        value: u8,
        stream: StreamId,
        what: &str,
    ) {
        let mut found = vec![!value; bytes as usize];
        self.copy(found.as_mut_ptr() as Address, at, bytes, stream);
        if let Err(error) = self.device().stream_synchronize(stream) {
            panic!("{what}: {error}");
        }
        // Compared as a whole first, which is quick without optimisation too.
        if found != vec![value; bytes as usize] {
            let wrong = found.iter().filter(|&&byte| byte != value).count();
            let first = found.iter().position(|&byte| byte != value).unwrap_or(0);
            panic!(
                "{what}: {wrong} of {bytes} bytes at {at:#x} on {} are not {value:#x}; byte \
                 {first} is {:#x}",
                self.id, found[first]
            );
        }
    }

    /// What the allocator has of the device.
    pub(crate) fn reserved(&self) -> Bytes {
        self.allocator.statistics(self.id).unwrap().reserved_bytes.all.current as Bytes
    }

    /// How many blocks are in use, or wait for streams.
    pub(crate) fn active(&self) -> i64 {
        self.allocator.statistics(self.id).unwrap().active.all.current
    }

    /// Lets the allocator have so much of the device.
    pub(crate) fn limit(&self, bytes: Bytes) {
        let total = self.device().memory_info().unwrap().total;
        // A little more, since the share is rounded.
        let share = (bytes + 64 * 1024) as f64 / total as f64;
        self.allocator.set_memory_fraction(self.id, share).unwrap();
    }

    /// The device's free memory.
    pub(crate) fn free_memory(&self) -> Bytes {
        self.device().memory_info().unwrap().free
    }

    /// Waits until the device has so much free memory, but for a little.
    #[track_caller]
    pub(crate) fn await_free(&self, bytes: Bytes, what: &str) {
        let start = Instant::now();
        // The end of a process takes the driver a moment.
        while self.free_memory() + 8 * MIB < bytes {
            let missing = bytes - self.free_memory();
            let waited = start.elapsed() > Duration::from_secs(15);
            assert!(!waited, "{what}: {missing} bytes of the device have not come back");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How a scenario ends: nothing lives or waits, and all memory has gone back.
    #[track_caller]
    pub(crate) fn finish(&self) {
        self.device().synchronize().unwrap();
        self.allocator.process_events().unwrap();
        if let Err(error) = self.allocator.is_quiescent() {
            panic!("{error}");
        }
        self.allocator.empty_cache().unwrap();
        assert_eq!(self.reserved(), 0, "bytes of {} that did not go back", self.id);
    }
}

/// Says why a scenario does not take place, past the capture of what passing tests print.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
