//! The allocator over all devices: the face of this library for Rust programs.

use std::sync::Arc;

use crate::config::Config;
use crate::device::{Device, MemoryInfo};
use crate::error::{Error, Result};
use crate::observe::DeviceStatistics;
use crate::units::{Address, Bytes, DeviceId, StreamId};

/// What an allocator knows of one live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockInfo {
    /// Where it starts.
    pub address: Address,
    /// How long it is, as served.
    pub bytes: Bytes,
    /// How many bytes were asked for.
    pub requested: Bytes,
    /// The device that it is on.
    pub device: DeviceId,
    /// The stream that it was allocated on.
    pub stream: StreamId,
}

/// A caching allocator over a set of devices.
pub struct Allocator {
    devices: Vec<Arc<dyn Device>>,
    config: Config,
}

#[allow(unused_variables)]
impl Allocator {
    /// An allocator over these devices, which are numbered by their place in the vector.
    pub fn new(devices: Vec<Arc<dyn Device>>, config: Config) -> Result<Allocator> {
        Ok(Allocator { devices, config })
    }
    /// How many devices there are.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }
    /// A device.
    pub fn device(&self, device: DeviceId) -> Result<&Arc<dyn Device>> {
        todo!()
    }
    /// The options in force.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Allocates `bytes` on `device`, for use on `stream`. Zero bytes give address 0 and allocate nothing.
    pub fn allocate(&self, device: DeviceId, bytes: Bytes, stream: StreamId) -> Result<Address> {
        todo!()
    }
    /// Frees an allocation. Address 0 is ignored.
    pub fn free(&self, address: Address) -> Result<()> {
        todo!()
    }
    /// Whether the address is the start of a live allocation. Takes no lock.
    pub fn owns(&self, address: Address) -> bool {
        todo!()
    }
    /// Tells that `stream` uses the allocation too: once freed, it is not reused before what is queued
    /// there by then has run.
    pub fn record_stream(&self, address: Address, stream: StreamId) -> Result<()> {
        todo!()
    }
    /// Gives all cached memory of all devices back.
    pub fn empty_cache(&self) -> Result<()> {
        todo!()
    }
    /// Limits what is taken from the device to a share in `[0, 1]` of its memory; 1 removes the limit.
    pub fn set_memory_fraction(&self, device: DeviceId, fraction: f64) -> Result<()> {
        todo!()
    }
    /// The limit as a share of the device's memory.
    pub fn memory_fraction(&self, device: DeviceId) -> Result<f64> {
        todo!()
    }
    /// Turns caching on or off. While off, every allocation is the device's own.
    pub fn set_caching(&self, caching: bool) {
        todo!()
    }
    /// Whether caching is on.
    pub fn is_caching(&self) -> bool {
        todo!()
    }
    /// The device's memory as its driver counts it.
    pub fn memory_info(&self, device: DeviceId) -> Result<MemoryInfo> {
        todo!()
    }
    /// The largest cached block of the device.
    pub fn largest_free_block(&self, device: DeviceId) -> Result<Bytes> {
        todo!()
    }
    /// The segment (start, bytes) in which an allocation lies.
    pub fn base_allocation(&self, address: Address) -> Result<(Address, Bytes)> {
        todo!()
    }
    /// What is known of a live allocation.
    pub fn block(&self, address: Address) -> Result<BlockInfo> {
        todo!()
    }
    /// The statistics of a device.
    pub fn statistics(&self, device: DeviceId) -> Result<DeviceStatistics> {
        todo!()
    }
    /// Sets every peak to the current value.
    pub fn reset_peak_statistics(&self, device: DeviceId) -> Result<()> {
        todo!()
    }
    /// Sets every accumulated count to zero.
    pub fn reset_accumulated_statistics(&self, device: DeviceId) -> Result<()> {
        todo!()
    }
    /// Checks every invariant of every device; the error names the one that is broken.
    pub fn is_valid(&self) -> Result<()> {
        let _: Option<Error> = None;
        todo!()
    }
}
