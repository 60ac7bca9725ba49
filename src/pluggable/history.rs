//! The history of user functions' allocations, and snapshots of them.

use std::sync::Arc;

use super::PluggableAllocator;
use crate::engine::OutOfMemoryEvent;
use crate::error::Result;
use crate::observe::history::caught;
use crate::observe::{Context, HistoryOptions, Snapshot, TraceEntry};
use crate::units::{Address, DeviceId};

/// # History and snapshots
///
/// As those of [`Allocator`](crate::Allocator). Every allocation is the source's own, so that each
/// is a segment of one block, and its segment comes and goes with it.
///
/// ```
/// use plugalloc::observe::{Action, HistoryOptions};
/// use plugalloc::{DeviceId, PluggableAllocator, StreamId};
///
/// let allocator = PluggableAllocator::new(|_, _, _| Ok(0x1000), |_, _, _, _| ());
/// allocator.record_history(&HistoryOptions { max_entries: 100, ..Default::default() })?;
/// let address = allocator.allocate(DeviceId(0), 512, StreamId(3))?;
/// let snapshot = allocator.snapshot(true)?;
/// assert_eq!((snapshot.segments[0].address, snapshot.segments[0].total), (0x1000, 512));
/// let actions: Vec<_> = snapshot.device_traces[0].iter().map(|entry| entry.action).collect();
/// assert_eq!(actions, [Action::SegmentAlloc, Action::Alloc]);
/// allocator.free(address)?;
/// # Ok::<(), plugalloc::Error>(())
/// ```
impl PluggableAllocator {
    /// Begins to record what happens on all devices, or goes on with other options.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) where contexts are to be gathered
    /// and nothing is named that gathers them.
    pub fn record_history(&self, options: &HistoryOptions) -> Result<()> {
        self.metadata.record_history(options)
    }

    /// Ends the recording on all devices, and forgets what was recorded.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn stop_history(&self) -> Result<()> {
        self.metadata.stop_history()
    }

    /// Whether a history is recorded.
    pub fn is_history_enabled(&self) -> bool {
        self.metadata.is_history_enabled()
    }

    /// Sets a mark in the history of a device. Nothing happens where none is recorded.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`](crate::Error::InvalidDevice).
    pub fn record_annotation(&self, device: DeviceId, metadata: &[(String, String)]) -> Result<()> {
        self.metadata.annotate(device, metadata)
    }

    /// All that is live, by device and address, and the history, if it is wanted. Calls wait while
    /// it is copied.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn snapshot(&self, traces: bool) -> Result<Snapshot> {
        self.metadata.snapshot(traces)
    }

    /// The context that was gathered when the live allocation at `address` was made.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn context_of(&self, address: Address) -> Result<Option<Context>> {
        self.metadata.context_of(address)
    }

    /// Calls `tracker` for every event of every device as it happens, from now on and for the life
    /// of the allocator, whether a history is recorded or not, and also for those that a history
    /// would skip. It is called with locks held: it must not call the allocator, nor wait for a
    /// thread that does. What it calls of the allocator is refused
    /// ([`Error::Unsupported`](crate::Error::Unsupported)) before `alloc_fn` or `free_fn` are
    /// called; the hooks that need nothing of the allocator are called all the same. A panic in it
    /// ends there.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn track_events(
        &self,
        tracker: impl Fn(&TraceEntry) + Send + Sync + 'static,
    ) -> Result<()> {
        self.metadata.track(caught(tracker))
    }

    /// Calls `observer` for every request for which `alloc_fn` has no memory, before the error is
    /// returned, on the same thread and with no lock held, for the life of the allocator.
    pub fn observe_out_of_memory(
        &self,
        observer: impl Fn(&OutOfMemoryEvent<'_>) + Send + Sync + 'static,
    ) {
        self.metadata.observe_out_of_memory(Arc::new(observer));
    }
}
