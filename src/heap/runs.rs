//! A heap's memory as it lies together.

use super::block::{NONE, State};
use super::{ArenaKind, BlockView, Heap};
use crate::units::{Address, Bytes};

/// Blocks with memory behind them that follow each other: a whole segment, or what lies between
/// two places without memory.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) kind: ArenaKind,
    /// Whether it is a whole segment of the device.
    pub(crate) segment: bool,
    pub(crate) blocks: Vec<BlockView>,
}

impl Run {
    pub(crate) fn span(&self) -> (Address, Bytes) {
        let start = self.blocks.first().map_or(0, |block| block.start);
        (start, self.blocks.iter().map(|block| block.bytes).sum())
    }
}

impl Heap {
    /// Every block of every range, by address within a range.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = BlockView> + '_ {
        self.ranges.iter().flatten().flat_map(move |range| {
            let mut id = range.first;
            std::iter::from_fn(move || {
                let found = (id != NONE).then_some(id)?;
                id = self.blocks[found].next;
                Some(self.block(found))
            })
        })
    }

    /// All its memory. Blocks that are free, or kept aside, do not tell what was asked for.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        for range in self.ranges.iter().flatten() {
            let begin = || Run { kind: range.kind, segment: range.segment, blocks: Vec::new() };
            let (mut run, mut id) = (begin(), range.first);
            while id != NONE {
                let mut block = self.block(id);
                id = self.blocks[id].next;
                match block.state {
                    State::Hole | State::Dormant | State::Ceded | State::Lent | State::Blocked => {
                        runs.push(std::mem::replace(&mut run, begin()));
                        continue;
                    }
                    State::Free | State::Quick => block.requested = 0,
                    State::Live | State::Shared | State::Pending => {}
                }
                run.blocks.push(block);
            }
            runs.push(run);
        }
        runs.retain(|run| !run.blocks.is_empty());
        runs
    }

    /// The handles under a span, all of which has memory; of those at its edges, which may be lent,
    /// some part.
    pub(crate) fn handles_in(&self, (start, bytes): (Address, Bytes)) -> impl Iterator<Item = u32> {
        let inside = self.views().filter(move |(_, view)| {
            view.active && start < view.end() && view.address < start + bytes
        });
        inside.map(|(_, view)| view.handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GRANULE;

    #[test]
    fn a_run_ends_where_there_is_no_memory() {
        let mut heap = Heap::new(None);
        let base = 64 * GRANULE;
        heap.add_range(base, 8 * GRANULE, 0, ArenaKind::Large);
        for (granule, handle) in [(0, 7), (1, 8), (4, 9)] {
            heap.attach(base + granule * GRANULE, GRANULE, handle).unwrap();
        }
        heap.add_segment(32 * GRANULE, GRANULE, ArenaKind::Small);
        let large = heap.allocate(2 * GRANULE, 2 * GRANULE).unwrap();
        let small = heap.allocate(100, 512).unwrap();
        assert_eq!((large, small), (base, 32 * GRANULE));
        let runs = heap.runs();
        let spans: Vec<_> = runs.iter().map(|run| (run.span(), run.segment)).collect();
        let expected = [
            ((base, 2 * GRANULE), false),
            ((base + 4 * GRANULE, GRANULE), false),
            ((32 * GRANULE, GRANULE), true),
        ];
        assert_eq!(spans, expected);
        let requested = |run: &Run| run.blocks.iter().map(|b| b.requested).collect::<Vec<_>>();
        assert_eq!(requested(&runs[0]), [2 * GRANULE]);
        assert_eq!(requested(&runs[1]), [0]);
        assert_eq!(requested(&runs[2]), [100, 0]);
        assert_eq!(heap.handles_in(runs[0].span()).collect::<Vec<_>>(), [7, 8]);
    }
}
