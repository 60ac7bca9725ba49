//! The free blocks of one arena, by size: a list a bin, and a two-level bitmap of bins that are not
//! empty, so that the next larger block is found in constant time (TLSF: Masmano et al., 2004).

use super::block::{BlockId, BlockTable, NONE};
use super::size::{BIN_COUNT, bin_of};
use crate::units::Bytes;

const WORDS: usize = BIN_COUNT.div_ceil(64);
/// How many blocks of a bin are compared before the best seen is taken.
const SCAN: usize = 8;

/// Free blocks by size.
#[derive(Debug)]
pub(crate) struct FreeIndex {
    heads: Box<[BlockId; BIN_COUNT]>,
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
            heads: Box::new([NONE; BIN_COUNT]),
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
        let bytes = blocks[id].bytes;
        let bin = bin_of(bytes);
        let head = self.heads[bin];
        {
            let block = &mut blocks[id];
            block.bin_previous = NONE;
            block.bin_next = head;
        }
        if head == NONE {
            self.words[bin / 64] |= 1 << (bin % 64);
            self.summary |= 1 << (bin / 64);
        } else {
            blocks[head].bin_previous = id;
        }
        self.heads[bin] = id;
        self.count += 1;
        self.bytes += bytes;
    }

    /// Takes a block out of its bin.
    #[inline]
    pub(crate) fn remove(&mut self, blocks: &mut BlockTable, id: BlockId) {
        let (bytes, before, after) = {
            let block = &blocks[id];
            (block.bytes, block.bin_previous, block.bin_next)
        };
        if after != NONE {
            blocks[after].bin_previous = before;
        }
        if before != NONE {
            blocks[before].bin_next = after;
        } else {
            self.set_head(bin_of(bytes), after);
        }
        self.count -= 1;
        self.bytes -= bytes;
    }

    #[inline]
    fn set_head(&mut self, bin: usize, head: BlockId) {
        self.heads[bin] = head;
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
        if let Some(id) = self.best_of(blocks, self.heads[bin], bytes) {
            return Some(id);
        }
        let bin = self.next_bin(bin + 1)?;
        self.best_of(blocks, self.heads[bin], bytes)
    }

    /// The first block of the first bin from `bin` on that has any.
    #[inline]
    pub(crate) fn first_from(&self, bin: usize) -> Option<BlockId> {
        Some(self.heads[self.next_bin(bin)?])
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

    /// Every block of at least `bytes`, by bin.
    #[inline]
    pub(crate) fn at_least<'a>(&'a self, blocks: &'a BlockTable, bytes: Bytes) -> AtLeast<'a> {
        let bin = bin_of(bytes);
        AtLeast { index: self, blocks, bytes, bin, id: self.heads[bin] }
    }

    /// The size of the largest block; 0 where there is none.
    pub(crate) fn largest(&self, blocks: &BlockTable) -> Bytes {
        let Some(word) = self.summary.checked_ilog2() else {
            return 0;
        };
        let Some(bit) = self.words[word as usize].checked_ilog2() else {
            return 0;
        };
        let mut id = self.heads[(word * 64 + bit) as usize];
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
    bin: usize,
    id: BlockId,
}

impl Iterator for AtLeast<'_> {
    type Item = BlockId;

    #[inline(always)]
    fn next(&mut self) -> Option<BlockId> {
        loop {
            while self.id == NONE {
                self.bin = self.index.next_bin(self.bin + 1)?;
                self.id = self.index.heads[self.bin];
            }
            let (id, block) = (self.id, &self.blocks[self.id]);
            self.id = block.bin_next;
            if block.bytes >= self.bytes {
                return Some(id);
            }
        }
    }
}
