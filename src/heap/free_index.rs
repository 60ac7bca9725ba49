//! The free blocks of one arena, by size: a list a bin, and a two-level bitmap of bins that are not
//! empty, so that the next larger block is found in constant time (TLSF: Masmano et al., 2004).

use std::hint::select_unpredictable;
use std::num::NonZeroU64;

use super::block::{Block, BlockId, BlockTable, NONE};
use super::size::{BIN_COUNT, bin_of};
use crate::units::Bytes;

const WORDS: usize = BIN_COUNT.div_ceil(64);
/// The first block of each bin of a word.
type Row = [BlockId; 64];
/// How many blocks of a bin are compared before the best seen is taken.
const SCAN: usize = 8;

/// Free blocks by size.
#[derive(Debug)]
pub(crate) struct FreeIndex {
    heads: Box<[Row; WORDS]>,
    words: [u64; WORDS],
    /// One bit a word that is not zero.
    summary: u64,
    /// How many blocks there are, and their bytes.
    pub(crate) count: u64,
    pub(crate) bytes: Bytes,
    /// The least that it was between two looks, as far as memory was taken out of it.
    pub(crate) low: Bytes,
}

impl FreeIndex {
    pub(crate) fn new() -> Self {
        FreeIndex {
            heads: Box::new([[NONE; 64]; WORDS]),
            words: [0; WORDS],
            summary: 0,
            count: 0,
            bytes: 0,
            low: 0,
        }
    }

    /// Puts a block in front of its bin.
    #[inline]
    pub(crate) fn insert(&mut self, blocks: &mut BlockTable, id: BlockId) {
        let (table, _) = blocks.parts();
        self.count += 1;
        self.bytes += table[id as usize].bytes;
        self.link(table, id);
    }

    /// Takes a block out of its bin.
    #[inline]
    pub(crate) fn remove(&mut self, blocks: &mut BlockTable, id: BlockId) {
        let (table, _) = blocks.parts();
        self.count -= 1;
        self.bytes -= table[id as usize].bytes;
        self.unlink(table, id);
    }

    /// Puts a block in front of its bin, uncounted.
    #[inline(always)]
    pub(super) fn link(&mut self, table: &mut [Block], id: BlockId) {
        let block = &mut table[id as usize];
        let bin = bin_of(block.bytes);
        let head = std::mem::replace(&mut self.heads[bin / 64][bin % 64], id);
        block.bin = bin as u16;
        block.bin_previous = NONE;
        block.bin_next = head;
        match table.get_mut(head as usize) {
            Some(head) => head.bin_previous = id,
            None => {
                self.words[bin / 64] |= 1 << (bin % 64);
                self.summary |= 1 << (bin / 64);
            }
        }
    }

    /// Takes a block out of its bin, uncounted.
    #[inline(always)]
    pub(super) fn unlink(&mut self, table: &mut [Block], id: BlockId) {
        let Block { bin, bin_previous: before, bin_next: after, .. } = table[id as usize];
        if let Some(after) = table.get_mut(after as usize) {
            after.bin_previous = before;
        }
        match table.get_mut(before as usize) {
            Some(before) => before.bin_next = after,
            None => self.set_head(bin as usize, after),
        }
    }

    #[inline]
    fn head(&self, bin: usize) -> BlockId {
        self.heads[bin / 64][bin % 64]
    }

    #[inline(always)]
    fn set_head(&mut self, bin: usize, head: BlockId) {
        self.heads[bin / 64][bin % 64] = head;
        if head == NONE {
            let word = &mut self.words[bin / 64];
            *word &= !(1 << (bin % 64));
            if *word == 0 {
                self.summary &= !(1 << (bin / 64));
            }
        }
    }

    /// A block of at least `bytes`: nearly the smallest, and among equals nearly the lowest.
    #[inline]
    pub(crate) fn find(&self, blocks: &BlockTable, bytes: Bytes) -> Option<BlockId> {
        let bin = bin_of(bytes);
        // A bin holds sizes within 3 %: its own bin may have blocks that are too small.
        if let Some(id) = self.best_of(blocks, self.head(bin), bytes) {
            return Some(id);
        }
        let bin = self.next_bin(bin + 1)?;
        self.best_of(blocks, self.head(bin), bytes)
    }

    /// The first block of the first bin from `bin` on that has any.
    #[inline]
    pub(crate) fn first_from(&self, bin: usize) -> Option<BlockId> {
        Some(self.head(self.next_bin(bin)?))
    }

    #[inline]
    fn best_of(&self, blocks: &BlockTable, head: BlockId, bytes: Bytes) -> Option<BlockId> {
        let mut best = None;
        let mut best_key = (Bytes::MAX, u64::MAX);
        let mut id = head;
        for _ in 0..SCAN {
            if id == NONE {
                break;
            }
            let block = &blocks[id];
            let key = (block.bytes, block.start);
            if block.bytes >= bytes && key < best_key {
                best = Some(id);
                best_key = key;
            }
            id = block.bin_next;
        }
        best
    }

    /// The first bin from `from` on that is not empty.
    #[inline]
    pub(crate) fn next_bin(&self, from: usize) -> Option<usize> {
        if from >= BIN_COUNT {
            return None;
        }
        let word = from / 64;
        let here = self.words[word] & (!0 << (from % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        if word + 1 >= WORDS {
            return None;
        }
        let above = self.summary & (!0 << (word + 1));
        if above == 0 {
            return None;
        }
        let word = above.trailing_zeros() as usize;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// Whether there may be a block of at least `bytes`, by a look at the bitmap alone: whoever
    /// goes through the heaps of thousands of streams would miss the cache at each one's bins.
    pub(crate) fn may_have(&self, bytes: Bytes) -> bool {
        self.next_bin(bin_of(bytes)).is_some()
    }

    /// Every block of at least `bytes`, by bin.
    #[inline]
    pub(crate) fn at_least<'a>(&'a self, blocks: &'a BlockTable, bytes: Bytes) -> AtLeast<'a> {
        let bin = bin_of(bytes);
        let word = bin / 64;
        let above = self.words[word] & (!1 << (bin % 64));
        let row = &self.heads[word];
        AtLeast { index: self, blocks, bytes, word, row, above, id: row[bin % 64] }
    }

    /// The size of the largest block; 0 where there is none.
    pub(crate) fn largest(&self, blocks: &BlockTable) -> Bytes {
        let Some(word) = self.summary.checked_ilog2() else {
            return 0;
        };
        let Some(bit) = self.words[word as usize].checked_ilog2() else {
            return 0;
        };
        let mut id = self.heads[word as usize][bit as usize];
        let mut largest = 0;
        while id != NONE {
            largest = largest.max(blocks[id].bytes);
            id = blocks[id].bin_next;
        }
        largest
    }
}

/// What [`FreeIndex::at_least`] goes through.
pub(crate) struct AtLeast<'a> {
    index: &'a FreeIndex,
    blocks: &'a BlockTable,
    bytes: Bytes,
    /// The word of the bin that it is in, its row, and the bits in it of bins that are still to
    /// come.
    word: usize,
    row: &'a Row,
    above: u64,
    id: BlockId,
}

impl<'a> Iterator for AtLeast<'a> {
    type Item = (BlockId, &'a Block);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let ended = self.id == NONE;
            if ended & (self.above == 0) {
                let words = NonZeroU64::new(self.index.summary & (!1 << self.word))?;
                self.word = words.trailing_zeros() as usize;
                self.row = self.index.heads.get(self.word)?;
                self.above = self.index.words[self.word];
            }
            // How many blocks a bin has cannot be foreseen: a branch would cost more than this.
            let first = self.row[self.above.trailing_zeros() as usize % 64];
            let above = self.above & self.above.wrapping_sub(1);
            self.id = select_unpredictable(ended, first, self.id);
            self.above = select_unpredictable(ended, above, self.above);
            let (id, block) = (self.id, &self.blocks[self.id]);
            self.id = block.bin_next;
            if block.bytes >= self.bytes {
                return Some((id, block));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ArenaKind, Heap};
    use super::*;
    use crate::units::GRANULE;

    #[test]
    fn blocks_that_are_long_enough_come_by_bin_and_none_is_left_out() {
        let mut heap = Heap::new(None);
        let mut sizes = Vec::new();
        for k in 0..40u32 {
            // Close together, each twice, and then beyond some words without a block.
            let bytes = u64::from(1 + k / 2 % 10 + k / 20 * 200) * GRANULE;
            heap.add_segment(u64::from(k + 1) << 32, bytes, ArenaKind::Large);
            sizes.push(bytes);
        }
        sizes.sort_unstable();
        let index = &heap.arenas[ArenaKind::Large as usize].free;
        for &least in [1, GRANULE - 1, GRANULE + 1].iter().chain(&sizes) {
            let found = index.at_least(&heap.blocks, least).map(|(_, block)| block.bytes);
            let mut found: Vec<_> = found.collect();
            assert!(found.is_sorted_by_key(|&bytes| bin_of(bytes)), "of at least {least}");
            found.sort_unstable();
            assert!(sizes.iter().filter(|&&bytes| bytes >= least).eq(&found), "of {least}");
        }
        assert_eq!(index.at_least(&heap.blocks, u64::MAX / 2).count(), 0);
    }
}
