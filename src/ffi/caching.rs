//! What C++ calls of the caching allocator.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::bridge::ffi::StatsRecord;
use super::error::{guarded, guarded_hot, guarded_or, keep};
use super::history::HistoryCore;
use crate::allocator::Allocator;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::open::{SimSize, open_allocator};
use crate::units::{DeviceId, PoolId, StreamId};

/// The engine as a C++ object holds it, whether C++ declared it to be in use, and the pools that
/// other allocators ever gave memory.
pub(crate) struct CachingCore(pub(crate) Arc<Allocator>, AtomicBool, RwLock<HashSet<PoolId>>);

/// Opens devices and builds an engine over them. The error waits in the thread as well.
pub(crate) fn open_caching(
    device: &str,
    conf: &str,
    sim_capacity: u64,
    sim_devices: i32,
) -> Result<Box<CachingCore>> {
    let mut core = None;
    let size = SimSize { capacity: sim_capacity, devices: sim_devices };
    let status = guarded(|| {
        core = Some(CachingCore::new(Arc::new(open_allocator(device, conf, size)?)));
        Ok(())
    });
    core.map(Box::new).ok_or_else(|| Error::Internal {
        check: "open".to_owned(),
        detail: format!("status {status}; the error waits in the thread"),
    })
}

/// What `alloc` gives where an error waits: no address, since those are multiples of 512.
const FAILED_ADDRESS: u64 = 1;

impl CachingCore {
    pub(crate) fn history(&self) -> Box<HistoryCore> {
        Box::new(HistoryCore::of_caching(Arc::clone(&self.0)))
    }

    pub(crate) fn new(allocator: Arc<Allocator>) -> CachingCore {
        CachingCore(allocator, AtomicBool::new(false), RwLock::default())
    }

    #[inline]
    pub(crate) fn alloc(&self, device: i32, bytes: u64, stream: u64) -> u64 {
        let (device, stream) = (DeviceId(device), StreamId(stream));
        guarded_hot(FAILED_ADDRESS, || {
            self.0.allocate_or(device, bytes, stream, |allocator, device, bytes, stream| {
                match allocator.allocate_otherwise(device, bytes, stream) {
                    Ok(address) => address,
                    Err(error) => {
                        keep(error);
                        FAILED_ADDRESS
                    }
                }
            })
        })
    }

    #[inline]
    pub(crate) fn free(&self, address: u64) -> bool {
        guarded_hot(false, || {
            self.0.free_or(address, |allocator, address| {
                allocator.free_otherwise(address).map_err(keep).is_ok()
            })
        })
    }

    pub(crate) fn is_initialized(&self) -> bool {
        self.1.load(Ordering::Relaxed) || self.0.is_used()
    }

    pub(crate) fn mark_initialized(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    /// The number of a `Claim` to the address.
    pub(crate) fn claim_of(&self, address: u64) -> u8 {
        let borrowed = |pool| self.2.read().contains(&pool);
        guarded_or(0, || match self.0.pool_at(address) {
            Some(pool) if borrowed(pool) => 2,
            _ => u8::from(self.0.owns(address)),
        })
    }

    /// Notes that a pool gets memory of another allocator.
    pub(crate) fn note_borrower(&self, pool: PoolId) {
        self.2.write().insert(pool);
    }

    /// True where nothing is allocated and nobody is inside, so that the engine can go.
    pub(crate) fn is_idle(&self) -> bool {
        guarded_or(false, || self.0.is_left())
    }

    pub(crate) fn record_stream(&self, address: u64, stream: u64) -> u32 {
        guarded(|| self.0.record_stream(address, StreamId(stream)))
    }

    pub(crate) fn empty_cache(&self) -> u32 {
        guarded(|| self.0.empty_cache())
    }

    pub(crate) fn set_fraction(&self, device: i32, fraction: f64) -> u32 {
        guarded(|| self.0.set_memory_fraction(DeviceId(device), fraction))
    }

    pub(crate) fn fraction(&self, device: i32, out: &mut f64) -> u32 {
        self.read(out, |allocator| allocator.memory_fraction(DeviceId(device)))
    }

    pub(crate) fn set_caching(&self, caching: bool) -> u32 {
        guarded(|| {
            self.0.set_caching(caching);
            Ok(())
        })
    }

    pub(crate) fn is_caching(&self) -> bool {
        guarded_or(true, || self.0.is_caching())
    }

    pub(crate) fn memory_info(&self, device: i32, free: &mut u64, total: &mut u64) -> u32 {
        guarded(|| {
            let info = self.0.memory_info(DeviceId(device))?;
            (*free, *total) = (info.free, info.total);
            Ok(())
        })
    }

    pub(crate) fn largest_free_block(&self, device: i32, bytes: &mut u64) -> u32 {
        self.read(bytes, |allocator| allocator.largest_free_block(DeviceId(device)))
    }

    pub(crate) fn base_allocation(&self, address: u64, start: &mut u64, bytes: &mut u64) -> u32 {
        guarded(|| {
            (*start, *bytes) = self.0.base_allocation(address)?;
            Ok(())
        })
    }

    pub(crate) fn statistics(&self, device: i32, out: &mut StatsRecord) -> u32 {
        self.read(out, |allocator| Ok(allocator.statistics(DeviceId(device))?.into()))
    }

    pub(crate) fn reset_peaks(&self, device: i32) -> u32 {
        guarded(|| self.0.reset_peak_statistics(DeviceId(device)))
    }

    pub(crate) fn reset_accumulated(&self, device: i32) -> u32 {
        guarded(|| self.0.reset_accumulated_statistics(DeviceId(device)))
    }

    pub(crate) fn copy(&self, device: i32, to: u64, from: u64, bytes: u64, stream: u64) -> u32 {
        // SAFETY: C++ gave the addresses, and answers for them as for any pointer.
        self.on(device, |on| unsafe { on.copy_async(to, from, bytes, StreamId(stream)) })
    }

    pub(crate) fn synchronize(&self, device: i32, stream: u64) -> u32 {
        self.on(device, |device| device.stream_synchronize(StreamId(stream)))
    }

    pub(crate) fn enable_peer(&self, device: i32, peer: i32) -> u32 {
        let known = || self.0.device(DeviceId(peer)).map(|_| ());
        match known() {
            Ok(()) => self.on(device, |device| device.enable_peer_access(DeviceId(peer))),
            Err(error) => keep(error),
        }
    }

    fn read<T>(&self, out: &mut T, body: impl FnOnce(&Allocator) -> Result<T>) -> u32 {
        guarded(|| {
            *out = body(&self.0)?;
            Ok(())
        })
    }

    fn on(
        &self,
        device: i32,
        body: impl FnOnce(&dyn Device) -> crate::device::DeviceResult<()>,
    ) -> u32 {
        guarded(|| Ok(body(self.0.device(DeviceId(device))?.as_ref())?))
    }
}
