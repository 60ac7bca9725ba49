//! Streams: queues of work, run in order by whichever thread finds that something can run.
//!
//! There are no threads behind a device. Every call, before it returns, runs whatever has become
//! runnable; so without a held stream all work is done when the call that queued it returns, and a
//! program of one thread runs the same way every time.

use std::collections::{BTreeMap, BTreeSet};

use super::events::Events;
use super::graphs::Graphs;
use super::queue::{Obstacle, Point, Step, Stream, Task};
use super::refusal::{Outcome, misuse};
use crate::device::EventId;
use crate::units::{Address, Bytes, StreamId};

/// Created streams are numbered from here, so that the numbers look like the handles of a driver
/// and do not meet those that callers invent.
const FIRST_CREATED: u64 = 0x5100_0000_0000;
/// From one created stream to the next.
const STEP: u64 = 0x100;

/// How many streams that were looked up are kept at hand.
const RECENT: usize = 16;

#[derive(Clone, Copy, Debug)]
enum Name {
    Live(usize),
    Destroyed,
}

/// The streams, events and graphs of one machine.
pub(super) struct Work {
    adopt: bool,
    pub(super) streams: Vec<Stream>,
    /// By device.
    names: Vec<BTreeMap<StreamId, Name>>,
    /// Some of the streams that were looked up, each at the place that its id gives: the device,
    /// the id, and its slot. None of a stream that was destroyed.
    recent: [Option<(usize, StreamId, usize)>; RECENT],
    /// Slots of streams with queued work.
    busy: BTreeSet<usize>,
    /// Slots of streams that were destroyed and have run dry.
    vacant: Vec<usize>,
    created: u64,
    /// Calls that named a stream which is not there, by device.
    pub(super) calls_of_no_stream: Vec<u64>,
    pub(super) events: Events,
    pub(super) graphs: Graphs,
}

impl Work {
    pub(super) fn new(devices: usize, adopt: bool) -> Work {
        let mut work = Work {
            adopt,
            streams: Vec::new(),
            names: (0..devices).map(|_| BTreeMap::new()).collect(),
            recent: [None; RECENT],
            busy: BTreeSet::new(),
            vacant: Vec::new(),
            created: 0,
            calls_of_no_stream: vec![0; devices],
            events: Events::default(),
            graphs: Graphs::default(),
        };
        for device in 0..devices {
            work.add_stream(device, StreamId::DEFAULT);
        }
        work
    }

    fn add_stream(&mut self, device: usize, id: StreamId) -> usize {
        let slot = match self.vacant.pop() {
            Some(slot) => slot,
            None => {
                self.streams.push(Stream::default());
                self.streams.len() - 1
            }
        };
        let stream = &mut self.streams[slot];
        (stream.id, stream.device, stream.destroyed) = (id.0, device, false);
        self.names[device].insert(id, Name::Live(slot));
        slot
    }

    pub(super) fn create_stream(&mut self, device: usize) -> StreamId {
        let id = StreamId(FIRST_CREATED + self.created * STEP);
        self.created += 1;
        self.add_stream(device, id);
        id
    }

    pub(super) fn destroy_stream(&mut self, device: usize, id: StreamId) -> Outcome<()> {
        let slot = self.stream(device, id)?;
        if id == StreamId::DEFAULT {
            return Err(misuse("the default stream cannot be destroyed"));
        }
        if self.streams[slot].capture.is_some() {
            return Err(misuse(format!("{id} is capturing and cannot be destroyed")));
        }
        if self.is_created(id) {
            // The numbers of created streams are never given twice: no trace is needed.
            self.names[device].remove(&id);
        } else {
            self.names[device].insert(id, Name::Destroyed);
        }
        self.recent = [None; RECENT];
        self.streams[slot].destroyed = true;
        self.retire(slot);
        Ok(())
    }

    /// The slot of a stream. An id that was never seen is taken for a new stream where that is
    /// allowed.
    pub(super) fn stream(&mut self, device: usize, id: StreamId) -> Outcome<usize> {
        let place = (id.0 ^ (id.0 / STEP)) as usize % RECENT;
        if let Some((of, same, slot)) = self.recent[place]
            && (of, same) == (device, id)
        {
            return Ok(slot);
        }
        let slot = self.find_stream(device, id)?;
        self.recent[place] = Some((device, id, slot));
        Ok(slot)
    }

    fn find_stream(&mut self, device: usize, id: StreamId) -> Outcome<usize> {
        match self.names[device].get(&id) {
            Some(Name::Live(slot)) => Ok(*slot),
            Some(Name::Destroyed) => {
                self.calls_of_no_stream[device] += 1;
                Err(misuse(format!("{id} was destroyed before")))
            }
            None => {
                if self.is_created(id) || !self.adopt {
                    self.calls_of_no_stream[device] += 1;
                    return Err(misuse(format!(
                        "{id} is no stream of device {device}, or was destroyed before"
                    )));
                }
                Ok(self.add_stream(device, id))
            }
        }
    }

    /// False where the id is that of a stream which another device has created.
    pub(super) fn may_have(&self, device: usize, id: StreamId) -> bool {
        let has = |names: &BTreeMap<StreamId, Name>| matches!(names.get(&id), Some(Name::Live(_)));
        has(&self.names[device]) || !self.is_created(id) || !self.names.iter().any(has)
    }

    /// Whether the id is one that `create_stream` has given, on whichever device.
    fn is_created(&self, id: StreamId) -> bool {
        (FIRST_CREATED..FIRST_CREATED + self.created * STEP).contains(&id.0)
    }

    /// Queues an entry.
    pub(super) fn submit(&mut self, slot: usize, task: Task) {
        let stream = &mut self.streams[slot];
        stream.submitted += 1;
        stream.queue.push_back(task);
        self.busy.insert(slot);
    }

    /// The end of what is queued on a stream now.
    pub(super) fn end_of(&self, slot: usize) -> Point {
        Point { slot, position: self.streams[slot].submitted }
    }

    pub(super) fn is_reached(&self, point: Point) -> bool {
        self.streams[point.slot].completed >= point.position
    }

    /// Moves an event to the end of a stream. On a held stream that end lies behind the hold, even
    /// where nothing is queued.
    pub(super) fn record(&mut self, device: usize, id: EventId, slot: usize) -> Outcome<()> {
        let owner = self.events.get(id)?.device;
        if owner != device {
            return Err(misuse(format!(
                "an event of device {owner} recorded on a stream of device {device}"
            )));
        }
        if self.streams[slot].held {
            self.submit(slot, Task::Marker);
        }
        let point = self.end_of(slot);
        self.events.get(id)?.point = Some(point);
        Ok(())
    }

    /// True where everything before the event's last record has run.
    pub(super) fn is_completed(&mut self, id: EventId) -> Outcome<bool> {
        let point = self.events.get(id)?.point;
        Ok(point.is_none_or(|point| self.is_reached(point)))
    }

    /// Lets later work of a stream wait for the event's last record.
    pub(super) fn wait_for(&mut self, slot: usize, id: EventId) -> Outcome<()> {
        let point = self.events.get(id)?.point;
        if let Some(point) = point.filter(|&point| !self.is_reached(point)) {
            self.submit(slot, Task::Wait(point));
        }
        Ok(())
    }

    /// Stops a stream, or lets it go on, even one that was destroyed with work left.
    pub(super) fn set_held(&mut self, device: usize, id: StreamId, held: bool) -> Outcome<()> {
        let dying =
            |stream: &Stream| stream.destroyed && stream.device == device && stream.id == id.0;
        if let Some(slot) = self.busy.iter().find(|&&slot| dying(&self.streams[slot])) {
            self.streams[*slot].held = held;
            return Ok(());
        }
        let slot = self.stream(device, id)?;
        self.streams[slot].held = held;
        Ok(())
    }

    /// Fails where queued work still reads or writes a byte of the span.
    pub(super) fn check_unused(&self, at: Address, bytes: Bytes) -> Outcome<()> {
        for &slot in &self.busy {
            let stream = &self.streams[slot];
            let nodes = stream.queue.iter().filter_map(|task| match task {
                Task::Node(node) => Some(node),
                _ => None,
            });
            let overlaps = |(start, length): (Address, Bytes)| {
                start < at.saturating_add(bytes) && at < start.saturating_add(length)
            };
            if let Some(node) =
                nodes.into_iter().find(|node| node.spans().into_iter().any(overlaps))
            {
                let (id, device) = (StreamId(stream.id), stream.device);
                return Err(misuse(format!(
                    "{bytes} bytes at {at:#x} are still used by work queued on {id} of device \
                     {device}: {node:x?}"
                )));
            }
        }
        Ok(())
    }

    /// Whether anything is queued anywhere.
    pub(super) fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// The streams with queued work, in a fixed order.
    pub(super) fn busy_after(&self, slot: Option<usize>) -> Option<usize> {
        match slot {
            None => self.busy.first().copied(),
            Some(slot) => self.busy.range(slot + 1..).next().copied(),
        }
    }

    /// A stream of the device with queued work.
    pub(super) fn busy_stream_of(&self, device: usize) -> Option<usize> {
        self.busy.iter().copied().find(|&slot| self.streams[slot].device == device)
    }

    /// The stream that the point waits for, until it is reached.
    pub(super) fn stream_before(&self, point: Point) -> Option<usize> {
        (!self.is_reached(point)).then_some(point.slot)
    }

    /// Runs the first entry of a stream if it can run.
    pub(super) fn step(&mut self, slot: usize) -> Step {
        if self.obstacle_here(slot) != Obstacle::None {
            return Step::Blocked;
        }
        match self.streams[slot].queue.front() {
            None => return Step::Blocked,
            Some(Task::Wait(point)) if !self.is_reached(*point) => return Step::Blocked,
            Some(_) => {}
        }
        let stream = &mut self.streams[slot];
        match stream.queue.pop_front() {
            Some(Task::Host(function)) => {
                stream.running = true;
                return Step::Host(function);
            }
            Some(Task::Node(node)) => node.run(),
            Some(Task::Wait(_) | Task::Marker) | None => {}
        }
        self.complete(slot);
        Step::Advanced
    }

    /// The function of the host that a step handed out has returned.
    pub(super) fn finish_host(&mut self, slot: usize) {
        self.streams[slot].running = false;
        self.complete(slot);
    }

    fn complete(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        stream.completed += 1;
        if stream.completed == stream.submitted {
            debug_assert!(stream.queue.is_empty(), "stream {slot} counts wrong");
            self.busy.remove(&slot);
            self.retire(slot);
        }
    }

    /// Lets the slot of a destroyed stream serve another once it has run dry.
    fn retire(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        if stream.destroyed && stream.completed == stream.submitted {
            stream.held = false;
            self.vacant.push(slot);
        }
    }

    fn obstacle_here(&self, slot: usize) -> Obstacle {
        let stream = &self.streams[slot];
        if stream.running {
            Obstacle::Running
        } else if stream.held {
            Obstacle::Held(slot)
        } else {
            Obstacle::None
        }
    }

    /// What keeps a stream's first entry from running, through all waits. It ends, because a wait
    /// only ever points to work that was queued before it.
    pub(super) fn obstacle(&self, slot: usize) -> Obstacle {
        let mut slot = slot;
        loop {
            let here = self.obstacle_here(slot);
            if here != Obstacle::None {
                return here;
            }
            match self.streams[slot].queue.front() {
                Some(Task::Wait(point)) if !self.is_reached(*point) => slot = point.slot,
                _ => return Obstacle::None,
            }
        }
    }
}
