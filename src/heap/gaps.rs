//! Holes and dormant blocks by address. They are gone through for each request that grows, and one
//! comes or goes with each handle that moves.

use super::block::BlockId;
use crate::units::{Address, Bytes};

/// How many of them lie together at most.
const PART: usize = 64;

/// A hole, or a dormant block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GapBlock {
    /// Where it ends: holes are filled from the front.
    pub(crate) end: Address,
    pub(crate) bytes: Bytes,
    pub(crate) block: BlockId,
    /// Of a dormant block, the handle of its view, else [`HOLE`]. Most are passed over for their
    /// handle's sake, without a look at the block.
    pub(crate) handle: u32,
}

/// No handle.
pub(crate) const HOLE: u32 = u32::MAX;

impl GapBlock {
    pub(crate) fn hole(end: Address, bytes: Bytes, block: BlockId) -> GapBlock {
        GapBlock { end, bytes, block, handle: HOLE }
    }

    pub(crate) fn start(&self) -> Address {
        self.end - self.bytes
    }
}

/// All of one arena, in parts of one sorted list, none of which is empty.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    parts: Vec<Vec<GapBlock>>,
}

impl Gaps {
    /// The part, and the place in it, of the first that ends at `end` or behind it; the last part
    /// where there is none.
    fn place(&self, end: Address) -> (usize, usize) {
        let before = |part: &Vec<GapBlock>| part.last().is_some_and(|gap| gap.end < end);
        let part = self.parts.partition_point(before).min(self.parts.len().saturating_sub(1));
        let at = self.parts.get(part).map_or(0, |part| part.partition_point(|gap| gap.end < end));
        (part, at)
    }

    /// Adds one, in place of one that ends there.
    pub(crate) fn insert(&mut self, gap: GapBlock) {
        let (number, at) = self.place(gap.end);
        let Some(part) = self.parts.get_mut(number) else {
            self.parts.push(vec![gap]);
            return;
        };
        match part.get_mut(at) {
            Some(same) if same.end == gap.end => *same = gap,
            _ => part.insert(at, gap),
        }
        if part.len() > PART {
            let rest = part.split_off(PART / 2);
            self.parts.insert(number + 1, rest);
        }
    }

    /// Adds several, by address, among which there are no others.
    pub(crate) fn insert_all(&mut self, gaps: &[GapBlock]) {
        let Some(first) = gaps.first() else {
            return;
        };
        let (number, at) = self.place(first.end);
        if self.parts.is_empty() {
            self.parts.push(Vec::with_capacity(PART + gaps.len()));
        }
        let part = &mut self.parts[number];
        part.splice(at..at, gaps.iter().copied());
        while let part = &mut self.parts[number]
            && part.len() > PART
        {
            let rest = part.split_off(part.len() - PART / 2);
            self.parts.insert(number + 1, rest);
        }
    }

    /// Removes the one that ends there.
    pub(crate) fn remove(&mut self, end: Address) -> Option<GapBlock> {
        let (number, at) = self.place(end);
        let part = self.parts.get_mut(number)?;
        part.get(at).filter(|gap| gap.end == end)?;
        let gone = part.remove(at);
        if part.is_empty() {
            self.parts.remove(number);
        }
        Some(gone)
    }

    /// The one that ends there.
    pub(crate) fn get(&self, end: Address) -> Option<&GapBlock> {
        self.from(end).filter(|gap| gap.end == end)
    }

    /// The first that ends at `end` or behind it.
    pub(crate) fn from(&self, end: Address) -> Option<&GapBlock> {
        let (part, at) = self.place(end);
        self.parts.get(part)?.get(at)
    }

    /// All of them, by address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &GapBlock> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// The same, as far as it lies together.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[GapBlock]> {
        self.parts.iter().map(Vec::as_slice)
    }

    /// The first hole of so many bytes or more.
    pub(crate) fn first_hole(&self, bytes: Bytes) -> Option<&GapBlock> {
        let long = |gap: &&GapBlock| gap.handle == HOLE && gap.bytes >= bytes;
        self.parts().find_map(|part| part.iter().find(long))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn gaps_are_found_by_their_ends_however_many_there_are() {
        let mut random = 11u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let (mut gaps, mut all) = (Gaps::default(), BTreeMap::new());
        for round in 0..20_000u32 {
            let end = 1 + next(if round < 10_000 { 1000 } else { 40 });
            if next(8) == 0 {
                // Some in a row, where there are none.
                let row = || (end..end + 3).map(|end| GapBlock::hole(end, 1, round));
                all.retain(|at, _| !(end..end + 3).contains(at));
                (end..end + 3).for_each(|end| _ = gaps.remove(end));
                gaps.insert_all(&row().collect::<Vec<_>>());
                all.extend(row().map(|gap| (gap.end, gap)));
            } else if next(2) == 0 {
                let handle = if next(3) > 0 { round } else { HOLE };
                let gap = GapBlock { end, bytes: next(9), block: round, handle };
                gaps.insert(gap);
                all.insert(end, gap);
            } else {
                assert_eq!(gaps.remove(end), all.remove(&end));
            }
            let at = next(1002);
            assert_eq!(gaps.get(at), all.get(&at));
            assert_eq!(gaps.from(at), all.range(at..).next().map(|(_, gap)| gap));
            if round % 100 == 0 {
                assert!(gaps.iter().eq(all.values()));
                let hole = all.values().find(|gap| gap.handle == HOLE && gap.bytes >= 7);
                assert_eq!(gaps.first_hole(7), hole);
                assert!(gaps.parts.iter().all(|part| !part.is_empty() && part.len() <= PART));
            }
        }
    }
}
