//! The history of what happens, snapshots, and whoever is told of events.

use std::sync::Arc;

use crate::allocator::Allocator;
use crate::engine::OutOfMemoryEvent;
use crate::error::Result;
use crate::observe::history::caught;
use crate::observe::{Context, HistoryOptions, Snapshot, TraceEntry};
use crate::units::{Address, DeviceId, PoolId};

/// # History and snapshots
///
/// While a history is recorded, every allocation and free takes one lock of its device more and
/// some hundred nanoseconds; without one, nothing (`docs/BENCHMARKS.md` has the figures).
///
/// ```
/// use plugalloc::observe::{Action, HistoryOptions};
/// use plugalloc::{Allocator, DeviceId, StreamId};
///
/// let allocator = Allocator::builder().device("sim").build()?;
/// allocator.record_history(&HistoryOptions { max_entries: 100, ..Default::default() })?;
/// let block = allocator.allocate(DeviceId(0), 1 << 20, StreamId::DEFAULT)?;
/// allocator.free(block)?;
/// let snapshot = allocator.snapshot(None, true)?;
/// let actions: Vec<_> = snapshot.device_traces[0].iter().map(|entry| entry.action).collect();
/// let expected =
///     [Action::SegmentMap, Action::Alloc, Action::FreeRequested, Action::FreeCompleted];
/// assert_eq!(actions, expected);
/// allocator.stop_history()?;
/// # Ok::<(), plugalloc::Error>(())
/// ```
impl Allocator {
    /// Begins to record what happens on all devices, or goes on with other options.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) where contexts are to be gathered
    /// and nothing is named that gathers them.
    pub fn record_history(&self, options: &HistoryOptions) -> Result<()> {
        options.check()?;
        self.check_outside()?;
        self.engines.iter().for_each(|engine| engine.start_history(options));
        Ok(())
    }

    /// Ends the recording on all devices, and forgets what was recorded.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn stop_history(&self) -> Result<()> {
        self.check_outside()?;
        self.engines.iter().for_each(|engine| engine.stop_history());
        Ok(())
    }

    /// Whether a history is recorded.
    pub fn is_history_enabled(&self) -> bool {
        self.engines.iter().any(|engine| engine.is_history_enabled())
    }

    /// Sets a mark in the history of a device. Nothing happens where none is recorded.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`](crate::Error::InvalidDevice).
    pub fn record_annotation(&self, device: DeviceId, metadata: &[(String, String)]) -> Result<()> {
        self.enter(device)?.annotate(metadata);
        Ok(())
    }

    /// All memory of all devices, of all pools or of one, and the history, if it is wanted. Each
    /// device is locked while what there is of it is copied: calls on it wait.
    ///
    /// Of a device's memory, the segments add up to what is reserved, and their blocks to the
    /// segments. A pool that is not there has no segments, which is no error: most pools are there
    /// on one device alone, and one without uses is gone with the last of its memory.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn snapshot(&self, pool: Option<PoolId>, traces: bool) -> Result<Snapshot> {
        self.check_outside()?;
        let mut snapshot = Snapshot { config: self.config.clone(), ..Snapshot::default() };
        self.engines.iter().for_each(|engine| engine.add_to(&mut snapshot, pool, traces));
        snapshot.annotations.sort_by_key(|mark| mark.time_us);
        Ok(snapshot)
    }

    /// The context that was gathered when the live allocation at `address` was made.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn context_of(&self, address: Address) -> Result<Option<Context>> {
        self.check_outside()?;
        Ok(self.engines.iter().find_map(|engine| engine.context_of(address)))
    }

    /// Calls `tracker` for every event of every device as it happens, from now on and for the life
    /// of the allocator, whether a history is recorded or not, and also for those that a history
    /// would skip. It is called with locks held: it must not call the allocator, nor wait for a
    /// thread that does. Every call there that would need a lock of the allocator, on whichever
    /// device, is refused ([`Error::Unsupported`](crate::Error::Unsupported)), also what an
    /// [`Allocation`](crate::Allocation), a [`Pin`](crate::Pin) or memory of another process calls
    /// when it is dropped: what it has then stays. A panic in it ends there, since the allocator is
    /// in the middle of what it tells of. Calls leave the hot path from now on.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub fn track_events(
        &self,
        tracker: impl Fn(&TraceEntry) + Send + Sync + 'static,
    ) -> Result<()> {
        self.check_outside()?;
        let tracker = caught(tracker);
        self.engines.iter().for_each(|engine| engine.track(Arc::clone(&tracker)));
        Ok(())
    }

    /// Calls `observer` for every request that fails for want of memory, before the error is
    /// returned, on the same thread and with no lock held, for the life of the allocator.
    pub fn observe_out_of_memory(
        &self,
        observer: impl Fn(&OutOfMemoryEvent<'_>) + Send + Sync + 'static,
    ) {
        let observer: Arc<dyn Fn(&OutOfMemoryEvent<'_>) + Send + Sync> = Arc::new(observer);
        for engine in &self.engines {
            engine.observe_out_of_memory(Arc::clone(&observer));
        }
    }
}
