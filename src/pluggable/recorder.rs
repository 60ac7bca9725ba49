//! What is told of the allocations of user functions: a history of each device, and whoever tracks
//! events or requests that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::Entry;
use crate::engine::{OutOfMemoryEvent, OutOfMemoryObserver};
use crate::error::{Error, Result};
use crate::observe::history::{History, Subject, Tracker, check_outside};
use crate::observe::{Action, Context, HistoryOptions, RecordContext, Snapshot};
use crate::units::{Address, Bytes, DeviceId, PoolId, StreamId};

/// One flag is all that an allocation asks while nobody wants to know. Events are recorded under
/// the lock of the metadata, so that those of one address are in order; contexts are gathered
/// before it is taken.
#[derive(Default)]
pub(super) struct Recorder {
    /// Whether anybody wants to know of events.
    active: AtomicBool,
    /// Apart, so that its address names the allocator wherever that is moved.
    wanted: Box<RwLock<Wanted>>,
    observers: RwLock<Vec<OutOfMemoryObserver>>,
}

#[derive(Default)]
struct Wanted {
    /// By device, as far as any had an event.
    histories: Vec<Arc<History>>,
    /// Those of the history that is recorded, for devices that are used later as well.
    options: Option<HistoryOptions>,
    trackers: Vec<Tracker>,
}

impl Wanted {
    fn history(&mut self, device: usize, owner: usize) -> Arc<History> {
        while self.histories.len() <= device {
            let history = History::new(DeviceId(self.histories.len() as i32), owner);
            self.options.iter().for_each(|options| history.start(options));
            self.trackers.iter().for_each(|tracker| history.track(Arc::clone(tracker)));
            self.histories.push(Arc::new(history));
        }
        Arc::clone(&self.histories[device])
    }
}

fn subject(address: Address, entry: Entry) -> Subject {
    Subject { address, bytes: entry.bytes, stream: entry.stream, pool: PoolId::DEFAULT }
}

impl Recorder {
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    fn history(&self, device: DeviceId) -> Option<Arc<History>> {
        let index = device.index()?;
        let known = self.wanted.read().histories.get(index).cloned();
        Some(known.unwrap_or_else(|| self.wanted.write().history(index, self.owner())))
    }

    pub(super) fn start(&self, options: &HistoryOptions) {
        let mut wanted = self.wanted.write();
        wanted.options = Some(options.clone());
        wanted.histories.iter().for_each(|history| history.start(options));
        self.active.store(true, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        let mut wanted = self.wanted.write();
        wanted.options = None;
        wanted.histories.iter().for_each(|history| history.stop());
        self.active.store(!wanted.trackers.is_empty(), Ordering::Relaxed);
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.wanted.read().options.is_some()
    }

    pub(super) fn track(&self, tracker: &Tracker) {
        let mut wanted = self.wanted.write();
        wanted.trackers.push(Arc::clone(tracker));
        wanted.histories.iter().for_each(|history| history.track(Arc::clone(tracker)));
        self.active.store(true, Ordering::Relaxed);
    }

    pub(super) fn observe_out_of_memory(&self, observer: OutOfMemoryObserver) {
        self.observers.write().push(observer);
    }

    fn owner(&self) -> usize {
        std::ptr::from_ref(&*self.wanted).addr()
    }

    /// Fails for a call out of a tracker: the metadata of all devices are locked meanwhile.
    #[inline]
    pub(super) fn check_outside(&self) -> Result<()> {
        if self.is_active() { check_outside(self.owner()) } else { Ok(()) }
    }

    /// The context of this thread, if contexts are gathered as far as `when`.
    pub(super) fn gather(&self, when: RecordContext) -> Option<Context> {
        let options = self.wanted.read().options.clone()?;
        let source = options.source.filter(|_| options.when >= when)?;
        source()
    }

    /// Every request is one of the source's own: a segment with one block.
    pub(super) fn allocated(&self, address: Address, entry: Entry, context: Option<Context>) {
        if let Some(history) = self.history(entry.device) {
            history.record(Action::SegmentAlloc, subject(address, entry), None);
            history.allocated(subject(address, entry), context);
        }
    }

    pub(super) fn freed(&self, address: Address, entry: Entry, context: Option<Context>) {
        if let Some(history) = self.history(entry.device) {
            history.freed(subject(address, entry), context, true);
            history.record(Action::SegmentFree, subject(address, entry), None);
        }
    }

    /// Records that a request failed, and tells whoever wants to know, with no lock held.
    #[cold]
    pub(super) fn failed(&self, error: &Error, device: DeviceId, stream: StreamId) {
        let Error::OutOfMemory(report) = error else {
            return;
        };
        let segment = report.requested;
        if self.is_active()
            && let Some(history) = self.history(device)
        {
            let (address, pool) = (report.free, PoolId::DEFAULT);
            let subject = Subject { address, bytes: segment, stream, pool };
            history.record(Action::OutOfMemory, subject, self.gather(RecordContext::State));
        }
        let observers = self.observers.read().clone();
        let event = OutOfMemoryEvent { report, segment, at_limit: false };
        observers.iter().for_each(|observer| observer(&event));
    }

    pub(super) fn annotate(&self, device: DeviceId, metadata: &[(String, String)]) {
        if self.is_active()
            && let Some(history) = self.history(device)
        {
            history.annotate(metadata);
        }
    }

    pub(super) fn context_of(&self, device: DeviceId, address: Address) -> Option<Context> {
        let index = device.index()?;
        self.wanted.read().histories.get(index)?.context_of(address)
    }

    /// Adds what was recorded to a snapshot whose segments are there, of `devices` at least; then
    /// records that it was taken. The metadata are locked.
    pub(super) fn add_to(&self, snapshot: &mut Snapshot, devices: usize, traces: bool) {
        let histories = self.wanted.read().histories.clone();
        snapshot.device_traces.resize(devices.max(histories.len()), Vec::new());
        for (index, history) in histories.iter().enumerate() {
            if traces {
                snapshot.device_traces[index] = history.entries();
            }
            snapshot.annotations.extend(history.annotations());
            let of_device = snapshot.segments.iter().filter(|s| s.device.index() == Some(index));
            let bytes: Bytes = of_device.map(|segment| segment.active).sum();
            let (stream, pool) = (StreamId::DEFAULT, PoolId::DEFAULT);
            history.record(Action::Snapshot, Subject { address: 0, bytes, stream, pool }, None);
        }
        snapshot.annotations.sort_by_key(|mark| mark.time_us);
    }
}
