//! Where to put a request for which no free block is large enough: a window over free blocks, holes
//! and dormant views that lie side by side, and what has to be done to make it memory.

use std::cmp::Reverse;

use super::Heap;
use super::block::{BlockId, NONE, State};
use super::gaps::{GapBlock, HOLE};
use super::idle::IdlePart;
use super::layout::ViewId;
use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE, align_down, align_up};

/// What a plan may count on.
pub(crate) struct PlanRules<'a> {
    /// Bytes of physical memory that can be had readily: idle handles anywhere, and some growth.
    pub(crate) supply: Bytes,
    /// How much more than that a plan may need.
    pub(crate) excess_max: Bytes,
    /// The idle views of this heap; a window that covers one uses it up.
    pub(crate) idle: IdlePart<'a>,
    /// By handle, whether it is idle where it is now, so that its dormant views can be woken.
    pub(crate) usable: &'a [bool],
    /// How many bytes more a window may take for each piece fewer that has to be mapped.
    pub(crate) piece_bytes: Bytes,
    /// What lies in a hole alone goes into the longest, and leaves as much free before it: what is
    /// free beside such a hole later can be continued there.
    pub(crate) leaves_room: bool,
}

/// Room is left in a hole that is so many times as long as what is put there and the room.
const ROOMY_HOLE: Bytes = 8;

impl PlanRules<'_> {
    fn is_usable(&self, handle: u32) -> bool {
        self.usable.get(handle as usize).copied().unwrap_or(false)
    }

    /// Whether a hole or a dormant block could be used.
    fn may_use(&self, gap: &GapBlock) -> bool {
        // No handle has the number of a hole.
        self.usable.get(gap.handle as usize).copied().unwrap_or(gap.handle == HOLE)
    }
}

/// A span without memory that the window needs filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) address: Address,
    /// What must be filled.
    pub(crate) bytes: Bytes,
    /// How much may be filled: the hole goes on to there.
    pub(crate) room: Bytes,
}

/// A place for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) start: Address,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) wake: Vec<ViewId>,
    /// Bytes of the gaps.
    pub(crate) fill: Bytes,
    /// What is needed beyond the ready supply.
    pub(crate) excess: Bytes,
    cost: Bytes,
    /// The hole in which it lies alone, if that counts.
    hole: Bytes,
}

impl Plan {
    /// The less the better.
    fn key(&self) -> (Bytes, Bytes, Reverse<Bytes>) {
        (self.excess, self.cost, Reverse(self.hole))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Free,
    Hole,
    Dormant(ViewId, u32),
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    start: Address,
    bytes: Bytes,
    part: Part,
}

impl Heap {
    /// The cheapest place for `bytes`, if there is one within the rules.
    pub(crate) fn plan(
        &self,
        bytes: Bytes,
        kind: ArenaKind,
        rules: &PlanRules<'_>,
    ) -> Option<Plan> {
        let mut best = None;
        let mut pieces = Vec::with_capacity(32);
        // Gaps side by side that could be used, or with one free block between them: the first, the
        // last, what they come to, and how far it is to the gap before them. Most of them are too
        // short, which shows without a look at a block.
        let (mut first, mut last, mut length, mut before) = (NONE, NONE, 0, 0);
        let mut look_at = |first: BlockId, last: BlockId, length: Bytes| {
            let free = |id: BlockId| self.free_bytes(id);
            let (before, after) = (self.blocks[first].previous, self.blocks[last].next);
            if free(before) + length + free(after) >= bytes {
                self.collect_run(first, rules, &mut pieces);
                self.plan_in_run(&pieces, bytes, rules, &mut best);
            }
        };
        let mut end = 0;
        for part in self.arenas[kind as usize].gaps.parts() {
            let mut rest = part;
            loop {
                if first == NONE {
                    let passed = rest.iter().position(|gap| rules.may_use(gap));
                    let passed = passed.unwrap_or(rest.len());
                    end = rest[..passed].last().map_or(end, |gap| gap.end);
                    rest = &rest[passed..];
                }
                let Some((gap, others)) = rest.split_first() else {
                    break;
                };
                let between = gap.start() - end;
                (end, rest) = (gap.end, others);
                let usable = rules.may_use(gap);
                if first != NONE {
                    let free = || self.free_bytes(self.blocks[gap.block].previous);
                    if usable && (between == 0 || free() == between) {
                        (last, length) = (gap.block, length + between + gap.bytes);
                        continue;
                    }
                    if before + length + between >= bytes {
                        look_at(first, last, length);
                    }
                    first = NONE;
                }
                if usable {
                    (first, last, length, before) = (gap.block, gap.block, gap.bytes, between);
                }
            }
        }
        if first != NONE {
            look_at(first, last, length);
        }
        best
    }

    fn part_of(&self, id: BlockId, rules: &PlanRules<'_>) -> Option<Part> {
        let block = &self.blocks[id];
        match block.state {
            State::Free => Some(Part::Free),
            State::Hole => Some(Part::Hole),
            State::Dormant => {
                let handle = self.view(block.view)?.handle;
                rules.is_usable(handle).then_some(Part::Dormant(block.view, handle))
            }
            State::Quick
            | State::Live
            | State::Shared
            | State::Pending
            | State::Ceded
            | State::Lent
            | State::Blocked => None,
        }
    }

    /// The pieces side by side around a gap that could be used together.
    fn collect_run(&self, id: BlockId, rules: &PlanRules<'_>, run: &mut Vec<Piece>) {
        run.clear();
        let mut at = id;
        let previous = self.blocks[id].previous;
        if previous != NONE && self.blocks[previous].state == State::Free {
            at = previous;
        }
        while at != NONE {
            let Some(part) = self.part_of(at, rules) else {
                break;
            };
            let block = &self.blocks[at];
            run.push(Piece { start: block.start, bytes: block.bytes, part });
            at = block.next;
        }
    }

    fn plan_in_run(
        &self,
        run: &[Piece],
        bytes: Bytes,
        rules: &PlanRules<'_>,
        best: &mut Option<Plan>,
    ) {
        let total: Bytes = run.iter().map(|piece| piece.bytes).sum();
        if total < bytes {
            return;
        }
        for first in 0..run.len() {
            let pieces = &run[first..];
            let Some(window) = window(pieces, bytes, rules) else {
                break;
            };
            // Most windows are no better than the best so far, at a glance.
            let key = (0, window.cost, Reverse(window.hole));
            if best.as_ref().is_some_and(|best| key >= best.key()) {
                continue;
            }
            let mut plan = window.plan(pieces);
            let Some(needed) = self.needed(&plan, bytes, rules) else {
                continue;
            };
            plan.excess = needed.saturating_sub(rules.supply);
            if plan.excess <= rules.excess_max
                && best.as_ref().is_none_or(|best| plan.key() < best.key())
            {
                *best = Some(plan);
            }
        }
    }

    /// How much of the supply the window takes: what it needs filled, and what idle memory it
    /// covers. `None` where it would need one handle at two places.
    fn needed(&self, plan: &Plan, bytes: Bytes, rules: &PlanRules<'_>) -> Option<Bytes> {
        let over = || rules.idle.over(plan.start, plan.start + bytes);
        let covered: Bytes = over().map(|view| view.bytes).sum();
        let mut woken = 0;
        if !plan.wake.is_empty() {
            let mut handles = Vec::with_capacity(plan.wake.len());
            for view in plan.wake.iter().filter_map(|&view| self.view(view)) {
                woken += view.bytes;
                handles.push(view.handle);
            }
            handles.sort_unstable();
            let twice = handles.windows(2).any(|pair| pair[0] == pair[1]);
            if twice || over().any(|view| handles.binary_search(&view.handle).is_ok()) {
                return None;
            }
        }
        Some(plan.fill + covered + woken)
    }
}

/// Where a request may lie over pieces side by side, of which it needs the first `count`.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: Address,
    end: Address,
    count: usize,
    /// Bytes of the gaps, and what they and the dormant views come to.
    fill: Bytes,
    cost: Bytes,
    hole: Bytes,
}

impl Window {
    /// What of a hole has to be filled.
    fn gap(&self, hole: &Piece) -> Gap {
        let address = hole.start.max(align_down(self.start, GRANULE));
        let hole_end = hole.start + hole.bytes;
        let needed = align_up(self.end.min(hole_end) - address, GRANULE);
        Gap { address, bytes: needed, room: hole_end - address }
    }

    /// What has to be done to make it memory.
    fn plan(&self, pieces: &[Piece]) -> Plan {
        let Window { start, fill, cost, hole, .. } = *self;
        let (gaps, wake) = (Vec::new(), Vec::new());
        let mut plan = Plan { start, gaps, wake, fill, excess: 0, cost, hole };
        for piece in &pieces[..self.count] {
            match piece.part {
                Part::Free => {}
                Part::Dormant(view, _) => plan.wake.push(view),
                Part::Hole => plan.gaps.push(self.gap(piece)),
            }
        }
        plan
    }
}

/// The window of `bytes` that begins in the first piece, moved right where that saves memory.
fn window(pieces: &[Piece], bytes: Bytes, rules: &PlanRules<'_>) -> Option<Window> {
    let mut covered = 0;
    let mut count = 0;
    while covered < bytes {
        covered += pieces.get(count)?.bytes;
        count += 1;
    }
    let (first, last) = (pieces[0], pieces[count - 1]);
    let mut start = first.start;
    if first.part == Part::Hole && count > 1 && last.part != Part::Hole {
        // The end of the last piece is memory already: begin later in the hole instead.
        start += align_down(covered - bytes, GRANULE).min(first.bytes - GRANULE);
    }
    let mut hole = 0;
    if rules.leaves_room && first.part == Part::Hole && count == 1 {
        hole = first.bytes;
        let room = align_up(bytes, GRANULE);
        if hole / ROOMY_HOLE >= 2 * room {
            start += room;
        }
    }
    let mut window = Window { start, end: start + bytes, count, fill: 0, cost: 0, hole };
    for piece in &pieces[..count] {
        if piece.part == Part::Free {
            continue;
        }
        if piece.part == Part::Hole {
            window.fill += window.gap(piece).bytes;
        }
        window.cost += rules.piece_bytes;
    }
    window.cost += window.fill;
    Some(window)
}

#[cfg(test)]
mod tests {
    use super::super::IdleList;
    use super::*;
    use crate::units::MIB;

    const BASE: Address = 512 * GRANULE;
    const KIND: ArenaKind = ArenaKind::Large;

    /// What [`Heap::plan`] is to find, by looking at the run around every gap.
    fn by_looking_at_all(heap: &Heap, bytes: Bytes, rules: &PlanRules<'_>) -> Option<Plan> {
        let (mut best, mut run, mut seen_to) = (None, Vec::new(), 0);
        for gap in heap.arenas[KIND as usize].gaps.iter() {
            if gap.end > seen_to && heap.part_of(gap.block, rules).is_some() {
                heap.collect_run(gap.block, rules, &mut run);
                seen_to = run.last().map_or(0, |piece| piece.start + piece.bytes);
                heap.plan_in_run(&run, bytes, rules, &mut best);
            }
        }
        best
    }

    #[test]
    fn the_best_place_is_found_without_a_look_at_runs_that_are_too_short() {
        let mut random = 5u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut found = 0;
        for _ in 0..300 {
            let mut heap = Heap::new(None);
            heap.add_range(BASE, 96 * GRANULE, 0, KIND);
            let (mut at, mut handle) = (BASE, 0);
            while at < BASE + 80 * GRANULE {
                let bytes = GRANULE << next(3);
                if next(5) > 0 {
                    heap.attach(at, bytes, handle).unwrap();
                    handle += 1;
                }
                at += bytes;
            }
            for _ in 0..next(16) {
                let bytes = MIB + 4096 * next(1024);
                heap.allocate(bytes, bytes);
            }
            for view in heap.idle_views() {
                if next(2) == 0 {
                    assert!(heap.detach(view.view));
                }
            }
            let usable: Vec<bool> = (0..handle).map(|_| next(3) > 0).collect();
            let mut idle = IdleList::default();
            heap.add_idle(&mut idle);
            idle.list_views(idle.all().runs.len(), |_, list| list(&heap));
            let rules = PlanRules {
                supply: next(24) * GRANULE,
                excess_max: next(4) * GRANULE,
                idle: idle.all(),
                usable: &usable,
                piece_bytes: MIB,
                leaves_room: next(2) == 0,
            };
            for _ in 0..8 {
                let bytes = (1 + next(24)) * GRANULE - 4096 * next(9);
                let plan = heap.plan(bytes, KIND, &rules);
                found += usize::from(plan.is_some());
                assert_eq!(plan, by_looking_at_all(&heap, bytes, &rules));
            }
        }
        assert!(found > 500, "{found}");
    }
}
