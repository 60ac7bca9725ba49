//! The rest of a program: threads that allocate, work and free beside what a scenario looks at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use plugalloc::units::{Address, Bytes, MIB};

use super::Site;

/// Numbers that look random and are the same in every run (SplitMix64: Steele et al., 2014).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// A request of 4 bytes to `most`, small ones as often as large ones, a multiple of four.
    fn size(&mut self, most: Bytes) -> Bytes {
        let order = 2 + self.below(u64::from(most.ilog2()) - 2);
        ((1 << order) + self.below(1 << order)) / 4 * 4
    }
}

/// Tells threads to stop when it goes, also where the thread that has it panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `body` while other threads live on the site, each from a seed of its own.
pub(crate) fn among_others(site: &Site, seeds: std::ops::Range<u64>, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let guard = Stop(&stop);
        for seed in seeds {
            let stop = &stop;
            scope.spawn(move || live(site, stop, seed));
        }
        body();
        drop(guard);
    });
}

/// A block, its bytes and its value.
type Block = (Address, Bytes, u8);

/// Allocates, fills, checks and frees on streams of its own until it is told to stop, and empties
/// the cache now and then. What it cannot have it does without.
fn live(site: &Site, stop: &AtomicBool, seed: u64) {
    let mut numbers = Numbers::new(seed);
    let streams = [site.stream(), site.stream()];
    let mut blocks: [Vec<Block>; 2] = [Vec::new(), Vec::new()];
    while !stop.load(Ordering::Relaxed) {
        let which = numbers.below(2) as usize;
        let (stream, blocks) = (streams[which], &mut blocks[which]);
        if blocks.len() > 4 {
            let (at, bytes, value) = blocks.swap_remove(numbers.below(5) as usize);
            site.assert_painted((at, bytes), value, stream, "a block of another thread");
            site.free(at);
        }
        if numbers.below(16) == 0 {
            site.allocator.empty_cache().unwrap();
        }
        let (bytes, value) = (numbers.size(8 * MIB), numbers.below(256) as u8);
        match site.allocator.allocate(site.id, bytes, stream) {
            Ok(at) => {
                site.device().fill_async(at, value, bytes, stream).unwrap();
                blocks.push((at, bytes, value));
            }
            Err(error) => assert!(error.is_out_of_memory(), "{error}"),
        }
    }
    for (stream, blocks) in streams.into_iter().zip(blocks) {
        for (at, bytes, value) in blocks {
            site.assert_painted((at, bytes), value, stream, "a block of another thread");
            site.free(at);
        }
        site.end_stream(stream);
    }
}
