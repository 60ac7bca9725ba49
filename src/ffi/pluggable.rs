//! What C++ calls of the allocator over user functions.

use std::sync::Arc;

use super::bridge::ffi::{AllocResult, EntryRecord, StatsRecord};
use super::error::{guarded, guarded_callback, guarded_or};
use super::history::HistoryCore;
use crate::error::{PointerUse, Result};
use crate::pluggable::{Entry, Metadata, Source};
use crate::units::{DeviceId, StreamId};

/// The metadata as a C++ object holds it; the functions stay on the C++ side.
pub(crate) struct PluggableCore(Arc<Metadata>);

pub(crate) fn new_pluggable_core() -> Box<PluggableCore> {
    Box::new(PluggableCore(Arc::new(Metadata::new())))
}

impl PluggableCore {
    #[inline]
    pub(crate) fn record(&self, address: u64, bytes: u64, device: i32, stream: u64) -> u32 {
        let entry = Entry { bytes, device: DeviceId(device), stream: StreamId(stream) };
        guarded(|| self.0.record(address, entry))
    }

    #[inline]
    pub(crate) fn take(&self, address: u64, out: &mut EntryRecord) -> u32 {
        self.read(out, |metadata| Ok(metadata.take(address)?.into()))
    }

    /// For the memory around an address.
    pub(crate) fn find(&self, address: u64, out: &mut EntryRecord) -> u32 {
        self.read(out, |metadata| Ok(metadata.find(address, PointerUse::Base)?.into()))
    }

    pub(crate) fn owns(&self, address: u64) -> bool {
        guarded_or(false, || self.0.owns(address).unwrap_or(false))
    }

    pub(crate) fn is_idle(&self) -> bool {
        guarded_or(false, || self.0.is_idle())
    }

    pub(crate) fn out_of_memory(&self, bytes: u64, device: i32, stream: u64) -> u32 {
        guarded(|| Err(self.0.out_of_memory(bytes, DeviceId(device), StreamId(stream))))
    }

    pub(crate) fn history(&self) -> Box<HistoryCore> {
        Box::new(HistoryCore::of_functions(Arc::clone(&self.0)))
    }

    pub(crate) fn check_request(&self, device: i32) -> u32 {
        guarded(|| self.0.check_request(DeviceId(device)))
    }

    pub(crate) fn set_fraction(&self, device: i32, fraction: f64) -> u32 {
        guarded(|| self.0.set_fraction(DeviceId(device), fraction))
    }

    pub(crate) fn fraction(&self, device: i32, out: &mut f64) -> u32 {
        self.read(out, |metadata| metadata.fraction(DeviceId(device)))
    }

    pub(crate) fn statistics(&self, device: i32, out: &mut StatsRecord) -> u32 {
        self.read(out, |metadata| Ok(metadata.statistics(DeviceId(device))?.into()))
    }

    pub(crate) fn reset_peaks(&self, device: i32) -> u32 {
        guarded(|| self.0.reset_peaks(DeviceId(device)))
    }

    pub(crate) fn reset_accumulated(&self, device: i32) -> u32 {
        guarded(|| self.0.reset_accumulated(DeviceId(device)))
    }

    pub(crate) fn copy_fractions(&self, from: &PluggableCore) -> u32 {
        guarded(|| self.0.copy_fractions(&from.0))
    }

    #[inline]
    fn read<T>(&self, out: &mut T, body: impl FnOnce(&Metadata) -> Result<T>) -> u32 {
        guarded(|| {
            *out = body(&self.0)?;
            Ok(())
        })
    }
}

impl From<Entry> for EntryRecord {
    fn from(entry: Entry) -> EntryRecord {
        EntryRecord { bytes: entry.bytes, stream: entry.stream.0, device: entry.device.0 }
    }
}

/// Rust closures as the functions of a C++ `PluggableAllocator`.
pub(crate) struct SourceFns(pub(crate) Source);

impl SourceFns {
    pub(crate) fn alloc(&self, bytes: u64, device: i32, stream: u64) -> AllocResult {
        let mut address = 0;
        let status = guarded_callback("alloc_fn", &mut address, || {
            (self.0.alloc_fn)(bytes, DeviceId(device), StreamId(stream))
        });
        AllocResult { address, status }
    }

    pub(crate) fn free(&self, address: u64, bytes: u64, device: i32, stream: u64) -> u32 {
        guarded_callback("free_fn", &mut (), || {
            (self.0.free_fn)(address, bytes, DeviceId(device), StreamId(stream));
            Ok(())
        })
    }
}
