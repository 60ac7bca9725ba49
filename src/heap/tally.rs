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

/// One quantity of the small pool. The two stand side by side, rather than each with those of other
/// quantities, since compilers would add those as vectors, which takes longer.
#[derive(Clone, Copy, Debug, Default)]
struct Small {
    room: i64,
    added: i64,
}

/// One quantity of the large pool.
#[derive(Clone, Copy, Debug, Default)]
struct Large {
    live: i64,
    limit: i64,
    added: i64,
}

/// Counts of one heap, so laid out that the hot path touches one line and branches once.
///
/// Each is an array of three: allocations, their bytes, the bytes asked for (those of blocks that
/// wait included, as in PyTorch). Of the small pool it is kept how much each may grow before it
/// exceeds its limit, and everything ever added; what is live is the limit less the room.
///
/// The limit is what neither the small pool's lease nor that of everything can be exceeded below,
/// so that an allocation that exceeds a lease is one that turns the sign of the room. It depends on
/// the large pool, and is found anew by each allocation there; a free there leaves it lower than it
/// need be.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(crate) struct Tally {
    small: [Small; 3],
    large: [Large; 3],
    limit: [i64; 3],
    /// What the small pool, and what both pools together may come to.
    limit_small: [i64; 3],
    limit_all: [i64; 3],
    /// Whether an allocation exceeded a lease, which is to be extended before the heap's lock is
    /// given back.
    exceeded: bool,
    /// Blocks that wait for other streams, and their bytes, by pool.
    waiting: [[i64; 2]; 2],
    /// How far each quantity may grow without a word to the device's peaks (see `engine::peaks`).
    leases: [i64; METRICS],
}

impl Tally {
    /// The bytes in front that the hot path touches.
    pub(crate) const HOT: usize = std::mem::offset_of!(Tally, large);

    /// Counts an allocation.
    pub(crate) fn allocate(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        let look = match arena {
            ArenaKind::Small => self.allocate_small(bytes, requested),
            ArenaKind::Large => self.allocate_large(bytes, requested),
        };
        if look {
            self.look_into();
        }
    }

    /// Counts an allocation of the small pool. True where a lease may be exceeded, and `look_into`
    /// is to be called.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "zipped iterators are not unrolled here")]
    pub(crate) fn allocate_small(&mut self, bytes: Bytes, requested: Bytes) -> bool {
        let values = [1, bytes as i64, requested as i64];
        let mut signs = 0;
        for k in 0..3 {
            self.small[k].added += values[k];
            self.small[k].room -= values[k];
            signs |= self.small[k].room;
        }
        signs < 0
    }

    /// Counts an allocation of the large pool in the same way.
    #[inline(always)]
    pub(crate) fn allocate_large(&mut self, bytes: Bytes, requested: Bytes) -> bool {
        let values = [1, bytes as i64, requested as i64];
        let mut signs = 0;
        for (k, value) in values.into_iter().enumerate() {
            let large = &mut self.large[k];
            large.added += value;
            large.live += value;
            signs |= (large.limit - large.live) | self.find_room(k);
        }
        signs < 0
    }

    /// Finds the room of the small pool anew, of which the large pool leaves more or less than
    /// before.
    #[inline(always)]
    fn find_room(&mut self, k: usize) -> i64 {
        let limit = self.limit_small[k].min(self.limit_all[k] - self.large[k].live);
        self.small[k].room += limit - self.limit[k];
        self.limit[k] = limit;
        self.small[k].room
    }

    /// Looks into it, where an allocation may have exceeded a lease: mostly there is room after all
    /// that frees of the large pool left.
    #[inline]
    pub(crate) fn look_into(&mut self) {
        let signs =
            [0, 1, 2].map(|k| (self.large[k].limit - self.large[k].live) | self.find_room(k));
        if signs[0] | signs[1] | signs[2] < 0 {
            self.find_limits();
        }
    }

    /// Finds the limits that the leases come to now, and whether one is exceeded.
    fn find_limits(&mut self) {
        for k in 0..3 {
            // While nothing waits, what is active is what is allocated.
            let [all, small, large] = [0, 1, 2].map(|of| self.leases[3 * k + of]);
            let (limit_all, limit_small, limit_large) =
                match self.waiting.map(|pool| pool.get(k).copied()) {
                    [Some(in_small), Some(in_large)] => {
                        let active = |of: usize| self.leases[metric::ACTIVE + 3 * k + of];
                        (
                            all.min(active(0) - in_small - in_large),
                            small.min(active(1) - in_small),
                            large.min(active(2) - in_large),
                        )
                    }
                    _ => (all, small, large),
                };
            let live = self.live_small(k);
            let limit = limit_small.min(limit_all - self.large[k].live);
            (self.limit[k], self.small[k].room) = (limit, limit - live);
            (self.limit_small[k], self.limit_all[k]) = (limit_small, limit_all);
            self.large[k].limit = limit_large;
            self.exceeded |= live > limit || self.large[k].live > limit_large;
        }
    }

    /// Whether a lease is exceeded, as far as [`find_limits`](Tally::find_limits) saw.
    #[inline]
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded
    }

    pub(crate) fn leases(&self) -> &[i64; METRICS] {
        &self.leases
    }

    /// Sets the leases, of which none is less than the value now.
    pub(crate) fn set_leases(&mut self, leases: [i64; METRICS]) {
        debug_assert!(leases.iter().zip(self.currents()).all(|(lease, value)| *lease >= value));
        (self.leases, self.exceeded) = (leases, false);
        self.find_limits();
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
        // At a peak of the count, where one block follows another, the next may be a small one.
        self.find_room(0);
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
        self.limit[k] - self.small[k].room
    }

    /// What is live of one pool.
    fn live(&self, pool: usize) -> [i64; 3] {
        [0, 1, 2].map(|k| if pool == 0 { self.live_small(k) } else { self.large[k].live })
    }

    /// The owner freed a block that other streams still use: it is not allocated, but active.
    pub(crate) fn defer(&mut self, arena: ArenaKind, bytes: Bytes) {
        let pool = arena as usize & 1;
        self.subtract(arena, [1, bytes as i64, 0]);
        self.waiting[pool][0] += 1;
        self.waiting[pool][1] += bytes as i64;
        self.find_limits();
    }

    /// The other streams are done with it.
    pub(crate) fn complete(&mut self, arena: ArenaKind, bytes: Bytes, requested: Bytes) {
        let pool = arena as usize & 1;
        self.waiting[pool][0] -= 1;
        self.waiting[pool][1] -= bytes as i64;
        self.subtract(arena, [0, 0, requested as i64]);
        self.find_limits();
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

    /// How many allocations were ever counted.
    pub(crate) fn allocations(&self) -> u64 {
        (self.small[0].added + self.large[0].added) as u64
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

/// What a heap keeps of its part in finding the device's peaks (see `engine::peaks`), whether its
/// calls take the hot path, and what lies at hand: in one word, so that most calls ask once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn(u32);

/// The hot path may free here: nothing keeps it out, and the heap is a holder.
const READY: u32 = 1;
/// Its leases may be above its values.
const HOLDER: u32 = 2;
/// The stream is about to be destroyed, or was: the next allocation is to be seen to be one of a
/// new stream. This keeps the hot path out.
const RETIRED: u32 = 4;
/// Calls are recorded. This does, too.
const RECORDED: u32 = 8;
const BARRED: u32 = RETIRED | RECORDED;
/// Where the units of the block at hand begin.
const HELD: u32 = 16;

impl Turn {
    /// Whether the hot path may allocate here. What is no holder has no lease to spare, and becomes
    /// one as its lease is extended.
    #[inline(always)]
    pub(crate) fn allocates(self) -> bool {
        self.0 & BARRED == 0
    }

    /// The same, where no block is at hand.
    #[inline(always)]
    pub(crate) fn allocates_with_none_at_hand(self) -> bool {
        self.0 & (BARRED | u32::MAX << HELD) == 0
    }

    /// Whether the hot path may free here.
    #[inline(always)]
    pub(crate) fn is_ready(self) -> bool {
        self.0 & READY != 0
    }

    /// The length of the block at hand, in units of the arena of small requests; 0: there is none.
    #[inline(always)]
    pub(super) fn held(self) -> u32 {
        self.0 >> HELD
    }

    #[inline(always)]
    pub(super) fn set_held(&mut self, units: u32) {
        self.0 = self.0 & ((1 << HELD) - 1) | units << HELD;
    }

    pub(crate) fn is_retired(self) -> bool {
        self.0 & RETIRED != 0
    }

    pub(crate) fn is_holder(self) -> bool {
        self.0 & HOLDER != 0
    }

    pub(crate) fn set_holder(&mut self, holder: bool) {
        self.set(HOLDER, holder);
    }

    pub(crate) fn set_retired(&mut self, retired: bool) {
        self.set(RETIRED, retired);
    }

    pub(crate) fn set_recorded(&mut self, recorded: bool) {
        self.set(RECORDED, recorded);
    }

    fn set(&mut self, bit: u32, is_set: bool) {
        let bits = self.0 & !(bit | READY) | if is_set { bit } else { 0 };
        self.0 = bits | if bits & (HOLDER | BARRED) == HOLDER { READY } else { 0 };
    }
}
