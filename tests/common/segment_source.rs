//! A source of segments for private pools that keeps books.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use plugalloc::SegmentSource;
use plugalloc::device::Device;
use plugalloc::error::Result;
use plugalloc::units::{Address, Bytes, DeviceId, GRANULE, StreamId};

/// Gives memory of a device, some of it badly aligned on request.
pub(crate) struct Counted {
    device: Arc<dyn Device>,
    pub(crate) live: Mutex<Vec<(Address, Bytes)>>,
    pub(crate) streams: Mutex<BTreeSet<StreamId>>,
    pub(crate) shift: AtomicU64,
    /// The longest segment that it has.
    pub(crate) longest: AtomicU64,
    /// How often it was called.
    pub(crate) calls: AtomicU64,
}

impl Counted {
    pub(crate) fn new(device: Arc<dyn Device>, longest: Bytes) -> Arc<Counted> {
        Arc::new(Counted {
            device,
            live: Mutex::default(),
            streams: Mutex::default(),
            shift: AtomicU64::new(0),
            longest: AtomicU64::new(longest),
            calls: AtomicU64::new(0),
        })
    }
}

impl SegmentSource for Counted {
    fn allocate(&self, _: DeviceId, bytes: Bytes, stream: StreamId) -> Result<Address> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.streams.lock().insert(stream);
        if bytes > self.longest.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let base = self.device.malloc(bytes)? + self.shift.load(Ordering::Relaxed);
        self.live.lock().push((base, bytes));
        Ok(base)
    }

    fn free(&self, _: DeviceId, address: Address, bytes: Bytes) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut live = self.live.lock();
        let at = live.iter().position(|&segment| segment == (address, bytes)).unwrap();
        live.swap_remove(at);
        Ok(self.device.free(address / GRANULE * GRANULE)?)
    }
}
