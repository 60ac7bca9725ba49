//! Exact peaks over heaps that are counted apart.
//!
//! Each heap counts for itself, and only one heap at a time is *active*: while it is, the others do
//! not change, so that the device's peak is the others' sum plus the active heap's own peak since
//! it became active (its *window*). A heap that is used while another is active becomes active
//! itself, which folds the other's window into the device's peaks. That costs tens of nanoseconds,
//! so that threads that work at the same time on heaps of their own must not do it at each call: a
//! heap whose turn came right after another thread's is *excused* for its next calls. Between two
//! reads while any heap was excused, peaks are an upper bound: the sum of the heaps' own peaks
//! since the first read, above the truth by at most what the heaps' values vary.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::padded::Padded;
use super::shards::{Shards, thread_number};
use crate::heap::{Heap, METRICS};

/// Calls for which a heap is excused once two threads were seen at work at the same time.
const EXCUSED_CALLS: u32 = 1024;
/// Two threads whose turns come closer to each other than this work at the same time.
const SAME_TIME_NS: u128 = 20_000;
/// How often that must be seen in a row.
const SAME_TIME_COUNT: u32 = 8;

const NOBODY: u32 = u32::MAX;

/// The peaks of one device.
#[derive(Debug)]
pub(crate) struct Peaks {
    active: AtomicU32,
    state: Padded<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Sum over heaps of what each had when it was last folded.
    total: [i64; METRICS],
    peak: [i64; METRICS],
    /// Whether heaps changed while another was active, since the last read.
    bound_only: bool,
    thread: usize,
    since: Instant,
    in_a_row: u32,
}

impl Peaks {
    pub(crate) fn new() -> Self {
        Peaks {
            active: AtomicU32::new(NOBODY),
            state: Padded(Mutex::new(State {
                total: [0; METRICS],
                peak: [0; METRICS],
                bound_only: false,
                thread: 0,
                since: Instant::now(),
                in_a_row: 0,
            })),
        }
    }

    /// Called with the heap locked, before it changes. False where its stream is retired.
    #[inline]
    pub(crate) fn enter(&self, shards: &Shards, index: u32, heap: &mut Heap) -> bool {
        if heap.turn.may_change() {
            return true;
        }
        self.switch(shards, index, heap);
        !heap.turn.retired
    }

    /// The stream of this heap, which is locked, retires: the heap is not active any more.
    pub(crate) fn retire(&self, index: u32, heap: &mut Heap) {
        heap.turn.retired = true;
        heap.turn.excused = 0;
        heap.turn.active = false;
        if self.active.load(Ordering::Relaxed) == index {
            self.state.lock().fold(heap);
            self.active.store(NOBODY, Ordering::Relaxed);
        }
    }

    #[cold]
    fn switch(&self, shards: &Shards, index: u32, heap: &mut Heap) {
        if heap.turn.retired {
            heap.turn.strayed = true;
            return;
        }
        let Some(mut state) = self.state.try_lock() else {
            return excuse(heap);
        };
        if state.at_the_same_time() {
            state.bound_only = true;
            return excuse(heap);
        }
        let active = self.active.load(Ordering::Relaxed);
        if let Some(shard) = shards.get(active) {
            let Some(mut other) = shard.heap.try_lock() else {
                state.bound_only = true;
                return excuse(heap);
            };
            state.fold(&mut other);
        }
        if heap.turn.strayed {
            state.bound_only = true;
            state.fold(heap);
        }
        self.active.store(index, Ordering::Relaxed);
        heap.turn.active = true;
    }

    /// Brings totals and peaks up to date over all heaps; each is locked in turn.
    pub(crate) fn read(&self, shards: &Shards) -> ([i64; METRICS], [i64; METRICS]) {
        let mut heaps: Vec<_> = shards.iter().map(|(_, shard)| shard.heap.lock()).collect();
        let mut state = self.state.lock();
        let strayed = heaps.iter().any(|heap| heap.turn.strayed);
        state.bound_only |= strayed;
        let mut bound = [0; METRICS];
        for heap in &mut heaps {
            state.fold(heap);
            for (sum, value) in bound.iter_mut().zip(heap.turn.high) {
                *sum += value;
            }
            heap.turn.high = heap.turn.folded;
        }
        if state.bound_only {
            for (peak, sum) in state.peak.iter_mut().zip(bound) {
                *peak = (*peak).max(sum);
            }
            state.bound_only = false;
        }
        self.active.store(NOBODY, Ordering::Relaxed);
        (state.total, state.peak)
    }

    /// Sets every peak to the current value.
    pub(crate) fn reset(&self, shards: &Shards) {
        let mut heaps: Vec<_> = shards.iter().map(|(_, shard)| shard.heap.lock()).collect();
        let mut state = self.state.lock();
        for heap in &mut heaps {
            state.fold(heap);
            heap.turn.high = heap.turn.folded;
        }
        state.peak = state.total;
        state.bound_only = false;
        self.active.store(NOBODY, Ordering::Relaxed);
    }

    /// The totals and peaks as last folded, and with this heap, which is locked: good enough for
    /// policy.
    pub(crate) fn estimate(&self, metric: usize, heap: &Heap) -> (i64, i64) {
        let state = self.state.lock();
        let others = state.total[metric] - heap.turn.folded[metric];
        let now = others + heap.tally.current(metric);
        (now, state.peak[metric].max(others + heap.tally.highs()[metric]))
    }
}

fn excuse(heap: &mut Heap) {
    heap.turn.excused = EXCUSED_CALLS;
    heap.turn.strayed = true;
}

impl State {
    /// Whether this thread's turn follows another's so closely, again and again, that both are at
    /// work.
    fn at_the_same_time(&mut self) -> bool {
        let thread = thread_number();
        if thread == self.thread {
            return false;
        }
        let now = Instant::now();
        let close = now.duration_since(self.since).as_nanos() < SAME_TIME_NS;
        (self.thread, self.since) = (thread, now);
        self.in_a_row = if close { self.in_a_row + 1 } else { 0 };
        self.in_a_row > SAME_TIME_COUNT
    }

    /// Brings what is known of a heap up to date.
    fn fold(&mut self, heap: &mut Heap) {
        let (now, high) = (heap.tally.currents(), heap.tally.highs());
        for k in 0..METRICS {
            let others = self.total[k] - heap.turn.folded[k];
            self.peak[k] = self.peak[k].max(others + high[k]);
            self.total[k] = others + now[k];
            heap.turn.high[k] = heap.turn.high[k].max(high[k]);
        }
        heap.tally.begin_window();
        heap.turn.folded = now;
        heap.turn.strayed = false;
        heap.turn.active = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{ArenaKind, metric};
    use crate::units::StreamId;

    /// Two heaps whose contents go up and down.
    struct Pair {
        shards: Shards,
        peaks: Peaks,
    }

    impl Pair {
        fn new() -> Pair {
            let shards = Shards::new(0, None);
            shards.for_stream(StreamId(0)).unwrap();
            shards.for_stream(StreamId(1)).unwrap();
            Pair { shards, peaks: Peaks::new() }
        }

        /// Counts an allocation of `bytes`, or the end of one where it is negative.
        fn change(&self, heap: u32, bytes: i64) {
            let mut heap_of = self.shards.get(heap).unwrap().heap.lock();
            self.peaks.enter(&self.shards, heap, &mut heap_of);
            let size = bytes.unsigned_abs();
            if bytes > 0 {
                heap_of.tally.allocate(ArenaKind::Large, size, size);
            } else {
                heap_of.tally.free(ArenaKind::Large, size, size);
            }
        }

        /// Lets a heap change for so many calls without becoming active.
        fn excuse(&self, heap: u32, calls: u32) {
            let mut heap_of = self.shards.get(heap).unwrap().heap.lock();
            excuse(&mut heap_of);
            heap_of.turn.excused = calls;
        }

        fn peak(&self) -> i64 {
            self.peaks.read(&self.shards).1[metric::BYTES]
        }
    }

    #[test]
    fn a_peak_that_an_excused_heap_took_part_in_is_not_lost() {
        let pair = Pair::new();
        pair.change(0, 1);
        pair.excuse(1, 1);
        pair.change(0, 100);
        pair.change(1, 100);
        pair.change(0, -100);
        // The second heap becomes active while it has much and the first has little.
        pair.change(1, 1);
        pair.change(1, -100);
        pair.change(0, 1);
        assert!(pair.peak() >= 201, "{}", pair.peak());
    }

    #[test]
    fn peaks_are_exact_again_after_a_read() {
        let pair = Pair::new();
        pair.change(0, 10);
        pair.excuse(1, 1);
        pair.change(1, 10);
        pair.change(0, -10);
        pair.change(1, -10);
        assert_eq!(pair.peak(), 20);
        for round in 1..20 {
            for heap in [0, 1] {
                pair.change(heap, 10 * round);
                pair.change(heap, -10 * round);
            }
        }
        assert_eq!(pair.peak(), 190);
    }

    #[test]
    fn the_bound_after_an_excuse_is_the_sum_of_the_heaps_own_peaks() {
        let pair = Pair::new();
        pair.change(0, 30);
        pair.change(0, -30);
        pair.excuse(1, 2);
        pair.change(1, 20);
        pair.change(1, -20);
        assert_eq!(pair.peak(), 50, "the truth is 30");
        pair.peaks.reset(&pair.shards);
        assert_eq!(pair.peak(), 0);
    }
}
