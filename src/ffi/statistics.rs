//! Statistics on their way over the bridge.

use super::records::ffi::{StatArrayRecord, StatRecord, StatsRecord};
use crate::observe::{DeviceStatistics, Stat, StatArray};

impl From<Stat> for StatRecord {
    fn from(stat: Stat) -> StatRecord {
        let Stat { current, peak, allocated, freed } = stat;
        StatRecord { current, peak, allocated, freed }
    }
}

impl From<StatRecord> for Stat {
    fn from(stat: StatRecord) -> Stat {
        let StatRecord { current, peak, allocated, freed } = stat;
        Stat { current, peak, allocated, freed }
    }
}

impl From<StatArray> for StatArrayRecord {
    fn from(array: StatArray) -> StatArrayRecord {
        StatArrayRecord {
            all: array.all.into(),
            small_pool: array.small_pool.into(),
            large_pool: array.large_pool.into(),
        }
    }
}

impl From<StatArrayRecord> for StatArray {
    fn from(array: StatArrayRecord) -> StatArray {
        StatArray {
            all: array.all.into(),
            small_pool: array.small_pool.into(),
            large_pool: array.large_pool.into(),
        }
    }
}

/// Field by field in both directions: the names are the same on both sides.
macro_rules! convert {
    ($from:ty, $to:ty, $($array:ident)*; $($number:ident)*) => {
        impl From<$from> for $to {
            fn from(from: $from) -> $to {
                Self { $($array: from.$array.into(),)* $($number: from.$number,)* }
            }
        }
    };
}

macro_rules! convert_both {
    ($($fields:tt)*) => {
        convert!(DeviceStatistics, StatsRecord, $($fields)*);
        convert!(StatsRecord, DeviceStatistics, $($fields)*);
    };
}

convert_both! {
    allocation segment active inactive_split allocated_bytes reserved_bytes active_bytes
    inactive_split_bytes requested_bytes oversize_allocations oversize_segments;
    num_alloc_retries num_ooms num_sync_all_streams num_device_alloc num_device_free max_split_size
}
