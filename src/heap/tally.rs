//! What a heap has in use, counted in one place under the heap's lock.

use super::size::ArenaKind;
use crate::units::Bytes;

/// How many quantities have an exact peak: three (allocations, their bytes, the bytes asked for),
/// and two of them again including blocks that wait for other streams; each in all and for both of
/// PyTorch's pools.
pub(crate) const METRICS: usize = 15;

/// The place of a quantity among the [`METRICS`]: in all, then small, then large.
pub(crate) mod metric {
    pub(crate) const COUNT: usize = 0;
    pub(crate) const BYTES: usize = 3;
    pub(crate) const REQUESTED: usize = 6;
    pub(crate) const ACTIVE: usize = 9;
    pub(crate) const ACTIVE_BYTES: usize = 12;
}

/// Allocations, their bytes, the bytes asked for.
type Triple = [i64; 3];

/// Counts of one heap, so laid out that the hot path touches neighbouring lines and branches once.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(crate) struct Tally {
    /// Live blocks by pool; the bytes asked for include blocks that wait, as in PyTorch.
    live: [Triple; 2],
    /// The highest values since the heap's window began (see `engine::peaks`), by pool and in all.
    high: [Triple; 2],
    high_all: Triple,
    /// Everything ever added, by pool.
    added: [Triple; 2],
    /// Blocks that wait for other streams, and their bytes, by pool.
    waiting: [[i64; 2]; 2],
    /// Whether any block waits.
    any_waiting: bool,
    /// The highest values with blocks that wait, as far as any waited.
    high_active: [[i64; 2]; 3],
}

impl Tally {
    #[inline]
    pub(crate) fn allocate(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        let values = [1, bytes as i64, requested as i64];
        let pool = arena as usize & 1;
        let other = self.live[pool ^ 1];
        let (live, high) = (&mut self.live[pool], &self.high[pool]);
        let added = &mut self.added[pool];
        let mut higher = self.any_waiting;
        for k in 0..3 {
            live[k] += values[k];
            added[k] += values[k];
            higher |= live[k] > high[k] || live[k] + other[k] > self.high_all[k];
        }
        if higher {
            self.raise(pool);
        }
    }

    /// Brings the highest values up to date after an allocation: rarely needed in a steady state.
    #[cold]
    fn raise(&mut self, pool: usize) {
        for k in 0..3 {
            self.high[pool][k] = self.high[pool][k].max(self.live[pool][k]);
            let all = self.live[0][k] + self.live[1][k];
            self.high_all[k] = self.high_all[k].max(all);
        }
        if self.any_waiting {
            self.raise_active();
        }
    }

    #[inline]
    pub(crate) fn free(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        let live = &mut self.live[arena as usize & 1];
        live[0] -= 1;
        live[1] -= bytes as i64;
        live[2] -= requested as i64;
    }

    /// The owner freed a block that other streams still use: it is not allocated, but active.
    pub(crate) fn defer(&mut self, arena: ArenaKind, bytes: Bytes) {
        self.raise_active();
        let pool = arena as usize & 1;
        for (k, value) in [1, bytes as i64].into_iter().enumerate() {
            self.live[pool][k] -= value;
            self.waiting[pool][k] += value;
        }
        self.any_waiting = true;
        self.raise_active();
    }

    /// The other streams are done with it.
    pub(crate) fn complete(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        let pool = arena as usize & 1;
        self.waiting[pool][0] -= 1;
        self.waiting[pool][1] -= bytes as i64;
        self.live[pool][2] -= requested as i64;
        self.any_waiting = self.waiting != [[0; 2]; 2];
    }

    #[cold]
    fn raise_active(&mut self) {
        let mut all = [0; 2];
        for pool in 0..2 {
            for (k, sum) in all.iter_mut().enumerate() {
                let value = self.live[pool][k] + self.waiting[pool][k];
                *sum += value;
                self.high_active[pool][k] = self.high_active[pool][k].max(value);
            }
        }
        for (high, sum) in self.high_active[2].iter_mut().zip(all) {
            *high = (*high).max(sum);
        }
    }

    /// One quantity now.
    pub(crate) fn current(&self, metric: usize) -> i64 {
        self.currents()[metric]
    }

    /// Every quantity now.
    pub(crate) fn currents(&self) -> [i64; METRICS] {
        let with_all = |of: &dyn Fn(usize) -> i64| [of(0) + of(1), of(0), of(1)];
        let [count, bytes, requested] = [0, 1, 2].map(|k| with_all(&|pool| self.live[pool][k]));
        let [active, active_bytes] =
            [0, 1].map(|k| with_all(&|pool| self.live[pool][k] + self.waiting[pool][k]));
        gather([count, bytes, requested, active, active_bytes])
    }

    /// The highest values since the window began.
    pub(crate) fn highs(&self) -> [i64; METRICS] {
        let [count, bytes, requested] =
            [0, 1, 2].map(|k| [self.high_all[k], self.high[0][k], self.high[1][k]]);
        // While nothing waits, what is active is what is allocated.
        let active = |k: usize, of: [i64; 3]| {
            let with = &self.high_active;
            [of[0].max(with[2][k]), of[1].max(with[0][k]), of[2].max(with[1][k])]
        };
        gather([count, bytes, requested, active(0, count), active(1, bytes)])
    }

    /// Begins a new window.
    pub(crate) fn begin_window(&mut self) {
        self.high = self.live;
        for k in 0..3 {
            self.high_all[k] = self.live[0][k] + self.live[1][k];
        }
        self.high_active = [[0; 2]; 3];
        self.raise_active();
    }

    /// Everything ever added, by quantity.
    pub(crate) fn added(&self) -> [i64; METRICS] {
        let [count, bytes, requested] = [0, 1, 2].map(|k| {
            let (small, large) = (self.added[0][k], self.added[1][k]);
            [small + large, small, large]
        });
        gather([count, bytes, requested, count, bytes])
    }
}

fn gather(parts: [[i64; 3]; 5]) -> [i64; METRICS] {
    let mut out = [0; METRICS];
    for (place, value) in out.iter_mut().zip(parts.into_iter().flatten()) {
        *place = value;
    }
    out
}

/// What a heap keeps of its part in finding the device's peaks (see `engine::peaks`).
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// The values when they were last added to the device's.
    pub(crate) folded: [i64; METRICS],
    /// The highest values since the device's peaks were last read, as far as they were added.
    pub(crate) high: [i64; METRICS],
    /// For how many calls the heap need not become active.
    pub(crate) excused: u32,
    /// Whether it changed without being active.
    pub(crate) strayed: bool,
    /// Whether its stream is about to be destroyed, or was: it is not active then, so that the next
    /// allocation is seen to be one of a new stream.
    pub(crate) retired: bool,
}
