//! Peaks while threads are at work on streams of their own at the same time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use common::{Random, Rig};
use plugalloc::units::{Address, GIB, StreamId};

#[test]
fn totals_are_exact_and_peaks_bounded_for_threads_side_by_side() {
    const THREADS: u64 = 4;
    let rig = Rig::of(8 * GIB);
    let (now, seen) = (AtomicI64::new(0), AtomicI64::new(0));
    let results: Vec<(i64, i64)> = thread::scope(|scope| {
        let run = |thread: u64| {
            let mut random = Random::new(thread);
            let mut live: Vec<(Address, i64)> = Vec::new();
            let (mut own, mut own_peak, mut total) = (0, 0, 0);
            for _ in 0..3000 {
                if random.below(2) == 0 || live.is_empty() {
                    let address = rig.allocate(1 + random.below(512_000), StreamId(thread));
                    let bytes = rig.served(address);
                    live.push((address, bytes));
                    (own, total) = (own + bytes, total + bytes);
                    own_peak = own_peak.max(own);
                    let sum = now.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    seen.fetch_max(sum, Ordering::SeqCst);
                } else {
                    let at = random.below(live.len() as u64) as usize;
                    let (address, bytes) = live.swap_remove(at);
                    now.fetch_sub(bytes, Ordering::SeqCst);
                    own -= bytes;
                    rig.free(address);
                }
            }
            for (address, bytes) in live {
                now.fetch_sub(bytes, Ordering::SeqCst);
                rig.free(address);
            }
            (own_peak, total)
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let found = rig.statistics().allocated_bytes.all;
    let total: i64 = results.iter().map(|result| result.1).sum();
    assert_eq!((found.current, found.allocated, found.freed), (0, total, total));
    let bound: i64 = results.iter().map(|result| result.0).sum();
    let true_peak = seen.load(Ordering::SeqCst);
    assert!(found.peak >= true_peak, "{} is below what was live, {true_peak}", found.peak);
    assert!(found.peak <= bound, "{} is above the sum of the streams' peaks, {bound}", found.peak);
    rig.finish();
}
