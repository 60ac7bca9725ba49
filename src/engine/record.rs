//! What goes into the history, and who is told of it.
//!
//! While a history is recorded or events are tracked, a flag sends allocations off the hot path,
//! and no heap is ready (see `heap::Turn`), which does so for frees, whatever they free: nothing
//! else is asked while neither is. The event of a free is recorded under the lock of its heap,
//! before the memory can be handed out again, and that of an allocation before its address is
//! known to anybody, so that the events of one address are in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::direct::DirectBlock;
use super::{Engine, flag};
use crate::error::{Error, OutOfMemory, Result};
use crate::heap::{BlockView, Heap};
use crate::observe::history::{Subject, Tracker};
use crate::observe::{Action, Context, HistoryOptions, RecordContext};
use crate::streams::Ticket;
use crate::units::{Address, Bytes, PoolId, StreamId};

/// A request that failed for want of memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OutOfMemoryEvent<'a> {
    /// The numbers of the error.
    pub report: &'a OutOfMemory,
    /// How much would have been taken from the device for it.
    pub segment: Bytes,
    /// Whether it was refused at the limit (the memory fraction), which the device was not asked
    /// to go beyond.
    pub at_limit: bool,
}

/// Told of requests that fail.
pub(crate) type OutOfMemoryObserver = Arc<dyn Fn(&OutOfMemoryEvent<'_>) + Send + Sync>;

/// Whoever is told of requests that fail.
#[derive(Default)]
pub(crate) struct Alarm {
    present: AtomicBool,
    observers: RwLock<Vec<OutOfMemoryObserver>>,
}

/// An allocation of the device's own as a segment.
fn outside(address: Address, block: DirectBlock) -> Subject {
    Subject { address, bytes: block.bytes, stream: block.stream, pool: PoolId::DEFAULT }
}

impl Engine {
    /// Begins to record events, or goes on with other options.
    pub(crate) fn start_history(&self, options: &HistoryOptions) {
        self.history.start(options);
        self.apply_recording();
    }

    /// Ends the recording and forgets what was recorded.
    pub(crate) fn stop_history(&self) {
        self.history.stop();
        self.apply_recording();
    }

    pub(crate) fn is_history_enabled(&self) -> bool {
        self.history.is_enabled()
    }

    /// Adds a tracker of events, for good.
    pub(crate) fn track(&self, tracker: Tracker) {
        self.history.track(tracker);
        self.apply_recording();
    }

    /// Keeps a mark in the history.
    pub(crate) fn annotate(&self, metadata: &[(String, String)]) {
        self.history.annotate(metadata);
    }

    /// The context of what lives at an address.
    pub(crate) fn context_of(&self, address: Address) -> Option<Context> {
        self.history.context_of(address)
    }

    /// Adds an observer of requests that fail, for good.
    pub(crate) fn observe_out_of_memory(&self, observer: OutOfMemoryObserver) {
        self.alarm.observers.write().push(observer);
        self.alarm.present.store(true, Ordering::Release);
    }

    /// Sends calls off the hot path, or lets them go there again.
    fn apply_recording(&self) {
        // One change at a time; and whoever has several heaps locked has this.
        let _growth = self.growth.lock();
        let on = self.history.is_active();
        if on {
            self.flags.fetch_or(flag::RECORDED, Ordering::Relaxed);
        }
        self.shards.set_recorded(on);
        if !on {
            self.flags.fetch_and(!flag::RECORDED, Ordering::Relaxed);
        }
    }

    /// Fails for a call out of a tracker of the allocator, of whichever device.
    pub(crate) fn check_outside(&self) -> Result<()> {
        if self.is_recorded() { self.history.check_outside() } else { Ok(()) }
    }

    #[inline]
    pub(super) fn is_recorded(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flag::RECORDED != 0
    }

    /// Allocates, and records that.
    #[cold]
    pub(super) fn allocate_recorded(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        self.history.check_outside()?;
        let context = self.history.gather(RecordContext::State);
        let address = self.allocate_untold(bytes, stream)?;
        if address != 0 {
            let pool = self.map.get(address).map_or(PoolId::DEFAULT, |(shard, _)| shard.pool_id());
            self.history.allocated(Subject { address, bytes, stream, pool }, context);
        }
        Ok(address)
    }

    /// The context of a free, gathered before any lock is taken.
    #[inline]
    pub(super) fn gather_for_free(&self) -> Option<Context> {
        if self.is_recorded() { self.history.gather(RecordContext::All) } else { None }
    }

    /// Records the free of a block whose heap is locked.
    #[inline]
    pub(super) fn record_freed(&self, shard: u32, block: BlockView, context: Option<Context>) {
        if self.is_recorded() {
            let completed = !block.state.is_shared();
            self.history.freed(
                self.subject(shard, block.start, block.requested),
                context,
                completed,
            );
        }
    }

    /// Records that a block is live whose heap is locked.
    pub(super) fn record_live(&self, shard: u32, block: BlockView, context: Option<Context>) {
        if self.is_recorded() {
            self.history.allocated(self.subject(shard, block.start, block.requested), context);
        }
    }

    /// The context of an allocation, gathered before any lock is taken.
    pub(super) fn gather_for_allocation(&self) -> Option<Context> {
        if self.is_recorded() { self.history.gather(RecordContext::State) } else { None }
    }

    /// Records that nobody uses a block any more whose free was deferred; its heap is locked.
    pub(super) fn record_completed(&self, heap: &Heap, ticket: Ticket) {
        if self.is_recorded() {
            let block = heap.block(ticket.block);
            self.history.completed(self.subject(ticket.shard, block.start, block.requested));
        }
    }

    /// Records that memory comes to a heap or goes.
    #[inline]
    pub(super) fn record_memory(&self, action: Action, shard: u32, at: Address, bytes: Bytes) {
        if self.is_recorded() {
            self.history.record(action, self.subject(shard, at, bytes), None);
        }
    }

    /// Records that an allocation of the device's own begins, which is a segment; `live` are the
    /// bytes asked for where the allocation itself is not recorded later.
    pub(super) fn record_outside(&self, at: Address, block: DirectBlock, live: Option<Bytes>) {
        if self.is_recorded() {
            let subject = outside(at, block);
            self.history.record(Action::SegmentAlloc, subject, None);
            if let Some(bytes) = live {
                self.history.allocated(Subject { bytes, ..subject }, None);
            }
        }
    }

    /// Records that it ends.
    pub(super) fn record_outside_freed(
        &self,
        at: Address,
        block: DirectBlock,
        context: Option<Context>,
    ) {
        if self.is_recorded() {
            let subject = outside(at, block);
            self.history.freed(Subject { bytes: block.requested, ..subject }, context, true);
            self.history.record(Action::SegmentFree, subject, None);
        }
    }

    fn subject(&self, shard: u32, address: Address, bytes: Bytes) -> Subject {
        let owner = self.shards.get(shard);
        let stream = owner.map_or(StreamId::DEFAULT, |shard| shard.stream);
        let pool = owner.map_or(PoolId::DEFAULT, |shard| shard.pool_id());
        Subject { address, bytes, stream, pool }
    }

    /// Records that a request failed for want of memory, and tells whoever wants to know, with no
    /// lock held.
    #[cold]
    pub(super) fn tell_out_of_memory(&self, error: &Error, stream: StreamId) {
        let Error::OutOfMemory(report) = error else {
            return;
        };
        let (kind, rounded) = self.size_of(report.requested);
        let segment = self.segment_size(rounded, kind);
        if self.is_recorded() {
            let context = self.history.gather(RecordContext::State);
            let subject =
                Subject { address: report.free, bytes: segment, stream, pool: PoolId::DEFAULT };
            self.history.record(Action::OutOfMemory, subject, context);
        }
        if !self.alarm.present.load(Ordering::Acquire) {
            return;
        }
        let at_limit = report.limit < report.total && report.reserved + segment > report.limit;
        let event = OutOfMemoryEvent { report, segment, at_limit };
        let observers = self.alarm.observers.read().clone();
        observers.iter().for_each(|observer| observer(&event));
    }
}
