//! What streams are made of: the entries of their queues, and the points between them.

use std::collections::VecDeque;

use super::os;
use crate::device::{CaptureId, HostFunction};
use crate::units::{Address, Bytes};

/// Work on memory. A capture records it; everything else in a queue cannot be captured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    Copy { to: Address, from: Address, bytes: Bytes },
    Fill { at: Address, value: u8, bytes: Bytes },
}

impl Node {
    /// The spans that it reads and writes.
    pub(super) fn spans(&self) -> [(Address, Bytes); 2] {
        match *self {
            Node::Copy { to, from, bytes } => [(to, bytes), (from, bytes)],
            Node::Fill { at, bytes, .. } => [(at, bytes), (at, 0)],
        }
    }

    pub(super) fn run(&self) {
        match *self {
            Node::Copy { to, from, bytes } => os::copy(to, from, bytes),
            Node::Fill { at, value, bytes } => os::fill(at, value, bytes),
        }
    }
}

/// One entry of a queue.
pub(super) enum Task {
    Node(Node),
    Host(HostFunction),
    /// Goes on once the point is reached.
    Wait(Point),
    /// Does nothing: the place of an event on a held stream.
    Marker,
}

/// A place in the work of a stream: reached once the stream has completed that many entries in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) slot: usize,
    pub(super) position: u64,
}

/// One stream.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) id: u64,
    pub(super) device: usize,
    pub(super) queue: VecDeque<Task>,
    /// Entries queued and entries run, ever. A slot keeps counting for the next stream that lives
    /// in it, so a point that was reached stays reached.
    pub(super) submitted: u64,
    pub(super) completed: u64,
    pub(super) held: bool,
    /// A thread is running the first entry, a function of the host, with the machine unlocked.
    pub(super) running: bool,
    pub(super) destroyed: bool,
    pub(super) capture: Option<CaptureId>,
}

/// What a stream's first entry waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Nothing: it can run.
    None,
    /// The stream with this slot is held.
    Held(usize),
    /// A thread that runs a function of the host.
    Running,
}

/// What to do next for a stream.
pub(super) enum Step {
    /// Something ran, or a wait was over.
    Advanced,
    /// The function must be run with the machine unlocked, then `Work::finish_host` called.
    Host(HostFunction),
    /// Nothing can run.
    Blocked,
}
