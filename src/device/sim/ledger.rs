//! What the calls of a device would have cost on a real one, by the prices measured on an H100.

use crate::error::DriverCall;
use crate::units::{Bytes, MIB};

/// The number of kinds of calls.
const CALLS: usize = DriverCall::ALL.len();

/// What was asked of a device since it was made or its ledger was reset.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Ledger {
    counts: [u64; CALLS],
    /// All calls together, failed ones included.
    pub total_calls: u64,
    /// What the calls that succeeded would have taken on an H100. Calls that were never measured,
    /// and the time spent waiting for work, count nothing.
    pub microseconds: f64,
    /// Physical memory that exists now: handles that are not released or are still mapped, and what
    /// `malloc` gave out, rounded up to the granule.
    pub used: Bytes,
    /// The most that `used` has been.
    pub used_peak: Bytes,
    /// Calls that named a stream which does not exist, as after its destruction. They are refused
    /// here; a driver may fault instead.
    pub calls_of_no_stream: u64,
}

impl Ledger {
    /// How often a call was made, failed ones included.
    pub fn calls(&self, call: DriverCall) -> u64 {
        self.counts[call as usize]
    }
}

/// The running counts behind a [`Ledger`].
#[derive(Debug)]
pub(super) struct Counters {
    counts: [u64; CALLS],
    nanoseconds: u64,
}

impl Counters {
    pub(super) fn new() -> Counters {
        Counters { counts: [0; CALLS], nanoseconds: 0 }
    }

    /// Counts one call.
    pub(super) fn count(&mut self, call: DriverCall) {
        self.counts[call as usize] += 1;
    }

    /// Adds the price of a call that succeeded.
    pub(super) fn charge(&mut self, nanoseconds: u64) {
        self.nanoseconds += nanoseconds;
    }

    pub(super) fn read(&self, used: Bytes, used_peak: Bytes, calls_of_no_stream: u64) -> Ledger {
        Ledger {
            counts: self.counts,
            total_calls: self.counts.iter().sum(),
            microseconds: self.nanoseconds as f64 / 1000.0,
            used,
            used_peak,
            calls_of_no_stream,
        }
    }
}

/// The sizes for which prices were measured.
const SIZES: [Bytes; 5] = [2 * MIB, 20 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB];

/// Nanoseconds at each of the sizes.
type Prices = [u64; 5];

const RESERVE: Prices = [900, 1_100, 4_100, 5_200, 8_900];
const CREATE: Prices = [13_600, 12_400, 34_400, 20_000, 67_200];
const MAP: Prices = [1_200, 1_100, 1_400, 1_700, 3_200];
const SET_ACCESS: Prices = [28_100, 28_100, 46_800, 52_300, 96_300];
const UNMAP: Prices = [18_400, 19_000, 27_600, 30_200, 47_200];
const RELEASE: Prices = [13_200, 30_200, 48_500, 219_300, 559_300];
const FREE_ADDRESS: Prices = [700, 900, 3_500, 4_100, 7_300];
const MALLOC: Prices = [48_600, 48_300, 76_800, 70_200, 222_900];
const FREE: Prices = [38_800, 55_900, 77_400, 186_100, 625_500];

/// An event that has completed was asked after.
pub(super) const QUERY_DONE: u64 = 420;
/// An event that has not completed was asked after.
pub(super) const QUERY_PENDING: u64 = 1_300;

/// What mapping or unmapping a handle takes more where network cards reach it.
pub(super) const RDMA: u64 = 5_600;

/// The price of a call on one handle, reservation or allocation of `bytes`, in nanoseconds.
pub(super) fn sized_price(call: DriverCall, bytes: Bytes) -> u64 {
    match call {
        // Address space holds no pages, so there is no reason to believe that its price keeps
        // growing beyond the largest reservation measured; the others do work for each page.
        DriverCall::Reserve => interpolate(&RESERVE, bytes.min(SIZES[4])),
        DriverCall::FreeAddress => interpolate(&FREE_ADDRESS, bytes.min(SIZES[4])),
        DriverCall::Create => interpolate(&CREATE, bytes),
        DriverCall::Map => interpolate(&MAP, bytes),
        DriverCall::SetAccess => interpolate(&SET_ACCESS, bytes),
        DriverCall::Unmap => interpolate(&UNMAP, bytes),
        DriverCall::Release => interpolate(&RELEASE, bytes),
        DriverCall::Malloc => interpolate(&MALLOC, bytes),
        DriverCall::Free => interpolate(&FREE, bytes),
        _ => 0,
    }
}

/// The price of a call that concerns no size, in nanoseconds.
pub(super) fn flat_price(call: DriverCall) -> u64 {
    match call {
        DriverCall::EventCreate => 300,
        DriverCall::EventRecord => 150,
        DriverCall::StreamWaitEvent => 140,
        DriverCall::MemoryInfo => 6_100,
        _ => 0,
    }
}

/// The price at a size: that of the smallest below the list, on the line between two points within
/// it, and on the last line prolonged above it.
fn interpolate(prices: &Prices, bytes: Bytes) -> u64 {
    if bytes <= SIZES[0] {
        return prices[0];
    }
    let above = SIZES.iter().position(|&size| bytes <= size).unwrap_or(SIZES.len() - 1);
    let (low, high) = (above - 1, above);
    let slope = (prices[high] as f64 - prices[low] as f64) / (SIZES[high] - SIZES[low]) as f64;
    (prices[low] as f64 + slope * (bytes - SIZES[low]) as f64).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_index_their_own_counter() {
        for (index, call) in DriverCall::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, index);
        }
    }

    #[test]
    fn prices_at_the_measured_sizes_are_the_measured_ones() {
        assert_eq!(sized_price(DriverCall::Create, 64 * MIB), 34_400);
        assert_eq!(sized_price(DriverCall::Release, 1024 * MIB), 559_300);
        assert_eq!(sized_price(DriverCall::Malloc, 512), 48_600);
    }

    #[test]
    fn prices_lie_on_the_line_between_two_points() {
        assert_eq!(sized_price(DriverCall::Release, 42 * MIB), (30_200 + 48_500) / 2);
        assert_eq!(sized_price(DriverCall::SetAccess, 1792 * MIB), 96_300 + 44_000);
        assert_eq!(sized_price(DriverCall::Reserve, 1 << 40), 8_900);
    }
}
