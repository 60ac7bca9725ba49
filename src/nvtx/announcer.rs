//! One device's memory as a tool sees it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Tool;
use super::calls::{CounterId, HeapId};
use crate::device::Device;
use crate::units::{Address, Bytes};

/// Tells a tool of the memory of one device.
pub(crate) struct Announcer {
    tool: &'static Tool,
    device: Arc<dyn Device>,
    /// What the heaps are called.
    name: CString,
    in_use: Option<CounterId>,
    reserved: Option<CounterId>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Announcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announcer").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// Segments that a tool was told of, by where they start.
    heaps: BTreeMap<Address, Heap>,
    /// Live allocations, by where they start.
    regions: HashMap<Address, Region>,
    in_use: i64,
}

#[derive(Debug)]
struct Heap {
    bytes: Bytes,
    /// `None` where the tool did not take it.
    id: Option<HeapId>,
}

#[derive(Debug)]
struct Region {
    bytes: Bytes,
    /// Where its pieces start, of which the tool was told.
    pieces: Vec<Address>,
}

impl Announcer {
    /// For one device, if there is a tool that wants to be told.
    pub(crate) fn new(device: &Arc<dyn Device>) -> Option<Announcer> {
        let tool = super::tool().as_ref().ok()?.as_ref()?;
        let functions = &tool.functions;
        if !functions.has_memory() && !functions.has_counters() {
            return None;
        }
        let id = device.id();
        let counter = |what: &str, description: &CStr| {
            let name = CString::new(format!("{id}: {what}")).ok()?;
            functions.register_counter(tool.domain, &name, description)
        };
        Some(Announcer {
            tool,
            device: Arc::clone(device),
            name: CString::new(format!("plugalloc, {id}")).ok()?,
            in_use: counter("bytes in use", c"requested by live allocations"),
            reserved: counter("bytes reserved", c"taken from the device: in use and cached"),
            state: Mutex::new(State::default()),
        })
    }

    /// Whether the tool wants to know of memory, not of numbers alone.
    pub(crate) fn takes_memory(&self) -> bool {
        self.tool.functions.has_memory()
    }

    /// Tells with the device's context current, in which tools look for the memory. Of a device
    /// that is lost there is nothing to tell.
    fn tell(&self, mut body: impl FnMut()) {
        let _ = self.device.in_context(&mut body);
    }

    /// Memory is accessible here from now on, in which blocks will lie.
    pub(crate) fn mapped(&self, start: Address, bytes: Bytes) {
        let Tool { functions, domain } = self.tool;
        let mut state = self.state.lock();
        let mut id = None;
        self.tell(|| id = functions.register_heap(*domain, (start, bytes), &self.name));
        state.heaps.insert(start, Heap { bytes, id });
    }

    /// The memory that starts here is about to go. No allocation lies in it any more.
    pub(crate) fn unmapping(&self, start: Address) {
        let Tool { functions, domain } = self.tool;
        let mut state = self.state.lock();
        if let Some(Heap { id: Some(id), .. }) = state.heaps.remove(&start) {
            self.tell(|| functions.unregister_heap(*domain, id));
        }
    }

    /// An allocation begins.
    pub(crate) fn allocated(&self, start: Address, bytes: Bytes) {
        let Tool { functions, domain } = self.tool;
        let mut state = self.state.lock();
        let mut pieces = Vec::new();
        for (piece, heap) in state.pieces(start, bytes) {
            self.tell(|| functions.register_region(*domain, heap, piece));
            pieces.push(piece.0);
        }
        state.regions.insert(start, Region { bytes, pieces });
        state.in_use += bytes as i64;
        self.sample(self.in_use, state.in_use);
    }

    /// An allocation ends.
    pub(crate) fn freed(&self, start: Address) {
        let Tool { functions, domain } = self.tool;
        let mut state = self.state.lock();
        let Some(region) = state.regions.remove(&start) else {
            return;
        };
        if !region.pieces.is_empty() {
            self.tell(|| functions.unregister_regions(*domain, &region.pieces));
        }
        state.in_use -= region.bytes as i64;
        self.sample(self.in_use, state.in_use);
    }

    /// So much is taken from the device now.
    pub(crate) fn reserved(&self, bytes: i64) {
        self.sample(self.reserved, bytes);
    }

    fn sample(&self, counter: Option<CounterId>, value: i64) {
        if let Some(counter) = counter {
            self.tool.functions.sample(self.tool.domain, counter, value);
        }
    }
}

impl State {
    /// The pieces of a span, each inside one heap.
    fn pieces(&self, start: Address, bytes: Bytes) -> Vec<((Address, Bytes), HeapId)> {
        let end = start + bytes;
        let first = self.heaps.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let inside = self.heaps.range(first..end).filter_map(|(&heap_start, heap)| {
            let from = start.max(heap_start);
            let to = end.min(heap_start + heap.bytes);
            (from < to).then_some(((from, to - from), heap.id?))
        });
        inside.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_falls_into_pieces_at_the_borders_of_heaps() {
        let mut state = State::default();
        for (start, id) in [(100, Some(1)), (200, Some(2)), (300, None), (500, Some(3))] {
            let id = id.map(HeapId);
            state.heaps.insert(start, Heap { bytes: 100, id });
        }
        let pieces = |start, bytes| {
            let pieces = state.pieces(start, bytes);
            pieces.into_iter().map(|(piece, heap)| (piece, heap.0)).collect::<Vec<_>>()
        };
        assert_eq!(pieces(120, 30), [((120, 30), 1)]);
        assert_eq!(pieces(150, 100), [((150, 50), 1), ((200, 50), 2)]);
        assert_eq!(pieces(250, 300), [((250, 50), 2), ((500, 50), 3)]);
        assert_eq!(pieces(400, 100), []);
    }
}
