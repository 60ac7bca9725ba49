//! Frees that wait for streams.

mod marks;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::device::{Device, DeviceResult, EventId};
use crate::error::DeviceErrorKind;
use crate::streams::Captures;
use crate::units::{Address, StreamId};

/// A block that waits: its heap, by its place among the device's shards, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    pub(crate) shard: u32,
    pub(crate) block: u32,
}

/// An event on a stream, and the frees that wait for it.
#[derive(Debug)]
struct Epoch {
    event: EventId,
    tickets: Vec<Ticket>,
    /// Whether it was looked at since: then it stays where it is, and later frees open another
    /// epoch.
    asked: bool,
}

/// What one stream is waited for.
#[derive(Debug, Default)]
struct Tracker {
    /// Frees that no event covers yet: the stream was being captured, or recording failed.
    open: Vec<Ticket>,
    /// In the order in which they were recorded.
    epochs: VecDeque<Epoch>,
}

/// The users of live blocks, and the blocks that wait.
pub(crate) struct Deferred {
    device: Arc<dyn Device>,
    captures: Arc<Captures>,
    /// The streams recorded for live blocks, by address, without the block's own.
    users: HashMap<Address, Vec<StreamId>>,
    trackers: BTreeMap<StreamId, Tracker>,
    /// For how many streams each waiting block waits.
    waits: HashMap<Ticket, usize>,
    /// Streams that are about to be destroyed, with an event at the end of their work.
    retired: HashMap<StreamId, EventId>,
    idle_events: Vec<EventId>,
}

impl std::fmt::Debug for Deferred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deferred").field("waits", &self.waits.len()).finish_non_exhaustive()
    }
}

impl Deferred {
    pub(crate) fn new(device: Arc<dyn Device>, captures: Arc<Captures>) -> Self {
        Deferred {
            device,
            captures,
            users: HashMap::new(),
            trackers: BTreeMap::new(),
            waits: HashMap::new(),
            retired: HashMap::new(),
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

    /// Starts the wait of a block that was freed; false where nobody was recorded for it. The event
    /// is recorded now, since the program may destroy the stream next; it is the last one of the
    /// stream, moved on, unless that was looked at already.
    pub(crate) fn defer(&mut self, address: Address, ticket: Ticket) -> bool {
        let Some(users) = self.users.remove(&address) else {
            return false;
        };
        self.waits.insert(ticket, users.len());
        for stream in users {
            self.trackers.entry(stream).or_default().open.push(ticket);
            // What cannot be recorded now is tried again at the next look.
            let _ = self.record_open(stream);
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

    /// Looks which waits are over; adds the blocks that nobody uses any more to `done`. What was
    /// found before an error is in `done` all the same.
    pub(crate) fn poll(&mut self, done: &mut Vec<Ticket>) -> DeviceResult<()> {
        self.settle(done, |device, event| device.event_query(event))
    }

    /// Waits until no block waits, save for streams that are being captured, which cannot be waited
    /// for.
    pub(crate) fn wait_all(&mut self, done: &mut Vec<Ticket>) -> DeviceResult<()> {
        self.settle(done, |device, event| device.event_synchronize(event).map(|()| true))
    }

    /// Ends the waits whose events `over` says to have passed.
    fn settle(
        &mut self,
        done: &mut Vec<Ticket>,
        over: impl Fn(&dyn Device, EventId) -> DeviceResult<bool>,
    ) -> DeviceResult<()> {
        if self.must_not_ask()? {
            return Ok(());
        }
        let streams: Vec<StreamId> = self.trackers.keys().copied().collect();
        for stream in streams {
            self.record_open(stream)?;
            let Some(tracker) = self.trackers.get_mut(&stream) else {
                continue;
            };
            while let Some(epoch) = tracker.epochs.front_mut() {
                epoch.asked = true;
                if !over(self.device.as_ref(), epoch.event)? {
                    break;
                }
                if let Some(epoch) = tracker.epochs.pop_front() {
                    self.idle_events.push(epoch.event);
                    end_waits(&mut self.waits, epoch.tickets, done);
                }
            }
            if tracker.open.is_empty() && tracker.epochs.is_empty() {
                self.trackers.remove(&stream);
            }
        }
        Ok(())
    }

    /// Covers the open frees of a stream by an event, unless it is being captured.
    fn record_open(&mut self, stream: StreamId) -> DeviceResult<()> {
        if self.trackers.get(&stream).is_none_or(|tracker| tracker.open.is_empty()) {
            return Ok(());
        }
        match self.is_capturing(stream)? {
            Status::Capturing => return Ok(()),
            Status::Gone => {
                // All of the device's work has been waited for: a new event is over at once.
                let event = self.event()?;
                return self.close_epoch(stream, event, Ok(()));
            }
            Status::Usual => {}
        }
        let Some(tracker) = self.trackers.get_mut(&stream) else {
            return Ok(());
        };
        if let Some(last) = tracker.epochs.back_mut().filter(|epoch| !epoch.asked) {
            self.device.event_record(last.event, stream)?;
            last.tickets.append(&mut tracker.open);
            return Ok(());
        }
        let event = self.event()?;
        let recorded = self.device.event_record(event, stream);
        self.close_epoch(stream, event, recorded)
    }

    fn close_epoch(
        &mut self,
        stream: StreamId,
        event: EventId,
        recorded: DeviceResult<()>,
    ) -> DeviceResult<()> {
        match (recorded, self.trackers.get_mut(&stream)) {
            (Ok(()), Some(tracker)) => {
                let tickets = std::mem::take(&mut tracker.open);
                tracker.epochs.push_back(Epoch { event, tickets, asked: false });
                Ok(())
            }
            (recorded, _) => {
                self.idle_events.push(event);
                recorded
            }
        }
    }

    /// Whether `stream` is being captured. One that was destroyed is not.
    pub(crate) fn is_captured(&self, stream: StreamId) -> DeviceResult<bool> {
        if self.retired.contains_key(&stream) {
            return Ok(false);
        }
        match self.device.capture_status(stream) {
            Err(error) if error.kind == DeviceErrorKind::Misuse => Ok(false),
            status => status.map(|capture| capture.is_some()),
        }
    }

    /// Whether no event may be asked or waited for, because a capture may be under way.
    fn must_not_ask(&self) -> DeviceResult<bool> {
        self.captures.may_be_under_way(self.device.as_ref())
    }

    /// What may be done with a stream now.
    fn is_capturing(&self, stream: StreamId) -> DeviceResult<Status> {
        match self.device.capture_status(stream) {
            Ok(Some(_)) => Ok(Status::Capturing),
            Ok(None) => Ok(Status::Usual),
            Err(error) if error.kind == DeviceErrorKind::Misuse => {
                // The stream was destroyed. Its work may still run, and nothing is left to ask but
                // the device as a whole, which a capture does not survive.
                if self.must_not_ask()? {
                    return Ok(Status::Capturing);
                }
                self.device.synchronize()?;
                Ok(Status::Gone)
            }
            Err(error) => Err(error),
        }
    }

    fn event(&mut self) -> DeviceResult<EventId> {
        match self.idle_events.pop() {
            Some(event) => Ok(event),
            None => self.device.event_create(),
        }
    }

    /// Takes note that `stream` is about to be destroyed: what it leaves is ordered by an event
    /// from now on, and nothing more is asked of it.
    pub(crate) fn retire(&mut self, stream: StreamId) -> DeviceResult<()> {
        self.record_open(stream)?;
        let event = self.event()?;
        if let Err(error) = self.device.event_record(event, stream) {
            self.idle_events.push(event);
            return Err(error);
        }
        if let Some(old) = self.retired.insert(stream, event) {
            self.idle_events.push(old);
        }
        Ok(())
    }

    /// A retired stream's handle is in use again: the new stream waits for what the old one left.
    pub(crate) fn revive(&mut self, stream: StreamId) -> DeviceResult<()> {
        if let Some(&event) = self.retired.get(&stream) {
            self.device.stream_wait_event(stream, event)?;
            self.retired.remove(&stream);
            self.idle_events.push(event);
        }
        Ok(())
    }

    /// Makes `later` wait for what is queued on `earlier` now, unless that has run already. False
    /// where one of them is being captured, so that nothing may be recorded or made to wait. That
    /// holds for one stream too: what is captured runs when its graph does, on any stream, and not
    /// after what is queued here.
    pub(crate) fn order(&mut self, earlier: StreamId, later: StreamId) -> DeviceResult<bool> {
        if !self.can_order(earlier, later)? {
            return Ok(false);
        }
        if earlier == later {
            return Ok(true);
        }
        let ask = !self.must_not_ask()?;
        self.at_end_of(earlier, |device, event| {
            if !(ask && device.event_query(event)?) {
                device.stream_wait_event(later, event)?;
            }
            Ok(())
        })
    }

    /// Whether [`order`](Deferred::order) would not refuse.
    pub(crate) fn can_order(&self, earlier: StreamId, later: StreamId) -> DeviceResult<bool> {
        let free = |stream| Ok(!matches!(self.is_capturing(stream)?, Status::Capturing));
        Ok((earlier == later || self.retired.contains_key(&earlier) || free(earlier)?)
            && free(later)?)
    }

    /// Waits on the host for everything queued on `stream`. False where it is being captured, or
    /// no event may be waited for.
    pub(crate) fn drain(&mut self, stream: StreamId) -> DeviceResult<bool> {
        if self.must_not_ask()? {
            return Ok(false);
        }
        self.at_end_of(stream, |device, event| device.event_synchronize(event))
    }

    /// Whether everything queued on `stream` has run; nothing is waited for. False where it is
    /// being captured, or no event may be asked.
    pub(crate) fn is_idle(&mut self, stream: StreamId) -> DeviceResult<bool> {
        if self.must_not_ask()? {
            return Ok(false);
        }
        let mut passed = true;
        let asked = self.at_end_of(stream, |device, event| {
            passed = device.event_query(event)?;
            Ok(())
        })?;
        Ok(asked && passed)
    }

    /// Calls `then` with an event at the end of what is queued on `stream` now. False, without a
    /// call, where it is being captured.
    fn at_end_of(
        &mut self,
        stream: StreamId,
        then: impl FnOnce(&dyn Device, EventId) -> DeviceResult<()>,
    ) -> DeviceResult<bool> {
        if let Some(&event) = self.retired.get(&stream) {
            then(self.device.as_ref(), event)?;
            return Ok(true);
        }
        match self.is_capturing(stream)? {
            Status::Capturing => return Ok(false),
            Status::Gone => return Ok(true),
            Status::Usual => {}
        }
        let event = self.event()?;
        let recorded = self.device.event_record(event, stream);
        let result = recorded.and_then(|()| then(self.device.as_ref(), event));
        self.idle_events.push(event);
        result.map(|()| true)
    }

    /// Gives the events back. Errors are of no consequence any more.
    pub(crate) fn destroy_events(&mut self) {
        for event in self.idle_events.drain(..).chain(self.retired.drain().map(|(_, event)| event))
        {
            let _ = self.device.event_destroy(event);
        }
    }
}

/// What may be done with a stream.
#[derive(Clone, Copy, Debug)]
enum Status {
    Usual,
    /// It is being captured: no event of it may be recorded or asked.
    Capturing,
    /// It was destroyed, and all work of the device has been waited for.
    Gone,
}

fn end_waits(waits: &mut HashMap<Ticket, usize>, tickets: Vec<Ticket>, done: &mut Vec<Ticket>) {
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
