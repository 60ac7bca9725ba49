//! Counters by device, for user functions as the source of memory.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::metadata::MAX_DEVICES;
use crate::error::{Error, Result};
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

/// What must be seen by all threads at once: what is live, and the peaks of it.
///
/// A peak by size is exact. The peak of both sizes together is taken at the increase of one of
/// them, with the other as it is then: exact unless threads change both at the same moment.
#[repr(align(128))]
pub(super) struct DeviceCounters {
    small: Live,
    large: Live,
    peak_count: AtomicI64,
    peak_bytes: AtomicI64,
    out_of_memory: AtomicI64,
    fraction: AtomicU64,
}

#[derive(Default)]
struct Live {
    count: AtomicI64,
    bytes: AtomicI64,
    peak_count: AtomicI64,
    peak_bytes: AtomicI64,
}

impl DeviceCounters {
    fn new() -> DeviceCounters {
        DeviceCounters {
            small: Live::default(),
            large: Live::default(),
            peak_count: AtomicI64::new(0),
            peak_bytes: AtomicI64::new(0),
            out_of_memory: AtomicI64::new(0),
            fraction: AtomicU64::new(1.0f64.to_bits()),
        }
    }

    #[inline]
    pub(super) fn allocated(&self, bytes: Bytes) {
        let (own, other) =
            if is_small(bytes) { (&self.small, &self.large) } else { (&self.large, &self.small) };
        let bytes = bytes as i64;
        let count = own.count.fetch_add(1, SeqCst) + 1;
        let bytes = own.bytes.fetch_add(bytes, SeqCst) + bytes;
        raise(&own.peak_count, count);
        raise(&own.peak_bytes, bytes);
        raise(&self.peak_count, count + other.count.load(SeqCst));
        raise(&self.peak_bytes, bytes + other.bytes.load(SeqCst));
    }

    #[inline]
    pub(super) fn freed(&self, bytes: Bytes) {
        let own = if is_small(bytes) { &self.small } else { &self.large };
        own.count.fetch_sub(1, SeqCst);
        own.bytes.fetch_sub(bytes as i64, SeqCst);
    }

    /// Counts a failed request; gives the bytes that are live.
    pub(super) fn out_of_memory(&self) -> Bytes {
        self.out_of_memory.fetch_add(1, Relaxed);
        (self.small.bytes.load(SeqCst) + self.large.bytes.load(SeqCst)).max(0) as Bytes
    }

    pub(super) fn fraction(&self) -> f64 {
        f64::from_bits(self.fraction.load(Relaxed))
    }

    pub(super) fn set_fraction(&self, fraction: f64) {
        self.fraction.store(fraction.to_bits(), Relaxed);
    }

    pub(super) fn reset_peaks(&self) {
        let (small, large) = (&self.small, &self.large);
        for live in [small, large] {
            live.peak_count.store(live.count.load(SeqCst), SeqCst);
            live.peak_bytes.store(live.bytes.load(SeqCst), SeqCst);
        }
        self.peak_count.store(small.count.load(SeqCst) + large.count.load(SeqCst), SeqCst);
        self.peak_bytes.store(small.bytes.load(SeqCst) + large.bytes.load(SeqCst), SeqCst);
    }

    pub(super) fn reset_accumulated(&self) {
        self.out_of_memory.store(0, Relaxed);
    }

    /// Every request is the source's own: what is allocated, active and reserved is the same.
    pub(super) fn statistics(&self, totals: Totals) -> DeviceStatistics {
        let counts = StatArray {
            small_pool: self.small.counts(totals.small),
            large_pool: self.large.counts(totals.large),
            all: Stat::default(),
        };
        let bytes = StatArray {
            small_pool: self.small.bytes(totals.small),
            large_pool: self.large.bytes(totals.large),
            all: Stat::default(),
        };
        let counts = StatArray { all: both(&counts, &self.peak_count), ..counts };
        let bytes = StatArray { all: both(&bytes, &self.peak_bytes), ..bytes };
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

impl Live {
    fn counts(&self, sums: Sums) -> Stat {
        Stat {
            current: self.count.load(SeqCst),
            peak: self.peak_count.load(SeqCst),
            allocated: sums.allocations,
            freed: sums.frees,
        }
    }

    fn bytes(&self, sums: Sums) -> Stat {
        Stat {
            current: self.bytes.load(SeqCst),
            peak: self.peak_bytes.load(SeqCst),
            allocated: sums.allocated_bytes,
            freed: sums.freed_bytes,
        }
    }
}

fn both(array: &StatArray, peak: &AtomicI64) -> Stat {
    let (small, large) = (array.small_pool, array.large_pool);
    Stat {
        current: small.current + large.current,
        peak: peak.load(SeqCst),
        allocated: small.allocated + large.allocated,
        freed: small.freed + large.freed,
    }
}

/// Requests of at most 1 MiB are PyTorch's small pool.
#[inline]
fn is_small(bytes: Bytes) -> bool {
    bytes <= MIB
}

/// Raises a peak; most of the time it is high enough already, and nothing is written.
#[inline]
fn raise(peak: &AtomicI64, value: i64) {
    if peak.load(Relaxed) < value {
        peak.fetch_max(value, SeqCst);
    }
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
