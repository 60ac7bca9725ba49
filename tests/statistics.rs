//! Statistics: the names, and that they are exact.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::thread;

use common::{A, B, C, GPU, Random, Rig, capacity, plain};
use plugalloc::device::sim::SimOptions;
use plugalloc::error::DriverCall;
use plugalloc::observe::{Stat, StatArray};
use plugalloc::units::{Address, Bytes, DeviceId, GIB, KIB, MIB, StreamId};
use plugalloc::{Config, DeviceStatistics};

#[test]
fn every_name_of_memory_stats_is_there() {
    let named = Rig::of(GIB).statistics().named();
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    let mut expected = Vec::new();
    for quantity in [
        "allocation",
        "segment",
        "active",
        "inactive_split",
        "allocated_bytes",
        "reserved_bytes",
        "active_bytes",
        "inactive_split_bytes",
        "requested_bytes",
    ] {
        for pool in ["all", "small_pool", "large_pool"] {
            expected.push(format!("{quantity}.{pool}"));
        }
    }
    expected.extend(["oversize_allocations".to_owned(), "oversize_segments".to_owned()]);
    let fields = ["current", "peak", "allocated", "freed"];
    let mut expected: Vec<String> = expected
        .iter()
        .flat_map(|name| fields.iter().map(move |field| format!("{name}.{field}")))
        .collect();
    expected.extend(
        [
            "num_alloc_retries",
            "num_ooms",
            "num_sync_all_streams",
            "num_device_alloc",
            "num_device_free",
            "max_split_size",
        ]
        .map(str::to_owned),
    );
    expected.sort();
    assert_eq!(names, expected);
}

/// What the allocator should count.
#[derive(Default)]
struct Model {
    expected: DeviceStatistics,
}

fn both(array: &mut StatArray, large: bool) -> [&mut Stat; 2] {
    [&mut array.all, if large { &mut array.large_pool } else { &mut array.small_pool }]
}

fn add(stats: [&mut Stat; 2], by: i64) {
    for stat in stats {
        stat.current += by;
        stat.allocated += by;
        stat.peak = stat.peak.max(stat.current);
    }
}

fn subtract(stats: [&mut Stat; 2], by: i64) {
    for stat in stats {
        stat.current -= by;
        stat.freed += by;
    }
}

impl Model {
    fn allocate(&mut self, bytes: Bytes, served: i64) {
        let large = bytes > MIB;
        let stats = &mut self.expected;
        add(both(&mut stats.allocation, large), 1);
        add(both(&mut stats.active, large), 1);
        add(both(&mut stats.allocated_bytes, large), served);
        add(both(&mut stats.active_bytes, large), served);
        add(both(&mut stats.requested_bytes, large), bytes as i64);
    }

    /// The owner gives the block up.
    fn free(&mut self, bytes: Bytes, served: i64) {
        let large = bytes > MIB;
        subtract(both(&mut self.expected.allocation, large), 1);
        subtract(both(&mut self.expected.allocated_bytes, large), served);
    }

    /// Nobody uses it any more.
    fn complete(&mut self, bytes: Bytes, served: i64) {
        let large = bytes > MIB;
        subtract(both(&mut self.expected.active, large), 1);
        subtract(both(&mut self.expected.active_bytes, large), served);
        subtract(both(&mut self.expected.requested_bytes, large), bytes as i64);
    }

    #[track_caller]
    fn check(&self, found: &DeviceStatistics) {
        let expected = &self.expected;
        assert_eq!(found.allocation, expected.allocation, "allocation");
        assert_eq!(found.active, expected.active, "active");
        assert_eq!(found.allocated_bytes, expected.allocated_bytes, "allocated bytes");
        assert_eq!(found.active_bytes, expected.active_bytes, "active bytes");
        assert_eq!(found.requested_bytes, expected.requested_bytes, "requested bytes");
    }
}

/// Random allocations and frees on these streams, counted by the model too, which is compared
/// rarely: a comparison reads the statistics, and reading must not be what makes them right.
fn work(rig: &Rig, model: &mut Model, streams: &[StreamId], seed: u64, steps: u64) {
    let mut random = Random::new(seed);
    let mut live: Vec<(Address, Bytes, i64)> = Vec::new();
    for step in 0..steps {
        if random.below(9) < 5 || live.is_empty() {
            let bytes = random.size(4 * MIB);
            let stream = streams[random.below(streams.len() as u64) as usize];
            let address = rig.allocate(bytes, stream);
            let served = rig.served(address);
            live.push((address, bytes, served));
            model.allocate(bytes, served);
        } else {
            let at = random.below(live.len() as u64) as usize;
            let (address, bytes, served) = live.swap_remove(at);
            rig.free(address);
            model.free(bytes, served);
            model.complete(bytes, served);
        }
        if step % 149 == 148 {
            model.check(&rig.statistics());
        }
    }
    for (address, bytes, served) in live {
        rig.free(address);
        model.free(bytes, served);
        model.complete(bytes, served);
    }
    model.check(&rig.statistics());
}

#[test]
fn everything_is_exact_on_one_stream_and_on_several_in_turn() {
    let seed = Random::seed(3);
    for options in [capacity(8 * GIB), plain(8 * GIB)] {
        for streams in [&[A][..], &[A, B, C, StreamId::DEFAULT]] {
            let rig = Rig::new(options.clone(), Config::default());
            work(&rig, &mut Model::default(), streams, seed, 1500);
            rig.finish();
        }
    }
}

#[test]
fn everything_is_exact_for_threads_one_after_the_other() {
    let rig = Rig::of(8 * GIB);
    let mut model = Model::default();
    for (round, streams) in [[A, B], [B, C], [A, C], [B, A]].iter().enumerate() {
        thread::scope(|scope| {
            scope.spawn(|| work(&rig, &mut model, streams, round as u64, 400));
        });
    }
    rig.finish();
}

#[test]
fn devices_are_counted_apart() {
    let rig = Rig::new(SimOptions { devices: 2, ..SimOptions::default() }, Config::default());
    let block = rig.allocator.allocate(DeviceId(1), MIB, A).unwrap();
    assert_eq!(rig.statistics(), Rig::of(GIB).statistics());
    let other = rig.allocator.statistics(DeviceId(1)).unwrap();
    assert_eq!(other.allocated_bytes.small_pool.current, MIB as i64);
    rig.free(block);
    rig.finish();
}

#[test]
fn a_block_that_waits_is_active_but_not_allocated() {
    let rig = Rig::of(GIB);
    let mut model = Model::default();
    rig.device().hold(B).unwrap();
    let mut waiting = 0;
    let mut blocks = Vec::new();
    for bytes in [100, MIB, 3 * MIB + 1] {
        let block = rig.allocate(bytes, A);
        let served = rig.served(block);
        blocks.push((bytes, served));
        model.allocate(bytes, served);
        rig.allocator.record_stream(block, B).unwrap();
        rig.free(block);
        model.free(bytes, served);
        model.check(&rig.statistics());
        waiting += 1;
        assert_eq!(rig.statistics().active.all.current, waiting);
    }
    rig.device().resume(B).unwrap();
    rig.allocator.process_events().unwrap();
    blocks.into_iter().for_each(|(bytes, served)| model.complete(bytes, served));
    model.check(&rig.statistics());
    rig.finish();
}

#[test]
fn a_peak_of_active_blocks_between_two_reads_is_seen() {
    let rig = Rig::of(GIB);
    let mut model = Model::default();
    for round in 0..3 {
        let mut blocks = Vec::new();
        rig.device().hold(B).unwrap();
        for k in 1..6 {
            let (bytes, stream) = (k * (round + 1) * 100 * KIB, [A, C][k as usize % 2]);
            let block = rig.allocate(bytes, stream);
            let served = rig.served(block);
            blocks.push((bytes, served));
            model.allocate(bytes, served);
            rig.allocator.record_stream(block, B).unwrap();
            rig.free(block);
            model.free(bytes, served);
        }
        rig.device().resume(B).unwrap();
        rig.allocator.process_events().unwrap();
        blocks.into_iter().for_each(|(bytes, served)| model.complete(bytes, served));
    }
    model.check(&rig.statistics());
    rig.finish();
}

#[test]
fn peaks_and_accumulated_counts_are_reset_apart() {
    let rig = Rig::of(GIB);
    let blocks = [rig.allocate(MIB, A), rig.allocate(MIB, B), rig.allocate(2 * MIB, A)];
    rig.free(blocks[0]);
    let mib = |count: i64| count * MIB as i64;
    rig.allocator.reset_peak_statistics(GPU).unwrap();
    let after = rig.statistics().allocated_bytes.all;
    assert_eq!(after, Stat { current: mib(3), peak: mib(3), allocated: mib(4), freed: mib(1) });
    rig.allocator.reset_accumulated_statistics(GPU).unwrap();
    let after = rig.statistics();
    let bytes = after.allocated_bytes.all;
    assert_eq!(bytes, Stat { current: mib(3), peak: mib(3), allocated: 0, freed: 0 });
    assert_eq!(after.num_device_alloc, 0);
    assert_eq!(after.reserved_bytes.all.allocated, 0);
    rig.free(blocks[1]);
    rig.free(blocks[2]);
    let bytes = rig.statistics().allocated_bytes.all;
    assert_eq!(bytes, Stat { current: 0, peak: mib(3), allocated: 0, freed: mib(3) });
    rig.allocator.reset_peak_statistics(GPU).unwrap();
    assert_eq!(rig.statistics().allocated_bytes.all.peak, 0);
    let block = rig.allocate(MIB, C);
    assert_eq!(rig.statistics().allocated_bytes.all.peak, mib(1));
    rig.free(block);
    rig.finish();
}

#[test]
fn reserved_memory_is_what_the_device_gave_out() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, Config::default());
        let blocks = [rig.allocate(5 * MIB, A), rig.allocate(KIB, A), rig.allocate(30 * MIB, B)];
        let found = rig.statistics();
        let used = rig.ledger().used as i64;
        assert_eq!(
            found.reserved_bytes.all,
            Stat { current: used, peak: used, allocated: used, freed: 0 }
        );
        assert_eq!(found.reserved_bytes.small_pool.current, 2 * MIB as i64);
        assert_eq!(found.reserved_bytes.large_pool.current, used - 2 * MIB as i64);
        let ledger = rig.ledger();
        let made = ledger.calls(DriverCall::Create) + ledger.calls(DriverCall::Malloc);
        assert_eq!((found.num_device_alloc, found.num_device_free), (made as i64, 0));
        blocks.into_iter().for_each(|address| rig.free(address));
        rig.allocator.empty_cache().unwrap();
        let found = rig.statistics();
        assert_eq!(
            found.reserved_bytes.all,
            Stat { current: 0, peak: used, allocated: used, freed: used }
        );
        assert_eq!(found.num_device_free, made as i64);
        rig.finish();
    }
}

#[test]
fn failures_and_retries_are_counted() {
    let rig = Rig::of(32 * MIB);
    let live = rig.allocate(20 * MIB, A);
    let synchronised = rig.statistics().num_sync_all_streams;
    for _ in 0..3 {
        rig.out_of_memory(20 * MIB, A);
    }
    let found = rig.statistics();
    assert_eq!((found.num_ooms, found.num_alloc_retries), (3, 3));
    assert_eq!(found.num_sync_all_streams, synchronised + 3);
    assert_eq!(found.allocation.all.allocated, 1, "a failed request is no allocation");
    rig.allocator.reset_accumulated_statistics(GPU).unwrap();
    assert_eq!((rig.statistics().num_ooms, rig.statistics().num_alloc_retries), (0, 0));
    rig.free(live);
    rig.finish();
}
