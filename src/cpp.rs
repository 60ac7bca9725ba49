//! The C++ classes, as Rust programs drive them: tests and tools that want to see what a C++
//! program sees. Every method here is one call of a virtual C++ method; its exception comes back as
//! [`Error`] with all numbers.

mod checkpoints;
mod pools;

pub use checkpoints::{AllocatorState, CheckpointDelta};

use std::ops::Deref;
use std::sync::Arc;

use cxx::{SharedPtr, UniquePtr};

use crate::allocator::Allocator;
use crate::error::{Error, Result};
use crate::ffi::bridge::ffi;
use crate::ffi::caching::CachingCore;
use crate::ffi::pluggable::SourceFns;
use crate::observe::DeviceStatistics;
use crate::pluggable::Source;
use crate::units::{Address, Bytes, DeviceId, StreamId};

/// Any C++ allocator, behind a `std::shared_ptr<plugalloc::CUDAAllocator>`.
#[derive(Clone)]
pub struct CudaAllocator {
    shared: SharedPtr<ffi::CUDAAllocator>,
}

impl std::fmt::Debug for CudaAllocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaAllocator").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// The exception of a call with this status.
#[inline]
fn check(status: u32) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(driven_error()) }
}

#[cold]
fn driven_error() -> Error {
    ffi::take_driven_error().into()
}

impl CudaAllocator {
    /// The allocator of this process (`getCurrentAllocator`).
    pub fn current() -> Result<CudaAllocator> {
        let mut shared = SharedPtr::null();
        check(ffi::get_current(&mut shared))?;
        Ok(CudaAllocator { shared })
    }

    /// Makes this the allocator of the process (`changeCurrentAllocator`).
    pub fn make_current(&self) -> Result<()> {
        check(ffi::change_current(&self.shared))
    }

    #[inline]
    fn object(&self) -> &ffi::CUDAAllocator {
        &self.shared
    }

    /// `raw_alloc`: on the thread's current device, for its current stream.
    #[inline]
    pub fn raw_alloc(&self, bytes: usize) -> Result<u64> {
        let result = ffi::raw_alloc(self.object(), bytes);
        check(result.status).map(|()| result.address)
    }

    /// `raw_alloc_with_stream`: on the thread's current device.
    #[inline]
    pub fn raw_alloc_with_stream(&self, bytes: usize, stream: u64) -> Result<u64> {
        let result = ffi::raw_alloc_with_stream(self.object(), bytes, stream);
        check(result.status).map(|()| result.address)
    }

    /// `raw_delete`.
    #[inline]
    pub fn raw_delete(&self, address: u64) -> Result<()> {
        check(ffi::raw_delete(self.object(), address))
    }

    /// `allocate`.
    pub fn allocate(&self, bytes: usize) -> Result<DataPtr> {
        let mut data = UniquePtr::null();
        check(ffi::allocate(self.object(), bytes, &mut data))?;
        Ok(DataPtr { data })
    }

    /// The address of the function `raw_deleter()`; 0 for none.
    pub fn raw_deleter(&self) -> u64 {
        ffi::raw_deleter(self.object())
    }

    /// Calls the function `raw_deleter()` with a pointer. Its errors do not come back here.
    pub fn call_raw_deleter(&self, address: u64) -> Result<()> {
        check(ffi::call_raw_deleter(self.object(), address))
    }

    /// `name`.
    pub fn name(&self) -> String {
        ffi::name(self.object())
    }

    /// `init`.
    pub fn init(&self, device_count: i32) -> Result<()> {
        check(ffi::init(self.object(), device_count))
    }

    /// `initialized`.
    pub fn initialized(&self) -> bool {
        ffi::initialized(self.object())
    }

    /// `recordStream`.
    pub fn record_stream(&self, data: &DataPtr, stream: u64) -> Result<()> {
        check(ffi::record_stream(self.object(), &data.data, stream))
    }

    /// `emptyCache`, of all pools.
    pub fn empty_cache(&self) -> Result<()> {
        check(ffi::empty_cache(self.object()))
    }

    /// `setMemoryFraction`.
    pub fn set_memory_fraction(&self, fraction: f64, device: i32) -> Result<()> {
        check(ffi::set_fraction(self.object(), fraction, device))
    }

    /// `getMemoryFraction`.
    pub fn memory_fraction(&self, device: i32) -> Result<f64> {
        let mut fraction = 0.0;
        check(ffi::fraction(self.object(), device, &mut fraction)).map(|()| fraction)
    }

    /// `enable`.
    pub fn enable(&self, value: bool) -> Result<()> {
        check(ffi::enable(self.object(), value))
    }

    /// `isEnabled`.
    pub fn is_enabled(&self) -> bool {
        ffi::is_enabled(self.object())
    }

    /// `cacheInfo`, with `largest` as what is in `*largest_block` on entry.
    pub fn cache_info(&self, device: i32, mut largest: usize) -> Result<usize> {
        check(ffi::cache_info(self.object(), device, &mut largest)).map(|()| largest)
    }

    /// `getBaseAllocation`: start and bytes.
    pub fn base_allocation(&self, address: u64) -> Result<(u64, usize)> {
        let (mut start, mut bytes) = (0, 0);
        check(ffi::base_allocation(self.object(), address, &mut start, &mut bytes))?;
        Ok((start, bytes))
    }

    /// `getMemoryInfo`: free and total bytes.
    pub fn memory_info(&self, device: i32) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        check(ffi::memory_info(self.object(), device, &mut free, &mut total))?;
        Ok((free, total))
    }

    /// `getDeviceStats`.
    pub fn statistics(&self, device: i32) -> Result<DeviceStatistics> {
        let mut record = ffi::StatsRecord::default();
        check(ffi::statistics(self.object(), device, &mut record)).map(|()| record.into())
    }

    /// `retireStream` of a caching allocator.
    pub fn retire_stream(&self, device: i32, stream: u64) -> Result<()> {
        check(ffi::retire_stream(self.object(), device, stream))
    }

    /// `resetPeakStats`.
    pub fn reset_peak_statistics(&self, device: i32) -> Result<()> {
        check(ffi::reset_peaks(self.object(), device))
    }

    /// `resetAccumulatedStats`.
    pub fn reset_accumulated_statistics(&self, device: i32) -> Result<()> {
        check(ffi::reset_accumulated(self.object(), device))
    }

    /// `copy_data`.
    ///
    /// # Safety
    ///
    /// Both addresses must be valid for `bytes` where the allocator copies by following them, as
    /// one over user functions may.
    pub unsafe fn copy_data(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        check(ffi::copy_data(self.object(), to, from, bytes))
    }

    /// How many segments `snapshot` shows.
    pub fn snapshot_segments(&self) -> Result<usize> {
        let mut segments = 0;
        check(ffi::snapshot_segments(self.object(), &mut segments)).map(|()| segments)
    }
}

/// The C++ `CachingAllocator` over an engine that Rust can look into as well.
#[derive(Clone, Debug)]
pub struct CachingAllocator {
    object: CudaAllocator,
}

impl CachingAllocator {
    /// A C++ object over this engine.
    ///
    /// The C++ object, once all its copies are gone, lets the engine go if nothing is allocated,
    /// and otherwise keeps it until the last pointer was given to a deleter.
    pub fn new(allocator: Arc<Allocator>) -> Result<CachingAllocator> {
        let mut shared = SharedPtr::null();
        check(ffi::make_caching(Box::new(CachingCore::new(allocator)), &mut shared))?;
        Ok(CachingAllocator { object: CudaAllocator { shared } })
    }
}

impl Deref for CachingAllocator {
    type Target = CudaAllocator;

    fn deref(&self) -> &CudaAllocator {
        &self.object
    }
}

/// The C++ `PluggableAllocator` over Rust closures, through `createCustomAllocator`.
#[derive(Clone, Debug)]
pub struct PluggableAllocator {
    object: CudaAllocator,
}

impl PluggableAllocator {
    /// A C++ object over these functions. `alloc_fn` gives address 0 where it has no memory; its
    /// error crosses C++ as an exception.
    pub fn new(
        alloc_fn: impl Fn(Bytes, DeviceId, StreamId) -> Result<Address> + Send + Sync + 'static,
        free_fn: impl Fn(Address, Bytes, DeviceId, StreamId) + Send + Sync + 'static,
    ) -> Result<PluggableAllocator> {
        let source = Source { alloc_fn: Box::new(alloc_fn), free_fn: Box::new(free_fn) };
        let mut shared = SharedPtr::null();
        check(ffi::make_pluggable(Box::new(SourceFns(source)), &mut shared))?;
        Ok(PluggableAllocator { object: CudaAllocator { shared } })
    }
}

impl Deref for PluggableAllocator {
    type Target = CudaAllocator;

    fn deref(&self) -> &CudaAllocator {
        &self.object
    }
}

/// The C++ `DataPtr`: gives its memory back through its deleter when dropped.
pub struct DataPtr {
    data: UniquePtr<ffi::DataPtr>,
}

impl std::fmt::Debug for DataPtr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPtr")
            .field("address", &format_args!("{:#x}", self.address()))
            .field("device", &self.device())
            .finish_non_exhaustive()
    }
}

impl DataPtr {
    /// `get`.
    pub fn address(&self) -> u64 {
        ffi::data_address(&self.data)
    }

    /// `get_context`.
    pub fn context(&self) -> u64 {
        ffi::data_context(&self.data)
    }

    /// The address of the function `get_deleter()`.
    pub fn deleter(&self) -> u64 {
        ffi::data_deleter(&self.data)
    }

    /// The index of `device()`.
    pub fn device(&self) -> i32 {
        ffi::data_device(&self.data)
    }

    /// `release_context`: the memory is the caller's, who gives it to the raw deleter.
    pub fn release_context(mut self) -> u64 {
        self.data.as_mut().map_or(0, ffi::data_release)
    }
}

/// Sets the current device of this thread; -1: what the provider says.
pub fn set_current_device(device: i32) -> Result<()> {
    check(ffi::set_current_device(device))
}

/// Sets the current stream of this thread on a device; -1: on the current one.
pub fn set_current_stream(stream: u64, device: i32) -> Result<()> {
    check(ffi::set_current_stream(stream, device))
}
