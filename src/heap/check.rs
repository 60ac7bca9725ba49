//! Every invariant of a heap, by name.

use super::block::{Block, NONE, State};
use super::gaps::{GapBlock, HOLE};
use super::ranges::{Range, ViewOver};
use super::size::{ArenaKind, LARGE_CLASS, class_of};
use super::views::View;
use super::{BlockView, Heap, Tally};
use crate::error::Error;
use crate::units::{Address, Bytes, GRANULE};

fn broken<T>(check: &str, detail: String) -> Result<T, Error> {
    Err(Error::Internal { check: check.to_owned(), detail })
}

impl Heap {
    /// Checks the heap from end to end; the error names the invariant that is broken.
    pub(crate) fn is_valid(&self) -> Result<(), Error> {
        let mut seen = 0;
        let mut counted = self.outside.clone();
        let mut free_bytes: [Bytes; 2] = [0; 2];
        for range in self.ranges.iter().flatten() {
            seen += self.check_range(range, &mut counted, &mut free_bytes)?;
        }
        if seen != self.blocks.count() {
            let detail = format!("{} blocks in ranges, {} in the table", seen, self.blocks.count());
            return broken("every block lies in a range", detail);
        }
        for (arena, bytes) in self.arenas.iter().zip(free_bytes) {
            if arena.free.bytes != bytes {
                let detail = format!("{} bytes indexed, {bytes} free", arena.free.bytes);
                return broken("free index holds every free block", detail);
            }
            let indexed = arena.free.at_least(&self.blocks, 1);
            let wrong = indexed.filter(|(_, block)| block.state != State::Free).count();
            if wrong > 0 {
                return broken("free index holds free blocks only", format!("{wrong} others"));
            }
            let mut large = arena.free.at_least(&self.blocks, 1).map(|(_, block)| block);
            let stale = |block: &&Block| {
                block.arena == ArenaKind::Large && !block.notes_idle(self.idle_in(block))
            };
            if let Some(block) = large.find(stale) {
                return broken("idle memory of a block is as noted", format!("{block:?}"));
            }
        }
        let recent = self.blocks.get(self.blocks.recent).map(|block| block.start);
        if self.recent_start != Address::MAX && recent != Some(self.recent_start) {
            let detail = format!("{:#x} noted, {recent:x?} there", self.recent_start);
            return broken("the block taken last starts where that is noted", detail);
        }
        if self.has_at_hand() {
            return broken(
                "no block is at hand while the heap is looked at",
                format!("{recent:x?}"),
            );
        }
        self.check_quick()?;
        self.check_gaps()?;
        self.check_starts()?;
        self.check_views()?;
        if counted.currents() != self.tally.currents() {
            let detail = format!("counted {counted:?}, kept {:?}", self.tally);
            return broken("tally equals the blocks", detail);
        }
        Ok(())
    }

    fn check_range(
        &self,
        range: &Range,
        counted: &mut Tally,
        free_bytes: &mut [Bytes; 2],
    ) -> Result<usize, Error> {
        let mut at = range.base;
        let mut id = range.first;
        let mut previous = NONE;
        let mut count = 0;
        while id != NONE {
            let block = &self.blocks[id];
            if block.start != at || block.previous != previous || block.bytes == 0 {
                return broken(
                    "blocks tile their range",
                    format!("block {id}: {block:?} at {at:#x}"),
                );
            }
            match block.state {
                State::Free => free_bytes[range.kind as usize] += block.bytes,
                State::Live | State::Shared => {
                    counted.allocate(block.arena, block.bytes, block.requested);
                }
                State::Pending => {
                    counted.allocate(block.arena, block.bytes, block.requested);
                    counted.defer(block.arena, block.bytes);
                }
                State::Hole | State::Dormant => {
                    let dormant = (block.state == State::Dormant).then_some(block.view);
                    let view = dormant.and_then(|view| self.view(view));
                    let handle = view.map_or(HOLE, |view| view.handle);
                    let (end, bytes) = (block.end(), block.bytes);
                    let gap = GapBlock { end, bytes, block: id, handle };
                    if self.arenas[range.kind as usize].gaps.get(end) != Some(&gap) {
                        return broken("gaps hold every hole", format!("block {id} at {at:#x}"));
                    }
                }
                State::Ceded => {
                    if self.arenas[range.kind as usize].ceded.get(at) != Some(id) {
                        return broken("ceded blocks are known", format!("block {id} at {at:#x}"));
                    }
                }
                State::Blocked if !self.is_blocked(range, block) => {
                    return broken("only what is not borrowed is blocked", format!("{block:?}"));
                }
                State::Quick | State::Lent | State::Blocked => {}
            }
            self.check_block(range, id)?;
            (at, previous, id) = (block.end(), id, block.next);
            count += 1;
        }
        if at != range.base + range.bytes {
            return broken("blocks tile their range", format!("they end at {at:#x}"));
        }
        Ok(count)
    }

    /// Whether a block is all that a borrowed view has before or after the part that was borrowed.
    fn is_blocked(&self, range: &Range, block: &Block) -> bool {
        let over = range.over.get(range.granule_of(block.start));
        let view = over.and_then(|over| self.view(over.view));
        view.is_some_and(|view| {
            view.part.is_some_and(|(from, to)| {
                let span = (block.start, block.end());
                span == (view.address, from) || span == (to, view.end())
            })
        })
    }

    fn check_block(&self, range: &Range, id: u32) -> Result<(), Error> {
        let block = &self.blocks[id];
        if block.previous != NONE {
            let before = self.blocks[block.previous].state;
            if before == block.state && matches!(before, State::Free | State::Hole | State::Ceded) {
                return broken(
                    "neighbours are joined",
                    format!("block {id} at {:#x}", block.start),
                );
            }
        }
        let backed = !matches!(block.state, State::Hole | State::Dormant | State::Ceded);
        let mut at = block.start / GRANULE * GRANULE;
        while at < block.end() {
            let slot = range.slots.get(((at - range.base) / GRANULE) as usize).copied();
            let has = slot.and_then(|slot| self.slots.get(slot as usize));
            if has.is_some_and(|slot| slot.base == at) != backed {
                return broken(
                    "memory lies under blocks and only there",
                    format!("granule {at:#x}"),
                );
            }
            at += GRANULE;
        }
        if block.state.is_live() || matches!(block.state, State::Quick | State::Pending) {
            let slot = range.slots[((block.start - range.base) / GRANULE) as usize];
            let page = &self.slots[slot as usize];
            let offset = ((block.start - page.base) >> page.unit_shift) as usize;
            if page.starts.get(offset) != Some(&(id + 1)) {
                return broken("start table finds blocks", format!("block {id}: {block:?}"));
            }
        }
        Ok(())
    }

    /// Every hole and every dormant block was found among the gaps: there is nothing else.
    fn check_gaps(&self) -> Result<(), Error> {
        let listed: Vec<_> = self.arenas.iter().flat_map(|arena| arena.gaps.iter()).collect();
        let is_gap = |block: &BlockView| matches!(block.state, State::Hole | State::Dormant);
        let all = self.blocks().filter(is_gap).count();
        if listed.len() != all {
            let detail = format!("{} listed, {all} there", listed.len());
            return broken("gaps hold nothing but holes and dormant blocks", detail);
        }
        Ok(())
    }

    /// Start tables of pages that are none any more name no block, since other pages get them.
    fn check_starts(&self) -> Result<(), Error> {
        let spare = || self.spare_starts.iter().flatten();
        let named = spare().flatten().filter(|&&entry| entry != 0).count();
        let vacant = |slot: &&u32| self.slots[**slot as usize].base != u64::MAX;
        let used = self.vacant_slots.iter().filter(vacant).count();
        if named + used > 0 {
            let detail = format!("{named} blocks named, {used} slots of pages vacant");
            return broken("spare start tables are empty", detail);
        }
        Ok(())
    }

    fn check_quick(&self) -> Result<(), Error> {
        for class in self.quick.classes() {
            let mut id = self.quick.first(class);
            while id != NONE {
                let block = &self.blocks[id];
                let fits = match block.arena {
                    ArenaKind::Large => class == LARGE_CLASS,
                    ArenaKind::Small => class == class_of(block.bytes),
                };
                if block.state != State::Quick || block.class != class || !fits {
                    return broken(
                        "quick list holds quick blocks of a class",
                        format!("{block:?}"),
                    );
                }
                id = block.bin_next;
            }
        }
        let count = self.quick.iter(&self.blocks).count();
        let all = self.blocks().filter(|block| block.state == State::Quick).count();
        if all != count {
            return broken(
                "every quick block is in the list",
                format!("{all} blocks, {count} kept"),
            );
        }
        Ok(())
    }

    fn check_views(&self) -> Result<(), Error> {
        let blocked = self.blocks().filter(|block| block.state == State::Blocked);
        let not_borrowed = |view: &View| view.part.map_or(0, |(from, to)| view.bytes - (to - from));
        let expected: Bytes = self.views().map(|(_, view)| not_borrowed(&view)).sum();
        let blocked: Bytes = blocked.map(|block| block.bytes).sum();
        if blocked != expected {
            let detail = format!("{blocked} bytes blocked, {expected} not borrowed");
            return broken("all that is not borrowed is blocked", detail);
        }
        for (id, view) in self.views() {
            let Some(range) = &self.ranges[view.range as usize] else {
                return broken("views lie in ranges", format!("view {id}: {view:?}"));
            };
            for k in 0..view.bytes / GRANULE {
                let index = (view.address - range.base) / GRANULE + k;
                let slot = range.slots.get(index as usize).copied();
                let page = slot.and_then(|slot| self.slots.get(slot as usize));
                let start = (view.address - range.base) / GRANULE;
                let end = start + view.bytes / GRANULE;
                let (start, end, handle) = (start as u32, end as u32, view.handle);
                let over = ViewOver { start, end, view: id, handle };
                let noted = range.over.get(index as usize) == Some(&over);
                let base = view.address + k * GRANULE;
                if page.is_some_and(|page| page.base == base && noted) != view.active {
                    return broken("active views are memory", format!("view {id}: {view:?}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_should_not_be_listed_is_told() {
        let base = 64 * GRANULE;
        let mut heap = Heap::new(None);
        heap.add_range(base, 8 * GRANULE, 0, ArenaKind::Large);
        for page in 0..3 {
            heap.attach(base + page * GRANULE, GRANULE, page as u32).unwrap();
        }
        assert!(heap.detach(1));
        heap.is_valid().unwrap();
        let name = |heap: &Heap| heap.is_valid().unwrap_err().to_string();
        // A gap where there is memory, one that is left out, and one that is shorter than it was.
        let gaps = |heap: &mut Heap| std::mem::take(&mut heap.arenas[1].gaps);
        let all: Vec<_> = heap.arenas[1].gaps.iter().copied().collect();
        assert_eq!(all.len(), 2);
        heap.arenas[1].gaps.insert(GapBlock::hole(base + GRANULE, GRANULE, 0));
        assert!(name(&heap).contains("gaps hold nothing but"), "{}", name(&heap));
        gaps(&mut heap);
        heap.arenas[1].gaps.insert(all[0]);
        assert!(name(&heap).contains("gaps hold every hole"), "{}", name(&heap));
        let shorter = GapBlock { bytes: all[1].bytes - GRANULE, ..all[1] };
        heap.arenas[1].gaps.insert(shorter);
        assert!(name(&heap).contains("gaps hold every hole"), "{}", name(&heap));
        heap.arenas[1].gaps.insert(all[1]);
        heap.is_valid().unwrap();
        heap.spare_starts[1].push([0, 1].into());
        assert!(name(&heap).contains("spare start tables"), "{}", name(&heap));
    }
}
