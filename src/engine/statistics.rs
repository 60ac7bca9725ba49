//! Statistics of one device, added up over its heaps.

use std::sync::atomic::Ordering;

use super::Engine;
use super::peaks::Reading;
use crate::heap::{ArenaKind, METRICS, metric};
use crate::observe::{DeviceStatistics, Stat, StatArray};
use crate::units::Bytes;

/// What is counted under the lock on physical memory, and what was reset when.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) retries: i64,
    pub(super) synchronised: i64,
    segment: StatArray,
    oversize_segments: Stat,
    /// What is counted when it is read, by looking at every block: its peaks and sums are those of
    /// the reads.
    inactive_split: StatArray,
    inactive_split_bytes: StatArray,
    oversize_allocations: Stat,
    /// Accumulated values at the last reset.
    added: [i64; METRICS],
    /// Current values at the last reset of accumulated values.
    current: [i64; METRICS],
    ooms: i64,
}

impl Counters {
    fn stats(&mut self) -> impl Iterator<Item = &mut Stat> {
        let arrays = [&mut self.segment, &mut self.inactive_split, &mut self.inactive_split_bytes];
        let in_arrays = arrays.into_iter().flat_map(|array| {
            let StatArray { all, small_pool, large_pool } = array;
            [all, small_pool, large_pool]
        });
        in_arrays.chain([&mut self.oversize_segments, &mut self.oversize_allocations])
    }

    pub(super) fn segment_taken(&mut self, bytes: Bytes, kind: ArenaKind, limit: Option<Bytes>) {
        self.segment.all.increase(1);
        pool(&mut self.segment, kind).increase(1);
        if limit.is_some_and(|limit| bytes >= limit) {
            self.oversize_segments.increase(1);
        }
    }

    pub(super) fn segment_given(&mut self, bytes: Bytes, kind: ArenaKind, limit: Option<Bytes>) {
        self.segment.all.decrease(1);
        pool(&mut self.segment, kind).decrease(1);
        if limit.is_some_and(|limit| bytes >= limit) {
            self.oversize_segments.decrease(1);
        }
    }
}

/// Brings a statistic that is counted at reads to its value now.
fn update(stat: &mut Stat, now: i64) {
    match now - stat.current {
        more if more > 0 => stat.increase(more),
        less => stat.decrease(-less),
    }
}

fn update_all(array: &mut StatArray, now: [i64; 2]) {
    update(&mut array.all, now[0] + now[1]);
    update(&mut array.small_pool, now[0]);
    update(&mut array.large_pool, now[1]);
}

fn pool(array: &mut StatArray, kind: ArenaKind) -> &mut Stat {
    match kind {
        ArenaKind::Small => &mut array.small_pool,
        ArenaKind::Large => &mut array.large_pool,
    }
}

impl Engine {
    /// The statistics now.
    pub(crate) fn statistics(&self) -> DeviceStatistics {
        let mut growth = self.growth.lock();
        self.look_at_blocks(&mut growth.counters);
        let Reading { current, peak, added } = self.peaks.read(&self.shards);
        let base = &growth.counters;
        let stat = |k: usize| {
            let allocated = added[k] - base.added[k];
            let freed = allocated - (current[k] - base.current[k]);
            Stat { current: current[k], peak: peak[k], allocated, freed }
        };
        let array =
            |k: usize| StatArray { all: stat(k), small_pool: stat(k + 1), large_pool: stat(k + 2) };
        DeviceStatistics {
            allocation: array(metric::COUNT),
            segment: growth.counters.segment,
            active: array(metric::ACTIVE),
            inactive_split: growth.counters.inactive_split,
            allocated_bytes: array(metric::BYTES),
            reserved_bytes: growth.store.reserved_bytes(),
            active_bytes: array(metric::ACTIVE_BYTES),
            inactive_split_bytes: growth.counters.inactive_split_bytes,
            requested_bytes: array(metric::REQUESTED),
            oversize_allocations: growth.counters.oversize_allocations,
            oversize_segments: growth.counters.oversize_segments,
            num_alloc_retries: growth.counters.retries,
            num_ooms: self.ooms.load(Ordering::Relaxed) as i64 - growth.counters.ooms,
            num_sync_all_streams: growth.counters.synchronised,
            num_device_alloc: growth.store.device_allocs,
            num_device_free: growth.store.device_frees,
            max_split_size: self.config.max_split_size.map_or(-1, |bytes| bytes as i64),
        }
    }

    /// Counts what is counted by looking: only where there are segments, or a limit to splitting.
    fn look_at_blocks(&self, counters: &mut Counters) {
        let limit = self.config.max_split_size;
        let (mut pieces, mut bytes, mut oversize) = ([0; 2], [0; 2], 0);
        for (_, shard) in self.shards.iter() {
            let heap = shard.heap.lock();
            heap.unused_pieces(|kind, size| {
                pieces[kind as usize] += 1;
                bytes[kind as usize] += size as i64;
            });
            if let Some(limit) = limit {
                let live = heap.blocks().filter(|block| block.state.is_live());
                oversize += live.filter(|block| block.bytes >= limit).count() as i64;
            }
        }
        update_all(&mut counters.inactive_split, pieces);
        update_all(&mut counters.inactive_split_bytes, bytes);
        update(&mut counters.oversize_allocations, oversize);
    }

    /// Sets every peak to the current value.
    pub(crate) fn reset_peaks(&self) {
        let mut growth = self.growth.lock();
        self.peaks.reset(&self.shards);
        growth.store.reset_peaks();
        for stat in growth.counters.stats() {
            stat.reset_peak();
        }
    }

    /// Sets every accumulated count to zero.
    pub(crate) fn reset_accumulated(&self) {
        let mut growth = self.growth.lock();
        let Reading { current, added, .. } = self.peaks.read(&self.shards);
        (growth.counters.current, growth.counters.added) = (current, added);
        growth.counters.ooms = self.ooms.load(Ordering::Relaxed) as i64;
        (growth.counters.retries, growth.counters.synchronised) = (0, 0);
        growth.store.reset_accumulated();
        for stat in growth.counters.stats() {
            stat.reset_accumulated();
        }
    }

    /// How many allocations are live, and the bytes that they hold.
    pub(crate) fn allocated(&self) -> (u64, Bytes) {
        self.shards.iter().fold((0, 0), |(count, bytes), (_, shard)| {
            let heap = shard.heap.lock();
            let now = |metric: usize| heap.tally.current(metric) as u64;
            (count + now(metric::COUNT), bytes + now(metric::BYTES))
        })
    }
}
