//! Captures: work that a stream records instead of running it, and runs later as a graph.
//!
//! What may not be done during a capture invalidates it, as in CUDA: the call fails with
//! `NotPermitted`, and so does everything queued on the stream until `capture_end`, which fails too
//! and brings the stream out of the capture.

use std::collections::BTreeMap;

use super::queue::{Node, Task};
use super::refusal::{Outcome, Refusal, misuse, not_permitted, unsupported};
use super::streams::Work;
use crate::device::CaptureId;
use crate::units::StreamId;

/// The captures of one machine, under way and finished.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    graphs: BTreeMap<CaptureId, Graph>,
    begun: u64,
    /// How many captures are under way.
    open: usize,
}

#[derive(Debug)]
struct Graph {
    device: usize,
    nodes: Vec<Node>,
    state: GraphState,
}

#[derive(Debug)]
enum GraphState {
    Capturing,
    /// Under way, and lost for the reason given.
    Invalidated(String),
    Finished,
}

impl Graphs {
    /// Whether any stream of the machine captures.
    pub(super) fn is_capturing(&self) -> bool {
        self.open > 0
    }

    fn invalidate(&mut self, id: CaptureId, why: &str) {
        if let Some(graph) = self.graphs.get_mut(&id)
            && matches!(graph.state, GraphState::Capturing)
        {
            graph.state = GraphState::Invalidated(why.to_owned());
        }
    }

    /// The finished capture of this device.
    fn finished(&self, device: usize, id: CaptureId) -> Outcome<&Graph> {
        let number = id.0;
        match self.graphs.get(&id) {
            None => Err(misuse(format!("graph {number} does not exist, or was destroyed before"))),
            Some(graph) if graph.device != device => {
                let owner = graph.device;
                Err(misuse(format!("graph {number} belongs to device {owner}")))
            }
            Some(graph) if !matches!(graph.state, GraphState::Finished) => {
                Err(misuse(format!("capture {number} has not ended")))
            }
            Some(graph) => Ok(graph),
        }
    }

    pub(super) fn destroy(&mut self, device: usize, id: CaptureId) -> Outcome<()> {
        self.finished(device, id)?;
        self.graphs.remove(&id);
        Ok(())
    }

    /// The work of a finished capture.
    pub(super) fn nodes(&self, device: usize, id: CaptureId) -> Outcome<&[Node]> {
        Ok(&self.finished(device, id)?.nodes)
    }
}

impl Work {
    pub(super) fn capture_begin(&mut self, device: usize, id: StreamId) -> Outcome<CaptureId> {
        let slot = self.stream(device, id)?;
        if id == StreamId::DEFAULT {
            return Err(unsupported("the default stream cannot be captured"));
        }
        if self.streams[slot].capture.is_some() {
            return Err(not_permitted(format!("{id} is capturing already")));
        }
        self.graphs.begun += 1;
        let capture = CaptureId(self.graphs.begun);
        let graph = Graph { device, nodes: Vec::new(), state: GraphState::Capturing };
        self.graphs.graphs.insert(capture, graph);
        self.graphs.open += 1;
        self.streams[slot].capture = Some(capture);
        Ok(capture)
    }

    pub(super) fn capture_end(&mut self, device: usize, id: StreamId) -> Outcome<CaptureId> {
        let slot = self.stream(device, id)?;
        let Some(capture) = self.streams[slot].capture.take() else {
            return Err(not_permitted(format!("{id} is not capturing")));
        };
        self.graphs.open -= 1;
        let Some(graph) = self.graphs.graphs.get_mut(&capture) else {
            return Err(misuse(format!("capture {} does not exist", capture.0)));
        };
        if let GraphState::Invalidated(why) = &graph.state {
            let refusal = not_permitted(format!("the capture of {id} was invalidated: {why}"));
            self.graphs.graphs.remove(&capture);
            return Err(refusal);
        }
        graph.state = GraphState::Finished;
        Ok(capture)
    }

    /// Queues work on memory, or records it where the stream captures.
    pub(super) fn submit_or_record(&mut self, slot: usize, node: Node) -> Outcome<()> {
        let Some(capture) = self.streams[slot].capture else {
            self.submit(slot, Task::Node(node));
            return Ok(());
        };
        let id = StreamId(self.streams[slot].id);
        match self.graphs.graphs.get_mut(&capture) {
            Some(Graph { state: GraphState::Capturing, nodes, .. }) => {
                nodes.push(node);
                Ok(())
            }
            Some(Graph { state: GraphState::Invalidated(why), .. }) => {
                Err(not_permitted(format!("the capture of {id} was invalidated: {why}")))
            }
            _ => Err(misuse(format!("capture {} does not exist", capture.0))),
        }
    }

    /// Fails where the stream captures, and invalidates the capture.
    pub(super) fn forbid_in_capture(&mut self, slot: usize, what: &str) -> Outcome<()> {
        let Some(capture) = self.streams[slot].capture else {
            return Ok(());
        };
        let id = StreamId(self.streams[slot].id);
        let why = format!("{what} is not allowed while {id} captures");
        self.graphs.invalidate(capture, &why);
        Err(not_permitted(why))
    }

    /// Fails where any stream captures that is `among`, and invalidates all these captures.
    pub(super) fn forbid_in_captures(
        &mut self,
        what: &str,
        among: impl Fn(usize) -> bool,
    ) -> Outcome<()> {
        if !self.graphs.is_capturing() {
            return Ok(());
        }
        let mut refusal: Option<Refusal> = None;
        for slot in 0..self.streams.len() {
            if among(self.streams[slot].device)
                && let Err(error) = self.forbid_in_capture(slot, what)
            {
                refusal = refusal.or(Some(error));
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}
