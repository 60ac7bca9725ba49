//! Where an allocation goes inside address ranges: integers and numbers only. This room knows no
//! device, lock or clock, so that everything in it can be proven without a machine.
//!
//! A heap serves one stream of one pool, or one of the stream's lanes. It has two arenas, for small
//! and for large requests; an arena is a set of address ranges, and a range is tiled by blocks:
//!
//! ```text
//!   range   | live | free      | live | hole            | free | dormant | hole ...
//!   views   |------ view ------|------|                 |-view-|- view --|
//! ```
//!
//! A *view* is one handle of physical memory at one place. Free and live blocks lie on active
//! views. A *hole* has no memory. A *dormant* block is a view whose handle is in use at another
//! address now; when that use ends, the view can be made active again with no call to the driver.
//! A *ceded* block is a part of the range that another heap uses: whole views on which nothing
//! lives pass from heap to heap where they are, with no call to the driver either. A *lent* block
//! is memory that another heap uses at other addresses, where the same handle is mapped as well;
//! what that heap does not use of the handle is *blocked* there (see `lend`).
//!
//! Ranges that are whole segments of the device (no virtual memory) have no views and no holes.

#![forbid(unsafe_code)]

mod block;
mod by_address;
mod carve;
mod cede;
mod check;
mod free;
mod free_index;
mod gaps;
mod hand;
mod hold;
mod idle;
mod layout;
mod lend;
mod lookup;
mod plan;
mod quick;
mod ranges;
mod restore;
mod runs;
mod size;
mod slots;
mod tally;
mod views;

pub(crate) use block::{BlockId, NONE, State};
pub(crate) use idle::{FreeRun, IdleList, IdlePart, IdleRun, IdleView};
pub(crate) use layout::Backed;
pub(crate) use lend::Remainder;
pub(crate) use lookup::Lookup;
pub(crate) use plan::{Gap, Plan, PlanRules};
pub(crate) use restore::{Fate, Obstacle};
pub(crate) use size::{
    ArenaKind, Divisions, LARGE_UNIT, SMALL_MAX, Whole, class_bytes_of, class_of, large_segment,
    rounded,
};
pub(crate) use slots::LARGE_PAGE;
pub(crate) use tally::{METRICS, Tally, Turn, metric};

use crate::units::{Address, Bytes};
use block::{Block, BlockTable};
use by_address::ByAddress;
use free_index::FreeIndex;
use gaps::Gaps;
use hold::Holds;
use quick::QuickList;
use ranges::Range;
use slots::PageSlot;
use views::ViewTable;

/// One arena: the free blocks and the places without memory.
#[derive(Debug)]
struct Arena {
    free: FreeIndex,
    /// Holes and dormant blocks.
    gaps: Gaps,
    /// What other heaps use.
    ceded: ByAddress,
}

/// A block as it is shown to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockView {
    pub(crate) start: Address,
    pub(crate) bytes: Bytes,
    pub(crate) requested: Bytes,
    pub(crate) state: State,
    pub(crate) arena: ArenaKind,
}

/// The blocks of one stream of one pool, or of one of its lanes.
///
/// What every call touches comes first, so that it lies with the lock in front of it in two lines
/// of the cache: with a thousand streams, their heaps do not all stay in its first level.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Heap {
    /// Its part in finding the device's peaks.
    pub(crate) turn: Turn,
    /// What was asked for of the block at hand: 0 if it is free.
    held_requested: u32,
    slots: Vec<PageSlot>,
    blocks: BlockTable,
    /// Where the block starts that was last taken from those kept aside: what is freed next is
    /// often that one, and is found with no look at tables of addresses. It may be at hand (see
    /// `hand`). Beyond all if it went back.
    recent_start: Address,
    /// What is in use, counted.
    pub(crate) tally: Tally,
    quick: QuickList,
    arenas: [Arena; 2],
    ranges: Vec<Option<Range>>,
    views: ViewTable,
    /// How often the memory of a view was moved away.
    moves: usize,
    /// Which blocks are handed out whole.
    whole: Option<Whole>,
    /// How many marks were set on the stream: the number of the next.
    marks: u64,
    /// What is neither moved nor given back.
    holds: Holds,
    vacant_slots: Vec<u32>,
    /// Start tables of pages that are none any more, by arena.
    spare_starts: [Vec<Box<[u32]>>; 2],
    /// The part of what is in use that is not in the heap's blocks (caching is off).
    outside: Tally,
    /// How many allocations were served when it was last asked.
    counted: u64,
    /// The heap's number among those of its device.
    pub(crate) number: u32,
}

/// The lock takes a word in front, and both begin a pair of lines.
const _: () = assert!(8 + std::mem::offset_of!(Heap, tally) + Tally::HOT == 128);

impl Heap {
    /// A heap without memory, which hands some blocks out whole.
    pub(crate) fn new(whole: Option<Whole>) -> Self {
        let arena =
            || Arena { free: FreeIndex::new(), gaps: Gaps::default(), ceded: ByAddress::default() };
        Heap {
            blocks: BlockTable::new(),
            recent_start: Address::MAX,
            arenas: [arena(), arena()],
            quick: QuickList::new(),
            ranges: Vec::new(),
            views: ViewTable::default(),
            moves: 0,
            whole,
            marks: 0,
            holds: Holds::default(),
            slots: Vec::new(),
            vacant_slots: Vec::new(),
            spare_starts: [Vec::new(), Vec::new()],
            tally: Tally::default(),
            outside: Tally::default(),
            counted: 0,
            turn: Turn::default(),
            held_requested: 0,
            number: 0,
        }
    }

    /// Cuts a block that is in no index after `bytes`; the second part has the first one's state.
    #[inline(always)]
    fn split(&mut self, id: BlockId, bytes: Bytes) -> BlockId {
        let mut rest = self.blocks[id].clone();
        debug_assert!(bytes > 0 && bytes < rest.bytes);
        let next = rest.next;
        rest.start += bytes;
        rest.bytes -= bytes;
        rest.previous = id;
        rest.requested = 0;
        let rest = self.blocks.insert(rest);
        if next != NONE {
            self.blocks[next].previous = rest;
        }
        let block = &mut self.blocks[id];
        block.bytes = bytes;
        block.next = rest;
        rest
    }

    /// The number of the next mark, which comes after all uses of what is free now.
    pub(crate) fn mark(&self) -> u64 {
        self.marks
    }

    /// A mark is set on the stream, behind all uses of what is free now; gives its number.
    pub(crate) fn next_mark(&mut self) -> u64 {
        self.marks += 1;
        self.marks - 1
    }

    /// Gives the large block that is kept aside back to the free index, if there is one.
    pub(crate) fn flush_large(&mut self) {
        if let Some(id) = self.quick.pop_large() {
            self.give_back(id);
        }
    }

    /// Gives everything kept aside back to the free index; true where there was something.
    pub(crate) fn flush_quick(&mut self) -> bool {
        self.flush_classes(0)
    }

    /// Gives back what is kept aside and may matter to a request: for a small one, small blocks of
    /// a sixteenth of its size or more. Most requests are smaller than that, and go on being served
    /// from what is kept. For a large one, whose kept block is back already, nothing.
    pub(crate) fn flush_near(&mut self, bytes: Bytes) -> bool {
        bytes <= SMALL_MAX && self.flush_classes(class_of((bytes / 16).max(1)))
    }

    fn flush_classes(&mut self, from: u8) -> bool {
        let mut any = false;
        let mut class = from;
        while let Some(kept) = self.quick.next_class(class) {
            let mut id = self.quick.take_class(kept);
            while id != NONE {
                let next = self.blocks[id].bin_next;
                self.give_back(id);
                (id, any) = (next, true);
            }
            class = kept + 1;
        }
        any
    }

    fn block_over(&self, address: Address) -> Option<&Block> {
        let range = self.ranges.iter().flatten().find(|range| range.contains(address))?;
        let mut id = range.first;
        while id != NONE {
            let block = &self.blocks[id];
            if address < block.end() {
                return Some(block);
            }
            id = block.next;
        }
        None
    }

    fn free_block_over(&self, start: Address, bytes: Bytes, kind: ArenaKind) -> Option<BlockId> {
        let free = &self.arenas[kind as usize].free;
        let over =
            |(_, block): &(BlockId, &Block)| block.start <= start && start + bytes <= block.end();
        free.at_least(&self.blocks, bytes).find(over).map(|(id, _)| id)
    }

    /// A block as it is.
    pub(crate) fn block(&self, id: BlockId) -> BlockView {
        let block = &self.blocks[id];
        BlockView {
            start: block.start,
            bytes: block.bytes,
            requested: if block.state == State::Free { 0 } else { block.requested },
            state: block.state,
            arena: block.arena,
        }
    }

    /// Whether other streams were recorded as users of a live block.
    #[inline]
    pub(crate) fn is_shared(&self, id: BlockId) -> bool {
        self.blocks[id].state == State::Shared
    }

    /// Notes that other streams use a live block.
    pub(crate) fn set_shared(&mut self, id: BlockId) {
        self.blocks[id].state = State::Shared;
    }

    /// The size of the largest block that could be handed out without new memory.
    pub(crate) fn largest_free(&self) -> Bytes {
        let kept = self.quick.iter(&self.blocks).map(|id| self.blocks[id].bytes).max();
        let free = self.arenas.iter().map(|arena| arena.free.largest(&self.blocks)).max();
        kept.max(free).unwrap_or(0)
    }

    /// Bytes that have memory behind them and nobody in them.
    pub(crate) fn cached(&self) -> Bytes {
        let free: Bytes = self.arenas.iter().map(|arena| arena.free.bytes).sum();
        self.quick.bytes(&self.blocks) + free
    }

    /// How many allocations were served since this was last asked.
    pub(crate) fn allocations_since(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.counted, self.tally.allocations());
        self.counted - before
    }

    /// Counts an allocation of the heap's stream that is not in the heap's blocks.
    pub(crate) fn allocate_outside(&mut self, kind: ArenaKind, bytes: Bytes, requested: Bytes) {
        self.tally.allocate(kind, bytes, requested);
        self.outside.allocate(kind, bytes, requested);
    }

    /// Counts the end of one.
    pub(crate) fn free_outside(&mut self, kind: ArenaKind, bytes: Bytes, requested: Bytes) {
        self.tally.free(kind, bytes, requested);
        self.outside.free(kind, bytes, requested);
    }
}

/// Makes `second`, which follows `first`, a part of it.
#[inline]
fn join(blocks: &mut BlockTable, first: BlockId, second: BlockId) {
    let (bytes, next, since) = {
        let block = &blocks[second];
        (block.bytes, block.next, block.since)
    };
    let block = &mut blocks[first];
    block.bytes += bytes;
    block.since = block.since.max(since);
    block.next = next;
    if next != NONE {
        blocks[next].previous = first;
    }
    blocks.remove(second);
}
