//! The allocator over all devices: the face of this library for Rust programs.

mod checkpoints;
mod direct;
mod history;
mod hot_path;
mod owners;
mod pins;
mod pools;
mod shared;
mod streams;

pub use checkpoints::{Checkpoint, CheckpointDelta};
pub use pins::{ObserverId, Pin};
pub use shared::{ImportedMemory, SharedMemory};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::config::Config;
use crate::device::{Clock, Device, MemoryInfo};
use crate::engine::{Engine, PageEntry, Shard, foreign};
use crate::error::{Error, PointerUse, Result};
use crate::observe::DeviceStatistics;
use crate::page_map::PageMap;
use crate::units::{Address, Bytes, DeviceId, StreamId};
pub(crate) use owners::Owner;
use owners::Owners;

/// The most devices that one allocator serves.
pub(crate) const MAX_DEVICES: usize = 255;

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
///
/// Memory is handed out for use on one stream, and is used again for that stream as soon as it is
/// freed: what is queued there later runs later. Further users are announced by
/// [`record_stream`](Allocator::record_stream). All methods may be called from any thread.
///
/// ```
/// use plugalloc::device::sim::{SimMachine, SimOptions};
/// use plugalloc::{Allocator, Config, DeviceId, StreamId};
///
/// let machine = SimMachine::new(SimOptions::default())?;
/// let allocator = Allocator::new(machine.as_devices(), Config::default())?;
/// let address = allocator.allocate(DeviceId(0), 1 << 20, StreamId::DEFAULT)?;
/// assert_eq!(allocator.block(address)?.requested, 1 << 20);
/// allocator.free(address)?;
/// assert!(allocator.free(address).is_err(), "a second free is refused");
/// # Ok::<(), plugalloc::Error>(())
/// ```
#[derive(Debug)]
pub struct Allocator {
    engines: Vec<Engine>,
    map: Arc<PageMap<Shard>>,
    config: Config,
    clock: Arc<Clock>,
    /// Whether allocations outside the address map may exist: caching was off at some time.
    direct: AtomicBool,
    /// Whether anything was allocated.
    used: AtomicBool,
    owners: Owners, // goes after the engines, which look at streams when they go
    frees: Frees,
}

/// How many frees are under way off the hot path. Apart from what every call reads.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Frees(AtomicUsize);

impl Allocator {
    /// An allocator over these devices, which are numbered by their place in the vector.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more than 255 devices; [`Error::Config`] for a field of the
    /// configuration with a value that its key would refuse; [`Error::Device`] where a device does
    /// not tell its memory; [`Error::Unsupported`] for an option that it does not have.
    pub fn new(devices: Vec<Arc<dyn Device>>, config: Config) -> Result<Allocator> {
        if devices.len() > MAX_DEVICES {
            return Err(Error::InvalidArgument {
                argument: "number of devices",
                value: devices.len().to_string(),
                expected: format!("at most {MAX_DEVICES}"),
            });
        }
        config.check()?;
        let map = Arc::new(PageMap::new());
        let clock = Arc::new(Clock::default());
        let engine = |(index, device)| {
            let shared = (Arc::clone(&map), Arc::clone(&clock));
            Engine::new(index as u32, device, config.clone(), shared)
        };
        let engines = devices.into_iter().enumerate().map(engine).collect::<Result<Vec<_>>>()?;
        let direct = AtomicBool::new(!config.caching);
        let (used, owners) = (AtomicBool::new(false), Owners::default());
        Ok(Allocator { engines, map, config, clock, direct, used, owners, frees: Frees::default() })
    }

    /// Whether anything was ever allocated.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// How many devices there are.
    pub fn device_count(&self) -> usize {
        self.engines.len()
    }

    /// A device.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`] where there is no such device; so for every method that takes one.
    pub fn device(&self, device: DeviceId) -> Result<&Arc<dyn Device>> {
        Ok(self.engine(device)?.device())
    }

    /// The time by which the allocator limits its own: how much of each second it may spend on
    /// moving memory between heaps. Programs leave it alone; a replay sets it.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The options with which the allocator was made.
    pub fn config(&self) -> &Config {
        &self.config
    }

    #[inline]
    fn engine(&self, device: DeviceId) -> Result<&Engine> {
        match device.index().and_then(|index| self.engines.get(index)) {
            Some(engine) => Ok(engine),
            None => Err(Error::InvalidDevice { device, count: self.engines.len() }),
        }
    }

    /// A device, for a call that takes locks of it.
    fn enter(&self, device: DeviceId) -> Result<&Engine> {
        self.check_outside()?;
        self.engine(device)
    }

    /// Fails for a call out of a tracker, which is called with locks held.
    fn check_outside(&self) -> Result<()> {
        self.engines.first().map_or(Ok(()), Engine::check_outside)
    }

    /// The engine of an address, and its entry in the map.
    #[inline]
    fn owner(&self, address: Address) -> Option<(&Engine, PageEntry<'_>)> {
        let (shard, slot) = self.map.get(address)?;
        Some((self.engines.get(shard.device as usize)?, PageEntry { shard, slot }))
    }

    /// Allocates `bytes` on `device`, for use on `stream`. The address is a multiple of 512. Zero
    /// bytes give address 0 and allocate nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with its numbers; [`Error::SizeTooLarge`]; [`Error::Device`] where
    /// the driver fails otherwise.
    pub fn allocate(&self, device: DeviceId, bytes: Bytes, stream: StreamId) -> Result<Address> {
        match self.allocate_or(device, bytes, stream, |_, _, _, _| 0) {
            0 => self.allocate_otherwise(device, bytes, stream),
            address => Ok(address),
        }
    }

    /// An allocation that is not served from memory at hand.
    #[cold]
    pub(crate) fn allocate_otherwise(
        &self,
        device: DeviceId,
        bytes: Bytes,
        stream: StreamId,
    ) -> Result<Address> {
        let address = self.engine(device)?.allocate(bytes, stream)?;
        // The first allocation comes this way.
        self.used.store(true, Ordering::Relaxed);
        Ok(address)
    }

    /// Frees an allocation, whatever its device. Address 0 is ignored.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`] where the address is not the start of a live allocation; nothing
    /// changes.
    pub fn free(&self, address: Address) -> Result<()> {
        let freed = self.free_or(address, |_, _| false);
        if freed { Ok(()) } else { self.free_otherwise(address) }
    }

    /// A free to which there is more.
    #[cold]
    pub(crate) fn free_otherwise(&self, address: Address) -> Result<()> {
        self.frees.0.fetch_add(1, Ordering::Relaxed);
        let freed = match self.owner(address) {
            Some((engine, entry)) => engine.free(entry, address),
            None => self.free_outside(address),
        };
        // Nothing of the allocator is looked at after this.
        self.frees.0.fetch_sub(1, Ordering::Release);
        freed
    }

    /// Whether nothing is allocated and no free is under way, after which nobody who has only
    /// pointers of this allocator can be inside of it: a free goes on after its block has ceased to
    /// count. On the hot path it does not, since there the count is changed under the lock that is
    /// given back last.
    pub(crate) fn is_left(&self) -> bool {
        // Who is inside of a tracker is inside of the allocator.
        if self.check_outside().is_err() {
            return false;
        }
        let allocated = |engine: &Engine| engine.statistics().allocation.all.current;
        // In this order: who has ended its last block is seen in the second.
        self.engines.iter().all(|engine| allocated(engine) == 0)
            && self.frees.0.load(Ordering::Acquire) == 0
    }

    /// Whether the address lies in memory that this allocator holds. Takes no lock.
    #[inline]
    pub fn owns(&self, address: Address) -> bool {
        self.map.get(address).is_some() || self.direct_block(address).is_some()
    }

    /// What is known of a live allocation.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`] where the address is not the start of one.
    pub fn block(&self, address: Address) -> Result<BlockInfo> {
        self.check_outside()?;
        let Some((engine, entry)) = self.owner(address) else {
            let asked = || self.refused_outside(address).when_asked_to(PointerUse::Find);
            return self.direct_block(address).ok_or_else(asked);
        };
        let (block, stream) = engine.block_at(entry, address)?;
        let device = engine.id();
        let (bytes, requested) = (block.bytes, block.requested);
        Ok(BlockInfo { address, bytes, requested, device, stream })
    }

    /// The contiguous memory in which an address lies: its start and its bytes.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`] where the address is not in memory of this allocator.
    pub fn base_allocation(&self, address: Address) -> Result<(Address, Bytes)> {
        self.check_outside()?;
        if let Some((_, entry)) = self.owner(address)
            && let Some(range) = Engine::range_at(entry, address)
        {
            return Ok(range);
        }
        match self.direct_around(address) {
            Some(block) => Ok((block.address, block.bytes)),
            None => Err(foreign(address).when_asked_to(PointerUse::Base)),
        }
    }

    /// Gives all cached memory of all devices back to them. Waits for the streams that used it.
    ///
    /// # Errors
    /// [`Error::Device`] where a driver call fails; what was not given back stays cached.
    pub fn empty_cache(&self) -> Result<()> {
        self.check_outside()?;
        let results: Vec<_> = self.engines.iter().map(Engine::empty_cache).collect();
        results.into_iter().collect()
    }

    /// Looks which frees that wait for other streams have completed, on all devices, and gives
    /// memory back that has been idle for [`Config::release_idle_ms`](crate::Config). An allocation
    /// that finds no memory at hand does so by itself; a program that only frees, or that rests,
    /// may want to call it.
    ///
    /// # Errors
    /// [`Error::Device`] where an event cannot be asked.
    pub fn process_events(&self) -> Result<()> {
        self.check_outside()?;
        for engine in &self.engines {
            engine.process_events()?;
        }
        Ok(())
    }

    /// Limits what is taken from the device to a share in `[0, 1]` of its memory; 1 removes the
    /// limit. What is taken already stays.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for anything outside `[0, 1]`.
    pub fn set_memory_fraction(&self, device: DeviceId, fraction: f64) -> Result<()> {
        self.enter(device)?.set_memory_fraction(fraction)
    }

    /// The limit as a share of the device's memory; 1 where there is none.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`].
    pub fn memory_fraction(&self, device: DeviceId) -> Result<f64> {
        Ok(self.enter(device)?.memory_fraction())
    }

    /// Turns caching on or off. While off, every allocation is the device's own, and every free
    /// waits for the whole device. Allocations made before stay what they are.
    pub fn set_caching(&self, caching: bool) {
        if !caching {
            self.direct.store(true, Ordering::Relaxed);
        }
        self.engines.iter().for_each(|engine| engine.set_caching(caching));
    }

    /// Whether caching is on.
    pub fn is_caching(&self) -> bool {
        self.engines.iter().all(Engine::is_caching)
    }

    /// The device's memory as its driver counts it.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver does not tell.
    pub fn memory_info(&self, device: DeviceId) -> Result<MemoryInfo> {
        Ok(self.engine(device)?.device().memory_info()?)
    }

    /// The largest cached block of the device, in bytes, over all streams.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`].
    pub fn largest_free_block(&self, device: DeviceId) -> Result<Bytes> {
        Ok(self.enter(device)?.largest_free_block())
    }

    /// The statistics of a device.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`].
    pub fn statistics(&self, device: DeviceId) -> Result<DeviceStatistics> {
        Ok(self.enter(device)?.statistics())
    }

    /// Sets every peak of a device to the current value.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`].
    pub fn reset_peak_statistics(&self, device: DeviceId) -> Result<()> {
        self.enter(device)?.reset_peaks();
        Ok(())
    }

    /// Sets every accumulated count of a device to zero.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`].
    pub fn reset_accumulated_statistics(&self, device: DeviceId) -> Result<()> {
        self.enter(device)?.reset_accumulated();
        Ok(())
    }

    /// Checks every invariant of every device, with everything locked: for tests and for finding
    /// faults.
    ///
    /// # Errors
    /// [`Error::Internal`] with the name of the invariant that is broken.
    pub fn is_valid(&self) -> Result<()> {
        self.check_outside()?;
        self.engines.iter().try_for_each(Engine::is_valid)
    }

    /// As [`is_valid`](Allocator::is_valid), and also that nothing is allocated or pinned, and
    /// nothing waits for a stream: how every test ends.
    ///
    /// # Errors
    /// [`Error::InUse`] with what is left of a device; [`Error::Internal`] as `is_valid`.
    pub fn is_quiescent(&self) -> Result<()> {
        self.check_outside()?;
        self.engines.iter().try_for_each(Engine::is_quiescent)
    }
}
