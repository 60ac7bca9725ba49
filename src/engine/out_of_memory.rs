//! The report of an out-of-memory error.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::grow::Request;
use super::{Engine, Growth};
use crate::error::{Error, OutOfMemory, StreamUsage};
use crate::heap::metric;
use crate::units::{Bytes, GRANULE, format_bytes};

/// How many streams a report lists, those that hold most first.
const STREAMS: usize = 8;

impl Engine {
    /// The error for a request that failed, with the state as it is.
    pub(super) fn out_of_memory(&self, growth: &mut Growth, request: Request) -> Error {
        let total = self.total;
        let free = self.device.memory_info().map_or(0, |info| info.free);
        let mut report = OutOfMemory {
            requested: request.requested,
            device: self.index as i32,
            total,
            free,
            reserved: growth.store.reserved.current as Bytes,
            limit: growth.store.limit.min(total),
            ..OutOfMemory::default()
        };
        let mut cached = 0;
        let mut streams = BTreeMap::new();
        for (_, shard) in self.shards.iter() {
            let heap = shard.heap.lock();
            let value = |metric: usize| heap.tally.current(metric) as Bytes;
            let usage = StreamUsage {
                stream: shard.stream,
                allocated: value(metric::BYTES),
                cached: heap.cached(),
            };
            report.allocated += usage.allocated;
            report.pending += value(metric::ACTIVE_BYTES) - usage.allocated;
            report.largest_free_block = report.largest_free_block.max(heap.largest_free());
            cached += usage.cached;
            match streams.entry(shard.stream) {
                Entry::Vacant(entry) => drop(entry.insert(usage)),
                Entry::Occupied(mut entry) => {
                    let sum = entry.get_mut();
                    sum.allocated += usage.allocated;
                    sum.cached += usage.cached;
                }
            }
        }
        if cached > 0 {
            report.fragmentation = 1.0 - report.largest_free_block as f64 / cached as f64;
        }
        report.streams = streams.into_values().collect();
        report.streams.sort_by_key(|usage| std::cmp::Reverse(usage.allocated + usage.cached));
        report.streams.truncate(STREAMS);
        let pool = self.shards.get(request.shard).and_then(|shard| shard.pool());
        report.hint = match pool.filter(|pool| pool.source.is_some()) {
            Some(pool) => format!(
                "The request is of the private pool ({}, {}), whose own allocator gave no segment \
                 for it.",
                pool.id.0, pool.id.1
            ),
            None => self.hint(&report, cached),
        };
        Error::OutOfMemory(Box::new(report))
    }

    /// What would help, given what is configured and what was found.
    fn hint(&self, report: &OutOfMemory, cached: Bytes) -> String {
        if report.requested > report.total {
            return "The request is more than the device has.".to_owned();
        }
        if report.limit < report.total && report.requested <= report.free {
            return format!(
                "The device has room: the memory fraction allows {} only \
                 (per_process_memory_fraction).",
                format_bytes(report.limit)
            );
        }
        let taken = self.least_taken(report.requested);
        if taken > report.total {
            return format!(
                "Memory is taken from the device in whole pieces, for this request {}, which is \
                 more than the device has.",
                format_bytes(taken)
            );
        }
        let elsewhere = report.total.saturating_sub(report.free + report.reserved);
        if elsewhere >= report.requested {
            return format!(
                "{} of the device is in use outside this allocator.",
                format_bytes(elsewhere)
            );
        }
        let unused = report.free + report.reserved.saturating_sub(report.allocated);
        let held = self.held_by_pools();
        if unused >= report.requested && unused.saturating_sub(held) < report.requested {
            return format!(
                "{} is free in private pools in use, for their own streams alone (graphs).",
                format_bytes(held)
            );
        }
        if unused >= report.requested && self.any_capture() {
            return "Memory of a stream that is being captured serves no other stream before the \
                    capture has ended."
                .to_owned();
        }
        if cached < report.requested && (report.requested..taken).contains(&report.free) {
            return format!(
                "Memory is taken from the device in whole pieces, for this request {}: what is \
                 free there is no use before allocations are freed.",
                format_bytes(taken)
            );
        }
        if cached < report.requested {
            return "The memory is in use: only freeing allocations helps.".to_owned();
        }
        if self.device.capabilities().virtual_memory.is_none() {
            return "Cached memory is fragmented, and this device has no virtual memory management \
                    to move it with."
                .to_owned();
        }
        if !self.virtual_memory {
            return "Cached memory is fragmented, and cannot be moved without virtual memory: \
                    expandable_segments:True would allow it."
                .to_owned();
        }
        if !self.config.steal {
            return "Memory cached by other streams could serve the request: steal:True would \
                    allow it."
                .to_owned();
        }
        "Cached memory lies in handles that live allocations share; a smaller max_handle_mb leaves \
         less of it."
            .to_owned()
    }

    /// What has to be taken from the device for a request where nothing is cached.
    fn least_taken(&self, requested: Bytes) -> Bytes {
        let (kind, rounded) = self.size_of(requested);
        match self.virtual_memory {
            _ if !self.is_caching() => rounded,
            true => rounded.next_multiple_of(GRANULE),
            false => self.segment_size(rounded, kind),
        }
    }

    /// Whether a stream with memory of this device is being captured. Those that were retired are
    /// not asked: a driver may fault at the name of a stream that is gone.
    pub(super) fn any_capture(&self) -> bool {
        let deferred = self.deferred.lock();
        let captured = |stream| deferred.is_captured(stream).unwrap_or(false);
        self.shards.iter().any(|(_, shard)| captured(shard.stream))
    }
}
