//! An allocator over user functions.

mod counters;
mod history;
mod metadata;
mod recorder;

pub use metadata::Entry;
pub(crate) use metadata::Metadata;

use crate::error::{Error, PointerUse, Result};
use crate::observe::DeviceStatistics;
use crate::units::{Address, Bytes, DeviceId, PoolId, StreamId};

type AllocFn = Box<dyn Fn(Bytes, DeviceId, StreamId) -> Result<Address, Error> + Send + Sync>;
type FreeFn = Box<dyn Fn(Address, Bytes, DeviceId, StreamId) + Send + Sync>;

/// Tells the start and the bytes of the segment around an address.
pub type BaseAllocationHook = Box<dyn Fn(Address) -> (Address, Bytes) + Send + Sync>;

/// What a source of memory may want to be told beyond allocations and frees. Each hook that is
/// `None` is not called.
#[derive(Default)]
#[non_exhaustive]
pub struct Hooks {
    /// The allocator is made ready for so many devices.
    pub init: Option<Box<dyn Fn(i32) + Send + Sync>>,
    /// Cached memory is to go back to the device.
    pub reset: Option<Box<dyn Fn() + Send + Sync>>,
    /// A device's memory is limited to a share.
    pub memory_fraction: Option<Box<dyn Fn(f64, DeviceId) + Send + Sync>>,
    /// Which segment an address lies in: its start and its bytes.
    pub base_allocation: Option<BaseAllocationHook>,
    /// Another stream uses an allocation.
    pub record_stream: Option<Box<dyn Fn(Address, StreamId) + Send + Sync>>,
    /// Allocations go to a pool from now on.
    pub begin_allocate_to_pool: Option<Box<dyn Fn(DeviceId, PoolId) + Send + Sync>>,
    /// They no longer do.
    pub end_allocate_to_pool: Option<Box<dyn Fn(DeviceId, PoolId) + Send + Sync>>,
    /// One use of a pool is given up.
    pub release_pool: Option<Box<dyn Fn(DeviceId, PoolId) + Send + Sync>>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// An allocator whose memory comes from user functions: every request reaches `alloc_fn`, and every
/// free `free_fn` with exactly the bytes, device and stream of its allocation.
///
/// It keeps what is needed to answer for its allocations: their sizes, statistics, which pointers
/// are live, and a history if one is wanted. The functions are called outside every lock and may
/// call the allocator. A function that panics leaves the allocator consistent.
///
/// ```
/// use plugalloc::{DeviceId, PluggableAllocator, StreamId};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let next = AtomicU64::new(0x1000);
/// let allocator = PluggableAllocator::new(
///     move |bytes, _device, _stream| Ok(next.fetch_add(bytes, Ordering::Relaxed)),
///     |_address, bytes, _device, stream| assert_eq!((bytes, stream), (512, StreamId(3))),
/// );
/// let address = allocator.allocate(DeviceId(0), 512, StreamId(3))?;
/// allocator.free(address)?;
/// assert!(allocator.free(address).is_err_and(|error| error.is_invalid_pointer()));
/// # Ok::<(), plugalloc::Error>(())
/// ```
pub struct PluggableAllocator {
    alloc_fn: AllocFn,
    free_fn: FreeFn,
    hooks: Hooks,
    metadata: Metadata,
}

impl std::fmt::Debug for PluggableAllocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluggableAllocator").finish_non_exhaustive()
    }
}

impl PluggableAllocator {
    /// An allocator over two functions. `alloc_fn` gives address 0 where it has no memory; its
    /// error reaches the caller as it is.
    pub fn new(
        alloc_fn: impl Fn(Bytes, DeviceId, StreamId) -> Result<Address> + Send + Sync + 'static,
        free_fn: impl Fn(Address, Bytes, DeviceId, StreamId) + Send + Sync + 'static,
    ) -> PluggableAllocator {
        PluggableAllocator {
            alloc_fn: Box::new(alloc_fn),
            free_fn: Box::new(free_fn),
            hooks: Hooks::default(),
            metadata: Metadata::new(),
        }
    }

    /// The same with hooks.
    pub fn with_hooks(self, hooks: Hooks) -> PluggableAllocator {
        PluggableAllocator { hooks, ..self }
    }

    /// Allocates `bytes` on `device`, for use on `stream`. Zero bytes reach `alloc_fn` too, which
    /// may give address 0 then.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] where `alloc_fn` gives address 0, [`Error::InvalidArgument`] where it
    /// gives one that is live already, and whatever error it gives itself.
    pub fn allocate(&self, device: DeviceId, bytes: Bytes, stream: StreamId) -> Result<Address> {
        self.metadata.check_request(device)?;
        let address = (self.alloc_fn)(bytes, device, stream)?;
        match (address, bytes) {
            (0, 0) => Ok(0),
            (0, _) => Err(self.metadata.out_of_memory(bytes, device, stream)),
            _ => {
                self.metadata.record(address, Entry { bytes, device, stream })?;
                Ok(address)
            }
        }
    }

    /// Frees an allocation: forgets it, then calls `free_fn`. Address 0 is ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPointer`] for an address that is not live here; `free_fn` is not called
    /// then.
    pub fn free(&self, address: Address) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        let entry = self.metadata.take(address)?;
        (self.free_fn)(address, entry.bytes, entry.device, entry.stream);
        Ok(())
    }

    /// What is known of a live allocation.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPointer`] for an address that is not live here.
    pub fn entry(&self, address: Address) -> Result<Entry> {
        self.metadata.find(address, PointerUse::Find)
    }

    /// Whether the address is the start of a live allocation.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] inside of a tracker.
    pub fn owns(&self, address: Address) -> Result<bool> {
        self.metadata.owns(address)
    }

    /// Tells the source that so many devices will be used.
    pub fn init(&self, device_count: i32) {
        if let Some(hook) = &self.hooks.init {
            hook(device_count);
        }
    }

    /// Tells the source to give cached memory back.
    pub fn empty_cache(&self) {
        if let Some(hook) = &self.hooks.reset {
            hook();
        }
    }

    /// Tells the source that `stream` uses the allocation too. Address 0 is ignored.
    pub fn record_stream(&self, address: Address, stream: StreamId) {
        if let (Some(hook), true) = (&self.hooks.record_stream, address != 0) {
            hook(address, stream);
        }
    }

    /// Remembers the share of the device's memory that may be taken, and tells the source, who is
    /// to keep to it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a fraction outside `[0, 1]`.
    pub fn set_memory_fraction(&self, device: DeviceId, fraction: f64) -> Result<()> {
        self.metadata.set_fraction(device, fraction)?;
        if let Some(hook) = &self.hooks.memory_fraction {
            hook(fraction, device);
        }
        Ok(())
    }

    /// The fraction that was set last; 1 before.
    pub fn memory_fraction(&self, device: DeviceId) -> Result<f64> {
        self.metadata.fraction(device)
    }

    /// The segment (start, bytes) around an address: the hook's answer, else the allocation itself.
    ///
    /// # Errors
    ///
    /// Without the hook, [`Error::InvalidPointer`] for an address that is not live here.
    pub fn base_allocation(&self, address: Address) -> Result<(Address, Bytes)> {
        match &self.hooks.base_allocation {
            Some(hook) => Ok(hook(address)),
            None => Ok((address, self.metadata.find(address, PointerUse::Base)?.bytes)),
        }
    }

    /// Sends allocations to a pool, if the source knows pools.
    pub fn begin_allocate_to_pool(&self, device: DeviceId, pool: PoolId) {
        call(&self.hooks.begin_allocate_to_pool, device, pool);
    }

    /// Ends what [`begin_allocate_to_pool`](Self::begin_allocate_to_pool) began.
    pub fn end_allocate_to_pool(&self, device: DeviceId, pool: PoolId) {
        call(&self.hooks.end_allocate_to_pool, device, pool);
    }

    /// Gives one use of a pool up.
    pub fn release_pool(&self, device: DeviceId, pool: PoolId) {
        call(&self.hooks.release_pool, device, pool);
    }

    /// The statistics of a device. Every request is the source's own, so allocated, active,
    /// requested and reserved bytes are the same.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`] for a number below 0 or above 127.
    pub fn statistics(&self, device: DeviceId) -> Result<DeviceStatistics> {
        self.metadata.statistics(device)
    }

    /// Sets every peak to the current value.
    pub fn reset_peak_statistics(&self, device: DeviceId) -> Result<()> {
        self.metadata.reset_peaks(device)
    }

    /// Sets every accumulated count to zero.
    pub fn reset_accumulated_statistics(&self, device: DeviceId) -> Result<()> {
        self.metadata.reset_accumulated(device)
    }
}

type PoolHook = Option<Box<dyn Fn(DeviceId, PoolId) + Send + Sync>>;

fn call(hook: &PoolHook, device: DeviceId, pool: PoolId) {
    if let Some(hook) = hook {
        hook(device, pool);
    }
}

/// The two functions as a C++ object over them calls them.
pub(crate) struct Source {
    pub(crate) alloc_fn: AllocFn,
    pub(crate) free_fn: FreeFn,
}
