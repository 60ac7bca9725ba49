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

/// One quantity of the small pool: how much it may grow before it exceeds its limit, that limit,
/// and everything ever added. What is live is the limit less the room.
///
/// The limit is what neither the small pool's highest value nor that of everything can be exceeded
/// below, so that an allocation that makes a new highest value of either is one that turns the sign
/// of the room. It depends on the large pool: after an allocation there the limit is found anew.
#[derive(Clone, Copy, Debug, Default)]
struct Small {
    room: i64,
    limit: i64,
    added: i64,
}

/// One quantity of the large pool.
#[derive(Clone, Copy, Debug, Default)]
struct Large {
    live: i64,
    high: i64,
    added: i64,
}

/// Counts of one heap, so laid out that the hot path touches neighbouring lines and branches once.
///
/// Each is an array of three: allocations, their bytes, the bytes asked for (those of blocks that
/// wait included, as in PyTorch).
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(crate) struct Tally {
    small: [Small; 3],
    /// Negative where the next allocation of the small pool is to be looked at, whatever the room:
    /// the large pool has grown since the limits were found, or blocks wait for other streams.
    look: i64,
    large: [Large; 3],
    /// The highest values of the small pool and of both together, since the heap's window began
    /// (see `engine::peaks`).
    high_small: [i64; 3],
    high_all: [i64; 3],
    /// Whether any block waits for other streams.
    any_waiting: bool,
    /// Those that do, and their bytes, by pool.
    waiting: [[i64; 2]; 2],
    /// The highest values with blocks that wait, as far as any waited.
    high_active: [[i64; 2]; 3],
}

impl Tally {
    /// Counts an allocation.
    pub(crate) fn allocate(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        match arena {
            ArenaKind::Small => {
                if self.allocate_small(bytes, requested) {
                    self.raise();
                }
            }
            ArenaKind::Large => {
                if self.allocate_large(bytes, requested) {
                    self.raise();
                }
            }
        }
    }

    /// Counts an allocation of the large pool in the same way.
    #[inline(always)]
    pub(crate) fn allocate_large(&mut self, bytes: Bytes, requested: Bytes) -> bool {
        let values = [1, bytes as i64, requested as i64];
        let mut higher = self.any_waiting;
        for k in 0..3 {
            let large = &mut self.large[k];
            large.added += values[k];
            large.live += values[k];
            let all = large.live + self.small[k].limit - self.small[k].room;
            higher |= large.live > large.high || all > self.high_all[k];
        }
        self.look = -1;
        higher
    }

    /// Counts an allocation of the small pool, save for new highest values: true where there may be
    /// any, for which `raise` is to be called.
    #[inline(always)]
    pub(crate) fn allocate_small(&mut self, bytes: Bytes, requested: Bytes) -> bool {
        let values = [1, bytes as i64, requested as i64];
        let mut signs = self.look;
        for k in 0..3 {
            let small = &mut self.small[k];
            small.added += values[k];
            small.room -= values[k];
            signs |= small.room;
        }
        signs < 0
    }

    /// Brings the highest values up to date after an allocation.
    pub(crate) fn raise(&mut self) {
        for k in 0..3 {
            let (small, large) = (self.live_small(k), &mut self.large[k]);
            large.high = large.high.max(large.live);
            self.high_small[k] = self.high_small[k].max(small);
            self.high_all[k] = self.high_all[k].max(small + large.live);
            self.set_limit(k, small);
        }
        self.look = -i64::from(self.any_waiting);
        if self.any_waiting {
            self.raise_active();
        }
    }

    /// Sets the limit of a quantity of the small pool, given what is live there.
    fn set_limit(&mut self, k: usize, live: i64) {
        let limit = self.high_small[k].min(self.high_all[k] - self.large[k].live);
        (self.small[k].limit, self.small[k].room) = (limit, limit - live);
    }

    /// Counts the end of an allocation of the small pool.
    #[inline(always)]
    pub(crate) fn free_small(&mut self, bytes: Bytes, requested: Bytes) {
        self.small[0].room += 1;
        self.small[1].room += bytes as i64;
        self.small[2].room += requested as i64;
    }

    /// Counts the end of an allocation of the large pool.
    #[inline(always)]
    pub(crate) fn free_large(&mut self, bytes: Bytes, requested: Bytes) {
        self.large[0].live -= 1;
        self.large[1].live -= bytes as i64;
        self.large[2].live -= requested as i64;
    }

    /// Counts values that are not live any more.
    fn subtract(&mut self, arena: ArenaKind, values: [i64; 3]) {
        for (k, value) in values.into_iter().enumerate() {
            match arena {
                ArenaKind::Small => self.small[k].room += value,
                ArenaKind::Large => self.large[k].live -= value,
            }
        }
    }

    /// Counts the end of an allocation.
    pub(crate) fn free(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        self.subtract(arena, [1, bytes as i64, requested as i64]);
    }

    fn live_small(&self, k: usize) -> i64 {
        self.small[k].limit - self.small[k].room
    }

    /// What is live of one pool.
    fn live(&self, pool: usize) -> [i64; 3] {
        [0, 1, 2].map(|k| if pool == 0 { self.live_small(k) } else { self.large[k].live })
    }

    /// The owner freed a block that other streams still use: it is not allocated, but active.
    pub(crate) fn defer(&mut self, arena: ArenaKind, bytes: Bytes) {
        self.raise_active();
        let pool = arena as usize & 1;
        self.subtract(arena, [1, bytes as i64, 0]);
        self.waiting[pool][0] += 1;
        self.waiting[pool][1] += bytes as i64;
        (self.any_waiting, self.look) = (true, -1);
        self.raise_active();
    }

    /// The other streams are done with it.
    pub(crate) fn complete(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        let pool = arena as usize & 1;
        self.waiting[pool][0] -= 1;
        self.waiting[pool][1] -= bytes as i64;
        self.subtract(arena, [0, 0, requested as i64]);
        self.any_waiting = self.waiting != [[0; 2]; 2];
    }

    #[cold]
    fn raise_active(&mut self) {
        let mut all = [0; 2];
        for pool in 0..2 {
            let live = self.live(pool);
            for (k, sum) in all.iter_mut().enumerate() {
                let value = live[k] + self.waiting[pool][k];
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
        let live = [self.live(0), self.live(1)];
        let with_all = |of: &dyn Fn(usize) -> i64| [of(0) + of(1), of(0), of(1)];
        let [count, bytes, requested] = [0, 1, 2].map(|k| with_all(&|pool| live[pool][k]));
        let [active, active_bytes] =
            [0, 1].map(|k| with_all(&|pool| live[pool][k] + self.waiting[pool][k]));
        gather([count, bytes, requested, active, active_bytes])
    }

    /// The highest values since the window began.
    pub(crate) fn highs(&self) -> [i64; METRICS] {
        let [count, bytes, requested] =
            [0, 1, 2].map(|k| [self.high_all[k], self.high_small[k], self.large[k].high]);
        // While nothing waits, what is active is what is allocated.
        let active = |k: usize, of: [i64; 3]| {
            let with = &self.high_active;
            [of[0].max(with[2][k]), of[1].max(with[0][k]), of[2].max(with[1][k])]
        };
        gather([count, bytes, requested, active(0, count), active(1, bytes)])
    }

    /// Begins a new window.
    pub(crate) fn begin_window(&mut self) {
        for k in 0..3 {
            let (small, large) = (self.live_small(k), &mut self.large[k]);
            large.high = large.live;
            (self.high_small[k], self.high_all[k]) = (small, small + large.live);
            self.set_limit(k, small);
        }
        self.look = -i64::from(self.any_waiting);
        self.high_active = [[0; 2]; 3];
        self.raise_active();
    }

    /// Everything ever added, by quantity.
    pub(crate) fn added(&self) -> [i64; METRICS] {
        let [count, bytes, requested] = [0, 1, 2].map(|k| {
            let (small, large) = (self.small[k].added, self.large[k].added);
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
    /// Whether the heap is the active one.
    pub(crate) active: bool,
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

impl Turn {
    /// Whether the heap may change as it is: it is active, or excused from that for this call.
    #[inline]
    pub(crate) fn may_change(&mut self) -> bool {
        if self.active {
            return true;
        }
        if self.excused == 0 {
            return false;
        }
        self.excused -= 1;
        self.strayed = true;
        true
    }
}
