//! Counters by device, for user functions as the source of memory.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::metadata::MAX_DEVICES;
use crate::error::{Error, Result};
use crate::lock::Mutex;
use crate::observe::{DeviceStatistics, Stat, StatArray};
use crate::units::{Bytes, DeviceId, MIB};

/// The counters of every device, made when a device is first used.
pub(super) struct Counters {
    devices: Box<[OnceLock<Box<DeviceCounters>>]>,
}

impl Counters {
    pub(super) fn new() -> Counters {
        Counters { devices: (0..MAX_DEVICES).map(|_| OnceLock::new()).collect() }
    }

    /// The place of a device.
    pub(super) fn check(&self, device: DeviceId) -> Result<usize> {
        let index = device.index().filter(|index| *index < MAX_DEVICES);
        index.ok_or(Error::InvalidDevice { device, count: MAX_DEVICES })
    }

    #[inline]
    pub(super) fn device(&self, device: DeviceId) -> Result<&DeviceCounters> {
        let index = self.check(device)?;
        Ok(self.devices[index].get_or_init(|| Box::new(DeviceCounters::new())))
    }

    pub(super) fn copy_fractions(&self, from: &Counters) {
        for (place, other) in self.devices.iter().zip(&from.devices) {
            if let Some(other) = other.get() {
                let own = place.get_or_init(|| Box::new(DeviceCounters::new()));
                own.set_fraction(other.fraction());
            }
        }
    }
}

/// Increases and decreases since a reset, by size. Kept in the shards of the map, under their
/// locks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    small: Sums,
    large: Sums,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    allocations: i64,
    allocated_bytes: i64,
    frees: i64,
    freed_bytes: i64,
}

impl Totals {
    #[inline]
    pub(super) fn add_allocation(&mut self, bytes: Bytes) {
        let sums = self.of(bytes);
        sums.allocations += 1;
        sums.allocated_bytes += bytes as i64;
    }

    #[inline]
    pub(super) fn add_free(&mut self, bytes: Bytes) {
        let sums = self.of(bytes);
        sums.frees += 1;
        sums.freed_bytes += bytes as i64;
    }

    pub(super) fn add(&mut self, other: Totals) {
        self.small.add(other.small);
        self.large.add(other.large);
    }

    #[inline]
    fn of(&mut self, bytes: Bytes) -> &mut Sums {
        if is_small(bytes) { &mut self.small } else { &mut self.large }
    }
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.allocations += other.allocations;
        self.allocated_bytes += other.allocated_bytes;
        self.frees += other.frees;
        self.freed_bytes += other.freed_bytes;
    }
}

/// What must be seen by all threads at once: what is live, and the peaks of it, which are exact.
///
/// They stand behind one lock: taking it is the one atomic exchange that a call pays for them,
/// where counters that are atomic each would cost as much apiece.
#[repr(align(128))]
pub(super) struct DeviceCounters {
    live: Mutex<Live>,
    out_of_memory: AtomicI64,
    fraction: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Live {
    small: Quantities,
    large: Quantities,
    peak: Quantity,
}

/// What is live of one size, and the most that was.
#[derive(Clone, Copy, Default)]
struct Quantities {
    now: Quantity,
    peak: Quantity,
}

#[derive(Clone, Copy, Default)]
struct Quantity {
    count: i64,
    bytes: i64,
}

impl Quantity {
    #[inline]
    fn plus(self, other: Quantity) -> Quantity {
        Quantity { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }

    /// Each no less than in the other.
    #[inline]
    fn raise(&mut self, other: Quantity) {
        self.count = self.count.max(other.count);
        self.bytes = self.bytes.max(other.bytes);
    }
}

impl Live {
    #[inline]
    fn of(&mut self, bytes: Bytes) -> &mut Quantities {
        if is_small(bytes) { &mut self.small } else { &mut self.large }
    }

    fn all(&self) -> Quantity {
        self.small.now.plus(self.large.now)
    }
}

impl DeviceCounters {
    fn new() -> DeviceCounters {
        DeviceCounters {
            live: Mutex::new(Live::default()),
            out_of_memory: AtomicI64::new(0),
            fraction: AtomicU64::new(1.0f64.to_bits()),
        }
    }

    #[inline]
    pub(super) fn allocated(&self, bytes: Bytes) {
        let mut live = self.live.lock();
        let own = live.of(bytes);
        own.now = own.now.plus(Quantity { count: 1, bytes: bytes as i64 });
        own.peak.raise(own.now);
        let all = live.all();
        live.peak.raise(all);
    }

    #[inline]
    pub(super) fn freed(&self, bytes: Bytes) {
        let mut live = self.live.lock();
        let own = live.of(bytes);
        own.now = own.now.plus(Quantity { count: -1, bytes: -(bytes as i64) });
    }

    /// Counts a failed request; gives the bytes that are live.
    pub(super) fn out_of_memory(&self) -> Bytes {
        self.out_of_memory.fetch_add(1, Relaxed);
        self.live.lock().all().bytes.max(0) as Bytes
    }

    pub(super) fn fraction(&self) -> f64 {
        f64::from_bits(self.fraction.load(Relaxed))
    }

    pub(super) fn set_fraction(&self, fraction: f64) {
        self.fraction.store(fraction.to_bits(), Relaxed);
    }

    pub(super) fn reset_peaks(&self) {
        let mut live = self.live.lock();
        live.small.peak = live.small.now;
        live.large.peak = live.large.now;
        live.peak = live.all();
    }

    pub(super) fn reset_accumulated(&self) {
        self.out_of_memory.store(0, Relaxed);
    }

    /// Every request is the source's own: what is allocated, active and reserved is the same.
    pub(super) fn statistics(&self, totals: Totals) -> DeviceStatistics {
        let live = *self.live.lock();
        let all = Quantities { now: live.all(), peak: live.peak };
        let mut sums = totals.small;
        sums.add(totals.large);
        let counts = StatArray {
            all: all.counts(sums),
            small_pool: live.small.counts(totals.small),
            large_pool: live.large.counts(totals.large),
        };
        let bytes = StatArray {
            all: all.bytes(sums),
            small_pool: live.small.bytes(totals.small),
            large_pool: live.large.bytes(totals.large),
        };
        DeviceStatistics {
            allocation: counts,
            segment: counts,
            active: counts,
            allocated_bytes: bytes,
            reserved_bytes: bytes,
            active_bytes: bytes,
            requested_bytes: bytes,
            num_ooms: self.out_of_memory.load(Relaxed),
            num_device_alloc: counts.all.allocated,
            num_device_free: counts.all.freed,
            max_split_size: -1,
            ..DeviceStatistics::default()
        }
    }
}

impl Quantities {
    fn counts(&self, sums: Sums) -> Stat {
        Stat {
            current: self.now.count,
            peak: self.peak.count,
            allocated: sums.allocations,
            freed: sums.frees,
        }
    }

    fn bytes(&self, sums: Sums) -> Stat {
        Stat {
            current: self.now.bytes,
            peak: self.peak.bytes,
            allocated: sums.allocated_bytes,
            freed: sums.freed_bytes,
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
        let counters = DeviceCounters::new();
        counters.allocated(MIB);
        counters.freed(MIB);
        counters.allocated(3 * MIB);
        let statistics = counters.statistics(Totals::default());
        assert_eq!(statistics.allocated_bytes.all.peak, 3 * MIB as i64);
        counters.allocated(MIB);
        let statistics = counters.statistics(Totals::default());
        assert_eq!(statistics.allocated_bytes.all.peak, 4 * MIB as i64);
        assert_eq!(statistics.allocation.all.peak, 2);
    }

    #[test]
    fn a_reset_brings_the_peak_to_what_is_live() {
        let counters = DeviceCounters::new();
        counters.allocated(512);
        counters.allocated(512);
        counters.freed(512);
        counters.reset_peaks();
        let statistics = counters.statistics(Totals::default());
        assert_eq!(statistics.allocation.all.peak, 1);
        assert_eq!(statistics.allocated_bytes.small_pool.peak, 512);
    }
}
