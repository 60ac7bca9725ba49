//! Frees that wait for streams.

mod marks;
mod order;
mod users;

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

/// A stream that uses a block: of the block's own device, or of another one of the allocator's,
/// by its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct User {
    guest: Option<u32>,
    stream: StreamId,
}

impl User {
    fn own(stream: StreamId) -> User {
        User { guest: None, stream }
    }
}

/// Another device of the allocator, streams of which use blocks of this one.
#[derive(Clone)]
pub(crate) struct Guest {
    /// Its place among the allocator's devices.
    pub(crate) index: u32,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) captures: Arc<Captures>,
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
    /// The other devices of which streams were recorded.
    guests: BTreeMap<u32, Guest>,
    /// The streams recorded for live blocks, by address, without the block's own.
    users: HashMap<Address, Vec<User>>,
    trackers: BTreeMap<User, Tracker>,
    /// For how many streams each waiting block waits.
    waits: HashMap<Ticket, usize>,
    /// Streams that are about to be destroyed, with an event at the end of their work.
    retired: HashMap<StreamId, EventId>,
    /// Events of this device that wait for nothing. Those of guests are given back at once.
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
            guests: BTreeMap::new(),
            users: HashMap::new(),
            trackers: BTreeMap::new(),
            waits: HashMap::new(),
            retired: HashMap::new(),
            idle_events: Vec::new(),
        }
    }

    /// Notes that `stream`, of another device where a guest is given, uses the live block at
    /// `address`. Noting it twice changes nothing.
    pub(crate) fn record(&mut self, address: Address, stream: StreamId, guest: Option<Guest>) {
        let user = User { guest: guest.as_ref().map(|guest| guest.index), stream };
        if let Some(guest) = guest {
            self.guests.entry(guest.index).or_insert(guest);
        }
        let users = self.users.entry(address).or_default();
        if !users.contains(&user) {
            users.push(user);
        }
    }

    fn guest(&self, user: User) -> Option<&Guest> {
        self.guests.get(&user.guest?)
    }

    /// The device that has a user's stream, and the events recorded there.
    fn device_of(&self, user: User) -> Arc<dyn Device> {
        Arc::clone(self.guest(user).map_or(&self.device, |guest| &guest.device))
    }

    /// Starts the wait of a block that was freed; false where nobody was recorded for it. The event
    /// is recorded now, since the program may destroy the stream next; it is the last one of the
    /// stream, moved on, unless that was looked at already.
    pub(crate) fn defer(&mut self, address: Address, ticket: Ticket) -> bool {
        let Some(users) = self.users.remove(&address).filter(|users| !users.is_empty()) else {
            return false;
        };
        self.waits.insert(ticket, users.len());
        for user in users {
            self.trackers.entry(user).or_default().open.push(ticket);
            // What cannot be recorded now is tried again at the next look.
            let _ = self.record_open(user);
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
        let users: Vec<User> = self.trackers.keys().copied().collect();
        for user in users {
            if self.guest_captures(user)? {
                continue;
            }
            self.end_with_retired(user, done, &over)?;
            self.record_open(user)?;
            let device = self.device_of(user);
            while let Some(tracker) = self.trackers.get_mut(&user)
                && let Some(epoch) = tracker.epochs.front_mut()
            {
                epoch.asked = true;
                if !over(device.as_ref(), epoch.event)? {
                    break;
                }
                if let Some(epoch) = tracker.epochs.pop_front() {
                    end_waits(&mut self.waits, epoch.tickets, done);
                    self.put_back(user, epoch.event);
                }
            }
            let over = |tracker: &Tracker| tracker.open.is_empty() && tracker.epochs.is_empty();
            if self.trackers.get(&user).is_some_and(over) {
                self.trackers.remove(&user);
            }
        }
        Ok(())
    }

    /// Ends the waits for a stream that was retired before the free, if the last event of that
    /// stream has passed.
    fn end_with_retired(
        &mut self,
        user: User,
        done: &mut Vec<Ticket>,
        over: impl Fn(&dyn Device, EventId) -> DeviceResult<bool>,
    ) -> DeviceResult<()> {
        let Some(event) = self.retired_event(user) else {
            return Ok(());
        };
        if let Some(tracker) = self.trackers.get_mut(&user).filter(|own| !own.open.is_empty())
            && over(self.device.as_ref(), event)?
        {
            end_waits(&mut self.waits, std::mem::take(&mut tracker.open), done);
        }
        Ok(())
    }

    /// The last event of a stream of this device that was retired.
    fn retired_event(&self, user: User) -> Option<EventId> {
        self.retired.get(&user.stream).copied().filter(|_| user.guest.is_none())
    }

    /// Covers the open frees of a stream by an event, unless it is being captured. Of a stream that
    /// was retired nothing is asked: they wait for its last event.
    fn record_open(&mut self, user: User) -> DeviceResult<()> {
        let none_open = self.trackers.get(&user).is_none_or(|tracker| tracker.open.is_empty());
        if none_open || self.retired_event(user).is_some() {
            return Ok(());
        }
        match self.status_of(user)? {
            Status::Capturing => return Ok(()),
            Status::Gone => {
                // All of the device's work has been waited for: a new event is over at once.
                let event = self.event_for(user)?;
                return self.close_epoch(user, event, Ok(()));
            }
            Status::Usual => {}
        }
        let device = self.device_of(user);
        let Some(tracker) = self.trackers.get_mut(&user) else {
            return Ok(());
        };
        if let Some(last) = tracker.epochs.back_mut().filter(|epoch| !epoch.asked) {
            device.event_record(last.event, user.stream)?;
            last.tickets.append(&mut tracker.open);
            return Ok(());
        }
        let event = self.event_for(user)?;
        let recorded = device.event_record(event, user.stream);
        self.close_epoch(user, event, recorded)
    }

    fn close_epoch(
        &mut self,
        user: User,
        event: EventId,
        recorded: DeviceResult<()>,
    ) -> DeviceResult<()> {
        match (recorded, self.trackers.get_mut(&user)) {
            (Ok(()), Some(tracker)) => {
                let tickets = std::mem::take(&mut tracker.open);
                tracker.epochs.push_back(Epoch { event, tickets, asked: false });
                Ok(())
            }
            (recorded, _) => {
                self.put_back(user, event);
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

    /// Whether a capture may be under way on the other device that a user's stream belongs to.
    fn guest_captures(&self, user: User) -> DeviceResult<bool> {
        match self.guest(user) {
            Some(guest) => guest.captures.may_be_under_way(guest.device.as_ref()),
            None => Ok(false),
        }
    }

    /// What may be done with a stream of this device now.
    fn is_capturing(&self, stream: StreamId) -> DeviceResult<Status> {
        self.status_of(User::own(stream))
    }

    /// What may be done with a stream now.
    fn status_of(&self, user: User) -> DeviceResult<Status> {
        let device = self.guest(user).map_or(&self.device, |guest| &guest.device);
        match device.capture_status(user.stream) {
            Ok(Some(_)) => Ok(Status::Capturing),
            Ok(None) => Ok(Status::Usual),
            Err(error) if error.kind == DeviceErrorKind::Misuse => {
                // The stream was destroyed. Its work may still run, and nothing is left to ask but
                // the device as a whole, which a capture does not survive.
                if self.must_not_ask()? || self.guest_captures(user)? {
                    return Ok(Status::Capturing);
                }
                device.synchronize()?;
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

    fn event_for(&mut self, user: User) -> DeviceResult<EventId> {
        match self.guest(user) {
            Some(guest) => guest.device.event_create(),
            None => self.event(),
        }
    }

    /// An event is not needed any more.
    fn put_back(&mut self, user: User, event: EventId) {
        match self.guest(user) {
            // Nothing depends on the success.
            Some(guest) => drop(guest.device.event_destroy(event)),
            None => self.idle_events.push(event),
        }
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
