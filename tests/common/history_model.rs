//! Memory as events tell of it.

use std::collections::BTreeMap;

use plugalloc::observe::{Action, BlockState, Snapshot, TraceEntry};
use plugalloc::{Address, Bytes, StreamId};

/// What was allocated: its bytes, its stream, and whether it was freed and waits.
type Allocation = (Bytes, StreamId, bool);

#[derive(Default)]
pub(crate) struct Model {
    /// How many events were followed.
    followed: usize,
    live: BTreeMap<Address, Allocation>,
    /// Memory: its end and its stream, by its start. Pieces that lie together are apart.
    memory: BTreeMap<Address, (Address, StreamId)>,
}

impl Model {
    /// Follows the events that are new in a history of which nothing was lost.
    #[track_caller]
    pub(crate) fn follow(&mut self, trace: &[TraceEntry]) {
        for entry in &trace[self.followed..] {
            self.step(entry);
        }
        self.followed = trace.len();
    }

    #[track_caller]
    fn step(&mut self, entry: &TraceEntry) {
        let (at, bytes, stream) = (entry.address, entry.bytes, entry.stream);
        match entry.action {
            Action::Alloc => {
                assert!(self.covers(at, bytes, stream), "no memory under {entry:?}");
                let above = self.live.range(at..at + bytes).next();
                assert_eq!(above, None, "in the way of {entry:?}");
                if let Some((start, (length, ..))) = self.live.range(..at).next_back() {
                    assert!(start + length <= at, "{start:#x} in the way of {entry:?}");
                }
                self.live.insert(at, (bytes, stream, false));
            }
            Action::FreeRequested => {
                let found = self.live.insert(at, (bytes, stream, true));
                assert_eq!(found, Some((bytes, stream, false)), "{entry:?}");
            }
            Action::FreeCompleted => {
                assert_eq!(self.live.remove(&at), Some((bytes, stream, true)), "{entry:?}");
            }
            Action::SegmentMap | Action::SegmentAlloc => {
                let touched = self.memory.range(..at + bytes).find(|(_, piece)| piece.0 > at);
                assert_eq!(touched, None, "memory already: {entry:?}");
                self.memory.insert(at, (at + bytes, stream));
            }
            Action::SegmentUnmap | Action::SegmentFree => {
                assert!(self.covers(at, bytes, stream), "no memory there: {entry:?}");
                self.forget(at, at + bytes);
                assert_eq!(self.live.range(at..at + bytes).next(), None, "used: {entry:?}");
            }
            Action::Snapshot | Action::OutOfMemory | Action::UserDefined => {}
        }
    }

    /// Takes a span out of the memory, which may be a part of some pieces.
    fn forget(&mut self, from: Address, to: Address) {
        let touched: Vec<_> = self
            .memory
            .range(..to)
            .filter(|(_, piece)| piece.0 > from)
            .map(|(at, _)| *at)
            .collect();
        for start in touched {
            let Some((end, stream)) = self.memory.remove(&start) else {
                continue;
            };
            if start < from {
                self.memory.insert(start, (from, stream));
            }
            if end > to {
                self.memory.insert(to, (end, stream));
            }
        }
    }

    /// Whether there is memory of this stream under a span.
    fn covers(&self, at: Address, bytes: Bytes, stream: StreamId) -> bool {
        let mut next = at;
        while next < at + bytes {
            match self.memory.range(..=next).next_back() {
                Some((_, &(end, of))) if end > next && of == stream => next = end,
                _ => return false,
            }
        }
        true
    }

    /// Fails unless the snapshot shows just this.
    #[track_caller]
    pub(crate) fn assert_shows(&self, snapshot: &Snapshot) {
        self.assert_within(snapshot);
        let blocks = snapshot.segments.iter().flat_map(|segment| &segment.blocks);
        let active = blocks.filter(|block| block.state != BlockState::Inactive).count();
        assert_eq!(active, self.live.len(), "as many blocks in use as events tell");
        let mut used = 0;
        for segment in &snapshot.segments {
            let end = segment.address + segment.total;
            let pieces = self.memory.range(segment.address..end);
            used += pieces.map(|(start, (end, _))| end - start).sum::<Bytes>();
        }
        let told: Bytes = self.memory.iter().map(|(start, (end, _))| end - start).sum();
        assert_eq!(used, told, "all memory is in segments");
    }

    /// Fails unless the snapshot shows this at least, and is right in itself.
    #[track_caller]
    pub(crate) fn assert_within(&self, snapshot: &Snapshot) {
        let mut shown = BTreeMap::new();
        for segment in &snapshot.segments {
            let mut next = segment.address;
            for block in &segment.blocks {
                assert_eq!(block.address, next, "blocks fill {segment:?}");
                next += block.bytes;
                if block.state != BlockState::Inactive {
                    let waits = block.state == BlockState::ActivePendingFree;
                    shown.insert(block.address, (block.requested, segment.stream, waits));
                }
            }
            assert_eq!(next, segment.address + segment.total);
        }
        for (address, allocation) in &self.live {
            assert_eq!(shown.get(address), Some(allocation), "{address:#x}");
        }
    }
}
