//! What a heap has in use, counted in one place under the heap's lock.

use super::size::ArenaKind;
use crate::units::Bytes;

/// How many quantities have an exact peak: three (allocations, their bytes, the bytes asked for), and the
/// same again including blocks that wait for other streams, each in all and for both arenas.
pub(crate) const METRICS: usize = 15;

/// The place of a quantity among the [`METRICS`].
pub(crate) mod metric {
    pub(crate) const COUNT: usize = 0;
    pub(crate) const BYTES: usize = 3;
    pub(crate) const REQUESTED: usize = 6;
    pub(crate) const ACTIVE: usize = 9;
    pub(crate) const ACTIVE_BYTES: usize = 12;
}

/// Counts of one heap. Each quantity has three places: all, small, large.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// The values now.
    pub(crate) current: [i64; METRICS],
    /// The highest values since the heap's window began (see `engine::peaks`).
    pub(crate) window: [i64; METRICS],
    /// Everything ever added.
    pub(crate) added: [i64; METRICS],
}

impl Tally {
    #[inline]
    fn add(&mut self, metric: usize, arena: ArenaKind, value: i64) {
        for place in [metric, metric + 1 + arena as usize] {
            self.current[place] += value;
            self.added[place] += value;
            self.window[place] = self.window[place].max(self.current[place]);
        }
    }

    #[inline]
    fn subtract(&mut self, metric: usize, arena: ArenaKind, value: i64) {
        self.current[metric] -= value;
        self.current[metric + 1 + arena as usize] -= value;
    }

    #[inline]
    pub(crate) fn allocate(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        self.add(metric::COUNT, arena, 1);
        self.add(metric::BYTES, arena, bytes as i64);
        self.add(metric::REQUESTED, arena, requested as i64);
        self.add(metric::ACTIVE, arena, 1);
        self.add(metric::ACTIVE_BYTES, arena, bytes as i64);
    }

    #[inline]
    pub(crate) fn free(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        self.subtract(metric::COUNT, arena, 1);
        self.subtract(metric::BYTES, arena, bytes as i64);
        self.subtract(metric::REQUESTED, arena, requested as i64);
        self.subtract(metric::ACTIVE, arena, 1);
        self.subtract(metric::ACTIVE_BYTES, arena, bytes as i64);
    }

    /// The owner freed a block that other streams still use: it is not allocated, but active.
    pub(crate) fn defer(&mut self, arena: ArenaKind, bytes: Bytes) {
        self.subtract(metric::COUNT, arena, 1);
        self.subtract(metric::BYTES, arena, bytes as i64);
    }

    /// The other streams are done with it.
    pub(crate) fn complete(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        self.subtract(metric::REQUESTED, arena, requested as i64);
        self.subtract(metric::ACTIVE, arena, 1);
        self.subtract(metric::ACTIVE_BYTES, arena, bytes as i64);
    }
}

/// What a heap keeps of its part in finding the device's peaks (see `engine::peaks`).
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// The values when they were last added to the device's.
    pub(crate) folded: [i64; METRICS],
    /// For how many calls the heap need not become active.
    pub(crate) excused: u32,
    /// Whether it changed without being active.
    pub(crate) strayed: bool,
}
