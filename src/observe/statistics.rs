//! Statistics, under the names of PyTorch's `torch.cuda.memory_stats()`.

pub use crate::stat::{Stat, StatArray};

/// The statistics of one device. Fields carry PyTorch's names; bytes are bytes.
///
/// Peaks are exact as long as streams take turns, in one thread or several. Where threads are at
/// work at the same time, a peak may be higher than the truth, usually by some percent: it is an
/// upper bound then, and at most about the sum of the streams' own peaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStatistics {
    /// Live allocations.
    pub allocation: StatArray,
    /// Whole segments taken with `cudaMalloc`; ranges of virtual memory are not counted, as in
    /// PyTorch.
    pub segment: StatArray,
    /// Blocks allocated, or freed and waiting for other streams.
    pub active: StatArray,
    /// Free blocks inside segments that were split; ranges of virtual memory are not counted.
    /// Counted when statistics are read: peaks and sums are those of the reads.
    pub inactive_split: StatArray,
    /// Bytes of live allocations, as they are served: multiples of 512 up to 16 KiB, then 16 sizes
    /// a power of two up to 1 MiB, then multiples of 4 KiB. A small allocation may be served by a
    /// block that is up to an eighth longer than that, and counts with the block's size.
    pub allocated_bytes: StatArray,
    /// Bytes taken from the device.
    pub reserved_bytes: StatArray,
    /// Bytes of active blocks.
    pub active_bytes: StatArray,
    /// Bytes of inactive split blocks.
    pub inactive_split_bytes: StatArray,
    /// Bytes asked for by the blocks that are active.
    pub requested_bytes: StatArray,
    /// Live allocations of `max_split_size` or more.
    /// Counted when statistics are read, as `inactive_split`.
    pub oversize_allocations: Stat,
    /// Segments of `max_split_size` or more.
    pub oversize_segments: Stat,
    /// Requests that succeeded or failed only after memory was reclaimed.
    pub num_alloc_retries: i64,
    /// Out-of-memory errors.
    pub num_ooms: i64,
    /// Times that every pending free of the device was waited for.
    pub num_sync_all_streams: i64,
    /// Times that memory was taken from the device.
    pub num_device_alloc: i64,
    /// Times that memory was given back to the device.
    pub num_device_free: i64,
    /// The limit above which blocks are not split, in bytes; -1: none.
    pub max_split_size: i64,
}

impl DeviceStatistics {
    /// Every statistic under its flat name, such as `allocated_bytes.all.peak`, in the order of
    /// names.
    ///
    /// ```
    /// let names = plugalloc::DeviceStatistics::default().named();
    /// assert!(names.iter().any(|(name, _)| name == "reserved_bytes.large_pool.peak"));
    /// ```
    pub fn named(&self) -> Vec<(String, i64)> {
        let mut out = Vec::with_capacity(128);
        let arrays = [
            ("allocation", &self.allocation),
            ("segment", &self.segment),
            ("active", &self.active),
            ("inactive_split", &self.inactive_split),
            ("allocated_bytes", &self.allocated_bytes),
            ("reserved_bytes", &self.reserved_bytes),
            ("active_bytes", &self.active_bytes),
            ("inactive_split_bytes", &self.inactive_split_bytes),
            ("requested_bytes", &self.requested_bytes),
        ];
        for (name, array) in arrays {
            push_stat(&mut out, &format!("{name}.all"), array.all);
            push_stat(&mut out, &format!("{name}.small_pool"), array.small_pool);
            push_stat(&mut out, &format!("{name}.large_pool"), array.large_pool);
        }
        push_stat(&mut out, "oversize_allocations", self.oversize_allocations);
        push_stat(&mut out, "oversize_segments", self.oversize_segments);
        for (name, value) in [
            ("num_alloc_retries", self.num_alloc_retries),
            ("num_ooms", self.num_ooms),
            ("num_sync_all_streams", self.num_sync_all_streams),
            ("num_device_alloc", self.num_device_alloc),
            ("num_device_free", self.num_device_free),
            ("max_split_size", self.max_split_size),
        ] {
            out.push((name.to_owned(), value));
        }
        out.sort();
        out
    }
}

fn push_stat(out: &mut Vec<(String, i64)>, name: &str, stat: Stat) {
    for (field, value) in [
        ("current", stat.current),
        ("peak", stat.peak),
        ("allocated", stat.allocated),
        ("freed", stat.freed),
    ] {
        out.push((format!("{name}.{field}"), value));
    }
}
