//! The history of a device: what happened, in a ring of bounded length, with PyTorch's actions.
//!
//! Nothing here is on the way of an allocation while no history is recorded and nobody tracks
//! events: the engine asks one flag. While there is one, each call leaves the hot path and takes
//! the lock of its device's ring once, under the lock of its heap where the order of events at one
//! address depends on it.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

use super::events::{
    Action, Annotation, Context, ContextSource, HistoryOptions, RecordContext, TraceEntry,
};
use super::labels;
use crate::error::{Error, Result};
use crate::units::{Address, Bytes, DeviceId, PoolId, StreamId};

/// Told of every event as it happens, with locks of the allocator held: it must not call the
/// allocator, nor wait for a thread that does.
pub(crate) type Tracker = Arc<dyn Fn(&TraceEntry) + Send + Sync>;

/// How deep trackers may lie inside of each other, each of which calls another allocator. Whoever
/// goes deeper is refused by all allocators.
const DEPTH: usize = 4;

/// The allocators whose trackers a thread is inside of, the outermost first.
#[derive(Clone, Copy)]
struct Tellers {
    owners: [usize; DEPTH],
    depth: usize,
}

thread_local! {
    static TELLING: Cell<Tellers> = const { Cell::new(Tellers { owners: [0; DEPTH], depth: 0 }) };
}

/// While trackers are called.
struct Telling {
    before: Tellers,
}

impl Telling {
    fn of(owner: usize) -> Telling {
        let before = TELLING.get();
        let mut now = before;
        if let Some(place) = now.owners.get_mut(now.depth) {
            *place = owner;
        }
        now.depth += 1;
        TELLING.set(now);
        Telling { before }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        TELLING.set(self.before);
    }
}

/// Fails for a call of this allocator out of one of its trackers, of whichever device: it would
/// wait for the locks that its own thread has, or for another thread that waits for these. Takes no
/// lock itself.
pub(crate) fn check_outside(owner: usize) -> Result<()> {
    let Tellers { owners, depth } = TELLING.get();
    if depth <= DEPTH && !owners[..depth].contains(&owner) {
        return Ok(());
    }
    Err(Error::Unsupported {
        operation: "calling the allocator".to_owned(),
        by: "a trace tracker".to_owned(),
        why: "it is called with locks of the allocator held; note the event, and act on it when \
              the tracker has returned"
            .to_owned(),
    })
}

/// A tracker whose panics end in it, since the allocator is in the middle of what it tells of.
pub(crate) fn caught(tracker: impl Fn(&TraceEntry) + Send + Sync + 'static) -> Tracker {
    Arc::new(move |event| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| tracker(event))) {
            // It has been printed; dropping its value could panic again.
            std::mem::forget(panic);
        }
    })
}

/// A piece of memory that an event is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
    pub(crate) stream: StreamId,
    pub(crate) pool: PoolId,
}

/// The history of one device, and whoever tracks its events.
pub(crate) struct History {
    device: DeviceId,
    /// What names the allocator among all: the address of something that it has for itself.
    owner: usize,
    ring: Mutex<Ring>,
    /// Whether events are kept.
    enabled: AtomicBool,
    /// The [`RecordContext`] in force.
    when: AtomicU8,
    source: RwLock<Option<ContextSource>>,
    tracked: AtomicBool,
    trackers: RwLock<Vec<Tracker>>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<TraceEntry>,
    max: usize,
    /// Actions that are not kept, a bit each.
    skip: u16,
    annotations: VecDeque<Annotation>,
    /// Contexts of what is live, by address.
    contexts: HashMap<Address, Context>,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

/// Microseconds since 1970.
fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

impl History {
    pub(crate) fn new(device: DeviceId, owner: usize) -> Self {
        History {
            device,
            owner,
            ring: Mutex::default(),
            enabled: AtomicBool::new(false),
            when: AtomicU8::new(0),
            source: RwLock::default(),
            tracked: AtomicBool::new(false),
            trackers: RwLock::default(),
        }
    }

    /// Begins to record, or goes on with other options.
    pub(crate) fn start(&self, options: &HistoryOptions) {
        *self.source.write() = options.source.clone();
        let mut ring = self.ring.lock();
        if options.clear {
            ring.clear();
        }
        ring.max = options.max_entries;
        ring.skip = options.skip.iter().map(|action| action.bit()).fold(0, |all, bit| all | bit);
        let excess = ring.entries.len().saturating_sub(ring.max);
        ring.entries.drain(..excess);
        self.when.store(options.when as u8, Ordering::Relaxed);
        self.enabled.store(true, Ordering::Relaxed);
    }

    /// Ends the recording and forgets what was recorded.
    pub(crate) fn stop(&self) {
        let mut ring = self.ring.lock();
        self.enabled.store(false, Ordering::Relaxed);
        self.when.store(0, Ordering::Relaxed);
        ring.clear();
        drop(ring);
        *self.source.write() = None;
    }

    /// Whether events are kept.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Whether anybody wants to know of events.
    pub(crate) fn is_active(&self) -> bool {
        self.is_enabled() || self.tracked.load(Ordering::Relaxed)
    }

    /// Adds a tracker, for good.
    pub(crate) fn track(&self, tracker: Tracker) {
        self.trackers.write().push(tracker);
        self.tracked.store(true, Ordering::Relaxed);
    }

    /// Fails for a call out of a tracker of the allocator.
    pub(crate) fn check_outside(&self) -> Result<()> {
        check_outside(self.owner)
    }

    fn wants(&self, when: RecordContext) -> bool {
        self.when.load(Ordering::Relaxed) >= when as u8
    }

    /// The context of this thread, if contexts are gathered as far as `when`.
    pub(crate) fn gather(&self, when: RecordContext) -> Option<Context> {
        if !self.wants(when) {
            return None;
        }
        let source = self.source.read().clone();
        source.and_then(|source| source())
    }

    /// Records an allocation.
    pub(crate) fn allocated(&self, subject: Subject, context: Option<Context>) {
        let mut ring = self.ring.lock();
        if let Some(context) = &context {
            ring.contexts.insert(subject.address, Arc::clone(context));
        }
        self.emit(&mut ring, (now_us(), Action::Alloc), subject, context);
    }

    /// Records that the program frees an allocation; if nothing else uses it, also that this is
    /// done. `context` is that of the free, if one was gathered.
    pub(crate) fn freed(&self, subject: Subject, context: Option<Context>, completed: bool) {
        let mut ring = self.ring.lock();
        let known = context.or_else(|| ring.contexts.get(&subject.address).cloned());
        let now = now_us();
        if completed {
            self.emit(&mut ring, (now, Action::FreeRequested), subject, known.clone());
            self.emit_last(&mut ring, now, subject, known);
        } else {
            self.emit(&mut ring, (now, Action::FreeRequested), subject, known);
        }
    }

    /// Records that nothing uses a freed allocation any more.
    pub(crate) fn completed(&self, subject: Subject) {
        let mut ring = self.ring.lock();
        let known = ring.contexts.get(&subject.address).cloned();
        self.emit_last(&mut ring, now_us(), subject, known);
    }

    fn emit_last(&self, ring: &mut Ring, now: u64, subject: Subject, context: Option<Context>) {
        if !ring.contexts.is_empty() {
            ring.contexts.remove(&subject.address);
        }
        self.emit(ring, (now, Action::FreeCompleted), subject, context);
    }

    /// Records anything else.
    pub(crate) fn record(&self, action: Action, subject: Subject, context: Option<Context>) {
        self.emit(&mut self.ring.lock(), (now_us(), action), subject, context);
    }

    /// Tells the trackers of an event, and keeps it. Under the ring's lock, so that both see events
    /// in one order.
    fn emit(
        &self,
        ring: &mut Ring,
        (time_us, action): (u64, Action),
        subject: Subject,
        context: Option<Context>,
    ) {
        let tracked = self.tracked.load(Ordering::Relaxed);
        let kept = self.is_enabled() && ring.max > 0 && ring.skip & action.bit() == 0;
        if !tracked && !kept {
            return;
        }
        let Subject { address, bytes, stream, pool } = subject;
        let context = context.filter(|_| self.wants(RecordContext::Alloc));
        let (compile_context, user_metadata) = labels::current();
        let entry = TraceEntry {
            action,
            device: self.device,
            address,
            bytes,
            stream,
            pool,
            time_us,
            context,
            compile_context,
            user_metadata,
        };
        if tracked {
            let _telling = Telling::of(self.owner);
            self.trackers.read().iter().for_each(|tracker| tracker(&entry));
        }
        if kept {
            ring.keep(entry);
        }
    }

    /// Keeps a mark, if events are kept; as many marks as events.
    pub(crate) fn annotate(&self, metadata: &[(String, String)]) {
        let mut ring = self.ring.lock();
        if !self.is_enabled() || ring.max == 0 {
            return;
        }
        if ring.annotations.len() >= ring.max {
            ring.annotations.pop_front();
        }
        let (device, metadata) = (self.device, metadata.to_vec());
        ring.annotations.push_back(Annotation { device, time_us: now_us(), metadata });
    }

    /// All events that are kept, the oldest first.
    pub(crate) fn entries(&self) -> Vec<TraceEntry> {
        self.ring.lock().entries.iter().cloned().collect()
    }

    /// All marks that are kept, the oldest first.
    pub(crate) fn annotations(&self) -> Vec<Annotation> {
        self.ring.lock().annotations.iter().cloned().collect()
    }

    /// The context that was gathered when what lives at an address was allocated.
    pub(crate) fn context_of(&self, address: Address) -> Option<Context> {
        self.ring.lock().contexts.get(&address).cloned()
    }
}

impl Ring {
    fn clear(&mut self) {
        self.entries = VecDeque::new();
        self.annotations.clear();
        self.contexts.clear();
    }

    fn keep(&mut self, entry: TraceEntry) {
        if self.entries.len() >= self.max {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}
