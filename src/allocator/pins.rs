//! Memory that stays where it is, and observers of what appears and disappears.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::allocator::Allocator;
use crate::engine::{MappingEvent, MappingObserver, Pinned, foreign};
use crate::error::{Error, PointerUse, Result};
use crate::units::{Address, Bytes, DeviceId};

/// Memory that stays where it is: the physical memory under an allocation is neither moved, nor
/// divided, nor given back, until this is dropped, even when the allocation is freed before. It is
/// for what others know by its address: registrations with NCCL or a network card.
///
/// The memory goes on serving the stream that it belongs to.
///
/// ```
/// use plugalloc::{Allocator, DeviceId, StreamId};
///
/// let allocator = Allocator::builder().device("sim").build()?;
/// let block = allocator.allocate(DeviceId(0), 1 << 20, StreamId::DEFAULT)?;
/// let pin = allocator.pin(block)?;
/// assert!(pin.address() <= block && block + (1 << 20) <= pin.address() + pin.bytes());
/// allocator.free(block)?;
/// allocator.empty_cache()?;
/// assert_eq!(allocator.statistics(DeviceId(0))?.reserved_bytes.all.current as u64, pin.bytes());
/// # Ok::<(), plugalloc::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the memory may move again when this is dropped"]
pub struct Pin {
    allocator: Arc<Allocator>,
    device: DeviceId,
    pinned: Pinned,
}

impl Pin {
    /// The start of what stays in place, which is at or before that of the allocation.
    pub fn address(&self) -> Address {
        self.pinned.address
    }

    /// How many bytes stay in place from there: whole handles, or a segment.
    pub fn bytes(&self) -> Bytes {
        self.pinned.bytes
    }

    /// The device.
    pub fn device(&self) -> DeviceId {
        self.device
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Nobody else has the number.
        let _ = self.allocator.unpin(self.device, self.pinned.number);
    }
}

/// The number of an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObserverId(pub(crate) u64);

static OBSERVERS: AtomicU64 = AtomicU64::new(1);

impl Allocator {
    /// Pins the memory under the live allocation around `address`. An allocation can be pinned more
    /// than once.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`] where nothing is live there; [`Error::Unsupported`] for an
    /// allocation that was made with caching off, whose memory goes when it is freed.
    pub fn pin(self: &Arc<Self>, address: Address) -> Result<Pin> {
        let (device, pinned) = self.pin_memory(address)?;
        Ok(Pin { allocator: Arc::clone(self), device, pinned })
    }

    /// Pins by number.
    pub(crate) fn pin_memory(&self, address: Address) -> Result<(DeviceId, Pinned)> {
        self.check_outside()?;
        if let Some((engine, entry)) = self.owner(address) {
            return Ok((
                engine.id(),
                engine.pin(entry, address).map_err(|error| error.when_asked_to(PointerUse::Pin))?,
            ));
        }
        if self.direct_around(address).is_none() {
            return Err(foreign(address).when_asked_to(PointerUse::Pin));
        }
        Err(Error::Unsupported {
            operation: "pinning memory".to_owned(),
            by: "an allocation without caching".to_owned(),
            why: "its memory goes back to the device when it is freed; turn caching on".to_owned(),
        })
    }

    pub(crate) fn unpin(&self, device: DeviceId, number: u64) -> Result<()> {
        self.enter(device)?.unpin(number)
    }

    /// Calls `observer` whenever memory has appeared at some addresses or is about to disappear
    /// there, on any device, and first for all that is there already. While caching is off, that is
    /// each allocation.
    ///
    /// - Memory that has [appeared](crate::MappingChange::Mapped) is told before the request
    ///   returns that it was made for; memory that is about to
    ///   [disappear](crate::MappingChange::Unmapping) before it is unmapped. It disappears in the
    ///   spans in which it appeared. What was about to disappear and is used again instead is told
    ///   as having appeared.
    /// - The observer is called from the thread that allocates, frees or empties the cache, for one
    ///   event at a time, in the order in which things happened, with no lock of the allocator
    ///   held. It may call any method of the allocator, allocate and free too; memory that would
    ///   disappear by a call from inside it does so later. It must not wait for another thread that
    ///   calls the allocator, which may be waiting for the observer.
    /// - Memory that moves between heaps stays mapped where it was until it is given back, so that
    ///   a registration made when it appeared is right until it disappears; but several addresses
    ///   may stand for the same memory. [Pin](Allocator::pin) what must not move at all.
    ///
    /// Allocations and frees that change no mapping cost nothing more.
    ///
    /// # Errors
    /// [`Error::Unsupported`] inside of a tracker.
    pub fn observe_mappings(
        &self,
        observer: impl Fn(&MappingEvent) + Send + Sync + 'static,
    ) -> Result<ObserverId> {
        self.check_outside()?;
        let observer: MappingObserver = Arc::new(observer);
        let number = OBSERVERS.fetch_add(1, Ordering::Relaxed);
        self.engines.iter().for_each(|engine| engine.observe_mappings(number, &observer));
        Ok(ObserverId(number))
    }

    /// Removes an observer, which is not called any more afterwards; false where it is not there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] inside of a tracker.
    pub fn unobserve_mappings(&self, observer: ObserverId) -> Result<bool> {
        self.check_outside()?;
        let removed = self.engines.iter().map(|engine| engine.unobserve_mappings(observer.0));
        Ok(removed.fold(false, |any, removed| any | removed))
    }
}
