//! Counters of one device, for user functions as the source of memory.

use crate::observe::{DeviceStatistics, Stat, StatArray};
use crate::units::{Bytes, MIB};

/// What was allocated from one device's source, and what of it is live.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceCounters {
    small: Quantities,
    large: Quantities,
    peak: Quantity,
    out_of_memory: i64,
    /// The share of the device's memory that was allowed last.
    pub(super) fraction: f64,
}

/// Of one size: what is live, the most that was, and everything allocated and freed since a reset.
#[derive(Clone, Copy, Debug, Default)]
struct Quantities {
    now: Quantity,
    peak: Quantity,
    allocated: Quantity,
    freed: Quantity,
}

#[derive(Clone, Copy, Debug, Default)]
struct Quantity {
    count: i64,
    bytes: i64,
}

impl Quantity {
    #[inline]
    fn one(bytes: Bytes) -> Quantity {
        Quantity { count: 1, bytes: bytes as i64 }
    }

    #[inline]
    fn plus(self, other: Quantity) -> Quantity {
        Quantity { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }

    #[inline]
    fn minus(self, other: Quantity) -> Quantity {
        Quantity { count: self.count - other.count, bytes: self.bytes - other.bytes }
    }

    /// Each no less than in the other.
    #[inline]
    fn raise(&mut self, other: Quantity) {
        self.count = self.count.max(other.count);
        self.bytes = self.bytes.max(other.bytes);
    }
}

impl Default for DeviceCounters {
    fn default() -> Self {
        let (small, large) = (Quantities::default(), Quantities::default());
        let peak = Quantity::default();
        DeviceCounters { small, large, peak, out_of_memory: 0, fraction: 1.0 }
    }
}

impl DeviceCounters {
    #[inline]
    fn of(&mut self, bytes: Bytes) -> &mut Quantities {
        if is_small(bytes) { &mut self.small } else { &mut self.large }
    }

    #[inline]
    fn live(&self) -> Quantity {
        self.small.now.plus(self.large.now)
    }

    #[inline]
    pub(super) fn allocated(&mut self, bytes: Bytes) {
        let own = self.of(bytes);
        own.now = own.now.plus(Quantity::one(bytes));
        own.allocated = own.allocated.plus(Quantity::one(bytes));
        own.peak.raise(own.now);
        let live = self.live();
        self.peak.raise(live);
    }

    #[inline]
    pub(super) fn freed(&mut self, bytes: Bytes) {
        let own = self.of(bytes);
        own.now = own.now.minus(Quantity::one(bytes));
        own.freed = own.freed.plus(Quantity::one(bytes));
    }

    /// Counts a failed request; gives the bytes that are live.
    pub(super) fn out_of_memory(&mut self) -> Bytes {
        self.out_of_memory += 1;
        self.live().bytes.max(0) as Bytes
    }

    pub(super) fn reset_peaks(&mut self) {
        self.small.peak = self.small.now;
        self.large.peak = self.large.now;
        self.peak = self.live();
    }

    pub(super) fn reset_accumulated(&mut self) {
        self.out_of_memory = 0;
        for size in [&mut self.small, &mut self.large] {
            (size.allocated, size.freed) = (Quantity::default(), Quantity::default());
        }
    }

    /// Every request is the source's own: what is allocated, active and reserved is the same.
    pub(super) fn statistics(&self) -> DeviceStatistics {
        let (small, large) = (self.small, self.large);
        let all = Quantities {
            now: self.live(),
            peak: self.peak,
            allocated: small.allocated.plus(large.allocated),
            freed: small.freed.plus(large.freed),
        };
        let stats = |of: fn(Quantity) -> i64| {
            let [all, small_pool, large_pool] = [all, small, large].map(|size| Stat {
                current: of(size.now),
                peak: of(size.peak),
                allocated: of(size.allocated),
                freed: of(size.freed),
            });
            StatArray { all, small_pool, large_pool }
        };
        let (counts, bytes) = (stats(|quantity| quantity.count), stats(|quantity| quantity.bytes));
        DeviceStatistics {
            allocation: counts,
            segment: counts,
            active: counts,
            allocated_bytes: bytes,
            reserved_bytes: bytes,
            active_bytes: bytes,
            requested_bytes: bytes,
            num_ooms: self.out_of_memory,
            num_device_alloc: counts.all.allocated,
            num_device_free: counts.all.freed,
            max_split_size: -1,
            ..DeviceStatistics::default()
        }
    }
}

/// Requests of at most 1 MiB are PyTorch's small pool.
#[inline]
fn is_small(bytes: Bytes) -> bool {
    bytes <= MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_both_sizes_is_their_sum_at_one_moment() {
        let mut counters = DeviceCounters::default();
        counters.allocated(MIB);
        counters.freed(MIB);
        counters.allocated(3 * MIB);
        let statistics = counters.statistics();
        assert_eq!(statistics.allocated_bytes.all.peak, 3 * MIB as i64);
        counters.allocated(MIB);
        let statistics = counters.statistics();
        assert_eq!(statistics.allocated_bytes.all.peak, 4 * MIB as i64);
        assert_eq!(statistics.allocation.all.peak, 2);
    }

    #[test]
    fn a_reset_brings_the_peak_to_what_is_live() {
        let mut counters = DeviceCounters::default();
        counters.allocated(512);
        counters.allocated(512);
        counters.freed(512);
        counters.reset_peaks();
        let statistics = counters.statistics();
        assert_eq!(statistics.allocation.all.peak, 1);
        assert_eq!(statistics.allocated_bytes.small_pool.peak, 512);
    }
}
