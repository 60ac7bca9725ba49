//! Streams that come and go under names that come back.

use std::collections::{HashSet, VecDeque};

use plugalloc::device::Device;
use plugalloc::device::sim::SimDevice;
use plugalloc::units::StreamId;

use super::Storm;
use super::graphs::Capture;
use crate::common::GPU;

/// From one stream that the simulated device makes to the next.
const STEP: u64 = 0x100;
/// A stream of the program's own, which waits for all streams that have ended.
pub(super) const GRAVE: StreamId = StreamId(0xdead);

/// One of the program's streams.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: StreamId,
    /// Tells it from others that had this name.
    pub(super) life: u64,
    /// Whether it has had memory: only then does the allocator know of it.
    pub(super) known: bool,
    pub(super) capture: Option<Capture>,
}

/// Gives names out twice: a driver that destroys a stream may give its handle to the next one. The
/// simulated device does so for a name that was used, and destroyed, before it makes the stream of
/// that name itself.
#[derive(Debug, Default)]
pub(super) struct Names {
    base: u64,
    given: u64,
    /// Names that the device has not given itself yet, in the order in which it will.
    waiting: VecDeque<StreamId>,
    destroyed: HashSet<StreamId>,
    /// Names that two streams have had.
    twice: HashSet<StreamId>,
}

impl Names {
    pub(super) fn new(device: &SimDevice) -> Names {
        let base = device.stream_create().unwrap().0;
        Names { base, ..Names::default() }
    }

    fn name(&mut self, device: &SimDevice) -> StreamId {
        if let Some(&first) = self.waiting.front()
            && self.destroyed.remove(&first)
        {
            self.waiting.pop_front();
            self.twice.insert(first);
            assert_eq!(device.stream_create().unwrap(), first);
            return first;
        }
        self.given += 1;
        let name = StreamId(self.base + self.given * STEP);
        self.waiting.push_back(name);
        name
    }

    pub(super) fn lane(&mut self, device: &SimDevice, life: u64) -> Lane {
        Lane { name: self.name(device), life, known: false, capture: None }
    }
}

impl Storm {
    /// The lane of a stream that still lives.
    pub(super) fn lane_of(&self, life: u64) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.life == life)
    }

    pub(super) fn is_capturing(&self, lane: usize) -> bool {
        self.lanes[lane].capture.is_some()
    }

    /// Makes later work of one stream wait for what another has now.
    pub(super) fn order(&self, earlier: StreamId, later: StreamId) {
        let device = self.rig.device();
        device.event_record(self.event, earlier).unwrap();
        device.stream_wait_event(later, self.event).unwrap();
    }

    pub(super) fn hold(&mut self) {
        let lane = self.any_lane();
        let name = self.lanes[lane].name;
        if !self.held.contains(&name) {
            self.rig.device().hold(name).unwrap();
            self.held.push(name);
        }
    }

    fn resume(&mut self, name: StreamId) {
        if self.rig.device().resume(name).is_err() {
            self.own_calls += 1;
        }
    }

    pub(super) fn resume_one(&mut self) {
        let at = self.random.below(self.held.len().max(1) as u64) as usize;
        if let Some(&name) = self.held.get(at) {
            self.resume(name);
            // Else it may have been the first stream of that name, and the second is held still.
            if !self.names.twice.contains(&name) {
                self.held.retain(|&other| other != name);
            }
        }
    }

    /// Lets all work run, and looks at what it has read.
    pub(super) fn settle(&mut self) {
        for _ in 0..10 {
            self.held.clone().into_iter().for_each(|name| self.resume(name));
        }
        self.held.clear();
        if !self.lanes.iter().any(|lane| lane.capture.is_some()) {
            self.rig.device().synchronize().unwrap();
        }
        let graphs = self.pools.iter_mut().flat_map(|pool| &mut pool.graphs);
        self.seen.read += self.journal.check(graphs);
        self.check_imports();
    }

    /// A stream ends, and another one comes.
    pub(super) fn retire(&mut self) {
        let lane = self.any_lane();
        let name = self.lanes[lane].name;
        if self.is_capturing(lane) {
            return;
        }
        self.order(name, GRAVE);
        self.join_all(name);
        self.rig.allocator.retire_stream(GPU, name).unwrap();
        self.seen.retired += 1;
        let life = self.number();
        // Of two streams that ended under one name, the device could not be told which goes on.
        let unclear = self.names.twice.contains(&name) && self.held.contains(&name);
        if unclear || self.random.below(4) == 0 {
            // The handle comes back at once, for a stream that runs after the old one.
            (self.lanes[lane].life, self.lanes[lane].known) = (life, false);
            return;
        }
        self.rig.device().stream_destroy(name).unwrap();
        self.names.destroyed.insert(name);
        self.lanes[lane] = self.names.lane(self.rig.device().as_ref(), life);
    }
}
