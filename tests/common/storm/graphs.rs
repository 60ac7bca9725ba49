//! Captures, and the graphs that come of them.

use plugalloc::device::{CaptureId, Device};
use plugalloc::units::{Address, Bytes};

use super::work::{Cell, ends};
use super::{Block, Storm};
use crate::common::GPU;

/// A capture that is under way.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) number: u64,
    /// The pool that its allocations go to, if any.
    pub(super) pool: Option<usize>,
    /// Whether it was marked.
    marked: bool,
    spans: Vec<(Address, Bytes)>,
    cells: Vec<Cell>,
    /// Whether its memory was given to others meanwhile, by going back to a checkpoint.
    pub(super) spoilt: bool,
}

/// A captured graph. It may be launched until something else is allocated in its memory.
#[derive(Debug)]
pub(super) struct Graph {
    id: CaptureId,
    spans: Vec<(Address, Bytes)>,
    pub(super) cells: Vec<Cell>,
    /// Whether it was since its cells were checked.
    pub(super) launched: bool,
}

fn overlap(spans: &[(Address, Bytes)], at: Address, bytes: Bytes) -> bool {
    spans.iter().any(|&(start, length)| start < at + bytes && at < start + length)
}

impl Storm {
    /// Begins a capture on a stream, or ends the one that is under way there.
    pub(super) fn capture(&mut self) {
        let lane = self.any_lane();
        if self.is_capturing(lane) {
            return self.end_capture(lane);
        }
        let name = self.lanes[lane].name;
        // What runs when a graph does is after all that the program has done in its pools.
        self.join_all(name);
        let mut pool = self.pool_for(name);
        let mut marked = false;
        if pool.is_none() && self.random.below(4) > 0 {
            let at = self.random.below(self.pools.len() as u64) as usize;
            if self.pools[at].open.is_none() {
                self.open(at, vec![name]);
                pool = Some(at);
            }
        } else if self.global_capture || self.random.below(2) == 0 {
            // The pool has been open for long, or there is none.
            marked = true;
        }
        // Without a mark the allocator would have to ask streams that it has never heard of.
        marked |= !self.lanes[lane].known || pool.is_none() && self.global_capture;
        if marked {
            self.rig.allocator.mark_capture_begin(GPU).unwrap();
        }
        self.rig.device().capture_begin(name).unwrap();
        let (number, spans, cells) = (self.number(), Vec::new(), Vec::new());
        let capture = Capture { number, pool, marked, spans, cells, spoilt: false };
        self.lanes[lane].capture = Some(capture);
    }

    pub(super) fn end_captures(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.is_capturing(lane) {
                self.end_capture(lane);
            }
        }
    }

    fn end_capture(&mut self, lane: usize) {
        let Some(number) = self.lanes[lane].capture.as_ref().map(|capture| capture.number) else {
            return;
        };
        // What was captured reads what is left at its end.
        let left = self.live.iter().filter(|(_, block)| block.captured == Some(number));
        let left: Vec<_> = left.map(|(&at, block)| (at, block.clone())).collect();
        for (at, block) in &left {
            self.read_captured(*at, block, lane);
        }
        let name = self.lanes[lane].name;
        let device = self.rig.device();
        let id = device.capture_end(name).unwrap_or_else(|error| panic!("{error}"));
        let Some(capture) = self.lanes[lane].capture.take() else { return };
        if capture.marked {
            self.rig.allocator.mark_capture_end(GPU).unwrap();
        }
        self.seen.graphs += 1;
        let mut graph = Graph { id, spans: capture.spans, cells: capture.cells, launched: false };
        if capture.spoilt {
            device.graph_destroy(id).unwrap();
            return self.journal.keep(graph);
        }
        if let Some(pool) = capture.pool {
            return self.pools[pool].graphs.push(graph);
        }
        // Without a pool nobody keeps its memory for later: it runs here and now.
        (0..self.pools.len()).for_each(|at| self.fork(at, name));
        device.graph_launch(id, name).unwrap();
        graph.launched = true;
        self.seen.launches += 1;
        device.graph_destroy(id).unwrap();
        self.journal.keep(graph);
        for (at, _) in left {
            if let Some(block) = self.live.get_mut(&at) {
                block.captured = None;
            }
        }
    }

    /// Writes a block that was allocated in a capture.
    pub(super) fn write_captured(&mut self, at: Address, lane: usize) {
        self.write(at);
        if let Some((block, capture)) =
            self.live.get_mut(&at).zip(self.lanes[lane].capture.as_mut())
        {
            block.captured = Some(capture.number);
            capture.spans.push((at, block.served));
        }
    }

    /// Reads a block in the capture in which it was allocated.
    pub(super) fn read_captured(&mut self, at: Address, block: &Block, lane: usize) {
        let (stream, step) = (self.lanes[lane].name, self.steps);
        let Some(capture) = self.lanes[lane].capture.as_mut() else { return };
        let Some(value) = block.value.filter(|_| block.captured == Some(capture.number)) else {
            return;
        };
        for (at, bytes) in ends(at, block.requested) {
            let mut cell = Cell::new((at, bytes), value, stream, step);
            let to = cell.address();
            // SAFETY: the cell is as long as that, and is kept until its stream has run the copy.
            unsafe { self.rig.device().copy_async(to, at, bytes, stream) }.unwrap();
            capture.cells.push(cell);
        }
    }

    /// Runs a graph once more, on any stream.
    pub(super) fn launch(&mut self) {
        let (lane, at) = (self.any_lane(), self.random.below(self.pools.len() as u64) as usize);
        let count = self.pools[at].graphs.len();
        if self.is_capturing(lane) || count == 0 {
            return;
        }
        let name = self.lanes[lane].name;
        self.fork(at, name);
        let graph = self.random.below(count as u64) as usize;
        let graph = &mut self.pools[at].graphs[graph];
        graph.launched = true;
        let launched = self.rig.device().graph_launch(graph.id, name);
        launched.unwrap_or_else(|error| panic!("memory of a graph is gone: {error}"));
        self.seen.launches += 1;
        self.join(at, name);
    }

    /// Something else was allocated in memory of graphs: they are launched no more.
    pub(super) fn end_graphs_over(&mut self, at: Address, bytes: Bytes) {
        for place in 0..self.pools.len() {
            let graphs = std::mem::take(&mut self.pools[place].graphs);
            let (over, left): (Vec<_>, Vec<_>) =
                graphs.into_iter().partition(|graph| overlap(&graph.spans, at, bytes));
            self.pools[place].graphs = left;
            over.into_iter().for_each(|graph| self.end_graph(graph));
        }
    }

    pub(super) fn end_graph(&mut self, graph: Graph) {
        self.rig.device().graph_destroy(graph.id).unwrap();
        self.journal.keep(graph);
    }

    /// The same of captures that are under way, save the one on this lane.
    pub(super) fn spoil_captures_over(&mut self, at: Address, bytes: Bytes) {
        for capture in self.lanes.iter_mut().filter_map(|lane| lane.capture.as_mut()) {
            capture.spoilt |= overlap(&capture.spans, at, bytes);
        }
    }
}
