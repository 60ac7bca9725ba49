//! Frees that wait for streams.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::device::{Device, DeviceResult, EventId};
use crate::units::{Address, StreamId};

/// A block that waits: its heap, by its place among the device's shards, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    pub(crate) shard: u32,
    pub(crate) block: u32,
}

/// What one stream is waited for.
#[derive(Debug, Default)]
struct Tracker {
    /// Frees since the last event.
    open: Vec<Ticket>,
    /// Events in the order in which they were recorded, each with the frees that it covers.
    epochs: VecDeque<(EventId, Vec<Ticket>)>,
}

/// The users of live blocks, and the blocks that wait.
pub(crate) struct Deferred {
    device: Arc<dyn Device>,
    /// The streams recorded for live blocks, by address, without the block's own.
    users: HashMap<Address, Vec<StreamId>>,
    trackers: BTreeMap<StreamId, Tracker>,
    /// For how many streams each waiting block waits.
    waits: HashMap<Ticket, usize>,
    idle_events: Vec<EventId>,
}

impl std::fmt::Debug for Deferred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deferred").field("waits", &self.waits.len()).finish_non_exhaustive()
    }
}

impl Deferred {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        Deferred {
            device,
            users: HashMap::new(),
            trackers: BTreeMap::new(),
            waits: HashMap::new(),
            idle_events: Vec::new(),
        }
    }

    /// Notes that `stream` uses the live block at `address`. Noting it twice changes nothing.
    pub(crate) fn record(&mut self, address: Address, stream: StreamId) {
        let users = self.users.entry(address).or_default();
        if !users.contains(&stream) {
            users.push(stream);
        }
    }

    /// Starts the wait of a block that was freed; false where nobody was recorded for it.
    pub(crate) fn defer(&mut self, address: Address, ticket: Ticket) -> bool {
        let Some(users) = self.users.remove(&address) else {
            return false;
        };
        self.waits.insert(ticket, users.len());
        for stream in users {
            self.trackers.entry(stream).or_default().open.push(ticket);
        }
        true
    }

    /// How many blocks wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// How many live blocks have recorded users.
    pub(crate) fn recorded(&self) -> usize {
        self.users.len()
    }

    /// Looks which waits are over; adds the blocks that nobody uses any more to `done`. What was found
    /// before an error is in `done` all the same.
    pub(crate) fn poll(&mut self, done: &mut Vec<Ticket>) -> DeviceResult<()> {
        self.record_open()?;
        for tracker in self.trackers.values_mut() {
            while let Some((event, _)) = tracker.epochs.front() {
                if !self.device.event_query(*event)? {
                    break;
                }
                if let Some((event, tickets)) = tracker.epochs.pop_front() {
                    self.idle_events.push(event);
                    settle(&mut self.waits, tickets, done);
                }
            }
        }
        self.trackers.retain(|_, tracker| !tracker.open.is_empty() || !tracker.epochs.is_empty());
        Ok(())
    }

    /// Waits until no block waits, save for streams that are being captured, which cannot be waited for.
    pub(crate) fn wait_all(&mut self, done: &mut Vec<Ticket>) -> DeviceResult<()> {
        self.record_open()?;
        for tracker in self.trackers.values_mut() {
            while let Some((event, _)) = tracker.epochs.front() {
                self.device.event_synchronize(*event)?;
                if let Some((event, tickets)) = tracker.epochs.pop_front() {
                    self.idle_events.push(event);
                    settle(&mut self.waits, tickets, done);
                }
            }
        }
        self.trackers.retain(|_, tracker| !tracker.open.is_empty());
        Ok(())
    }

    /// Records one event a stream for all frees since the last.
    fn record_open(&mut self) -> DeviceResult<()> {
        for (&stream, tracker) in &mut self.trackers {
            if tracker.open.is_empty() || self.device.capture_status(stream)?.is_some() {
                continue;
            }
            let event = match self.idle_events.pop() {
                Some(event) => event,
                None => self.device.event_create()?,
            };
            if let Err(error) = self.device.event_record(event, stream) {
                self.idle_events.push(event);
                return Err(error);
            }
            tracker.epochs.push_back((event, std::mem::take(&mut tracker.open)));
        }
        Ok(())
    }

    /// Makes `later` wait for what is queued on `earlier` now, unless that has run already. False where
    /// one of them is being captured, so that nothing may be recorded or made to wait.
    pub(crate) fn order(&mut self, earlier: StreamId, later: StreamId) -> DeviceResult<bool> {
        if earlier == later {
            return Ok(true);
        }
        if !self.can_order(earlier, later)? {
            return Ok(false);
        }
        self.with_event(earlier, |device, event| {
            if !device.event_query(event)? {
                device.stream_wait_event(later, event)?;
            }
            Ok(())
        })?;
        Ok(true)
    }

    /// Whether [`order`](Deferred::order) would not refuse.
    pub(crate) fn can_order(&self, earlier: StreamId, later: StreamId) -> DeviceResult<bool> {
        Ok(earlier == later
            || (self.device.capture_status(earlier)?.is_none()
                && self.device.capture_status(later)?.is_none()))
    }

    /// Waits on the host for everything queued on `stream`. False where it is being captured.
    pub(crate) fn drain(&mut self, stream: StreamId) -> DeviceResult<bool> {
        if self.device.capture_status(stream)?.is_some() {
            return Ok(false);
        }
        self.with_event(stream, |device, event| device.event_synchronize(event))?;
        Ok(true)
    }

    fn with_event<T>(
        &mut self,
        stream: StreamId,
        then: impl FnOnce(&dyn Device, EventId) -> DeviceResult<T>,
    ) -> DeviceResult<T> {
        let event = match self.idle_events.pop() {
            Some(event) => event,
            None => self.device.event_create()?,
        };
        let result = self
            .device
            .event_record(event, stream)
            .and_then(|()| then(self.device.as_ref(), event));
        self.idle_events.push(event);
        result
    }

    /// Gives the events back. Errors are of no consequence any more.
    pub(crate) fn destroy_events(&mut self) {
        for event in self.idle_events.drain(..) {
            let _ = self.device.event_destroy(event);
        }
    }
}

fn settle(waits: &mut HashMap<Ticket, usize>, tickets: Vec<Ticket>, done: &mut Vec<Ticket>) {
    for ticket in tickets {
        let Some(left) = waits.get_mut(&ticket) else {
            continue;
        };
        *left -= 1;
        if *left == 0 {
            waits.remove(&ticket);
            done.push(ticket);
        }
    }
}
