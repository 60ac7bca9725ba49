//! Devices without virtual memory management, where memory comes in whole segments, and no caching
//! at all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, GPU, Rig, SIZES, capacity, config, fault, plain};
use plugalloc::Config;
use plugalloc::error::{DriverCall, PointerFault};
use plugalloc::units::{GIB, KIB, MIB};

#[test]
fn segments_have_the_sizes_that_pytorch_takes() {
    for (bytes, segment) in [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 4096, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB + 1, 12 * MIB),
    ] {
        let rig = Rig::new(plain(GIB), Config::default());
        let block = rig.allocate(bytes, A);
        assert_eq!(rig.ledger().used, segment, "{bytes} bytes");
        assert_eq!(rig.allocator.base_allocation(block).unwrap(), (block, segment));
        rig.free(block);
        rig.finish();
    }
}

#[test]
fn requests_share_a_segment_and_leave_it_whole() {
    let rig = Rig::new(plain(GIB), Config::default());
    let blocks: Vec<_> = (0..10).map(|_| rig.allocate(2 * MIB, A)).collect();
    assert_eq!(rig.ledger().calls(DriverCall::Malloc), 1);
    assert_eq!(rig.statistics().segment.large_pool.current, 1);
    for k in [1, 3, 5, 7, 9, 0, 2, 4, 6, 8] {
        rig.free(blocks[k]);
    }
    assert_eq!(rig.allocate(20 * MIB, A), blocks[0]);
    assert_eq!(rig.ledger().calls(DriverCall::Malloc), 1);
    rig.free(blocks[0]);
    rig.finish();
}

#[test]
fn the_segment_for_middling_requests_can_be_chosen() {
    let sizes =
        |c: &mut Config| (c.large_segment_size, c.max_non_split_rounding) = (64 * MIB, 64 * MIB);
    let rig = Rig::new(plain(GIB), config(sizes));
    let block = rig.allocate(2 * MIB, A);
    assert_eq!(rig.ledger().used, 64 * MIB);
    rig.free(block);
    rig.finish();
}

#[test]
fn unused_segments_are_released_before_a_request_fails() {
    let rig = Rig::new(plain(64 * MIB), Config::default());
    let block = rig.allocate(60 * MIB, A);
    rig.free(block);
    let other = rig.allocate(62 * MIB, B);
    assert_eq!(rig.ledger().calls(DriverCall::Free), 1);
    assert_eq!(rig.statistics().num_alloc_retries, 1);
    rig.free(other);
    rig.finish();
}

#[test]
fn segments_are_kept_until_the_cache_is_emptied() {
    let rig = Rig::new(plain(GIB), Config::default());
    let block = rig.allocate(30 * MIB, A);
    rig.free(block);
    assert_eq!(rig.ledger().calls(DriverCall::Free), 0);
    assert_eq!(rig.statistics().segment.all.current, 1);
    rig.allocator.empty_cache().unwrap();
    assert_eq!(rig.ledger().calls(DriverCall::Free), 1);
    assert_eq!(rig.statistics().segment.all.current, 0);
    assert_eq!(fault(rig.allocator.free(block)), PointerFault::Foreign);
    rig.finish();
}

#[test]
fn garbage_is_collected_above_the_threshold() {
    let rig = Rig::new(
        plain(100 * MIB),
        config(|c| {
            c.memory_fraction = 0.99;
            c.garbage_collection_threshold = 0.5;
        }),
    );
    let block = rig.allocate(40 * MIB, A);
    rig.free(block);
    let other = rig.allocate(20 * MIB, B);
    assert_eq!(rig.ledger().used, 20 * MIB, "the idle segment went first");
    rig.free(other);
    rig.finish();
}

#[test]
fn without_caching_every_allocation_is_the_devices_own() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, config(|c| c.caching = false));
        assert!(!rig.allocator.is_caching());
        for (calls, bytes) in SIZES.into_iter().enumerate() {
            let calls = calls as u64;
            let block = rig.allocate(bytes, A);
            assert_eq!(rig.ledger().calls(DriverCall::Malloc), calls + 1);
            assert_eq!(rig.allocator.block(block).unwrap().requested, bytes);
            assert_eq!(rig.allocator.base_allocation(block).unwrap().0, block);
            assert!(rig.allocator.owns(block));
            rig.allocator.record_stream(block, B).unwrap();
            rig.free(block);
            assert_eq!(rig.ledger().calls(DriverCall::Free), calls + 1);
            assert_eq!(rig.ledger().used, 0);
            assert!(rig.allocator.free(block).unwrap_err().is_invalid_pointer());
        }
        assert_eq!(rig.statistics().allocation.all.allocated, SIZES.len() as i64);
        rig.finish();
    }
}

#[test]
fn blocks_of_both_kinds_are_freed_after_caching_was_switched() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, Config::default());
        let mut live = Vec::new();
        for round in 0..6 {
            rig.allocator.set_caching(round % 2 == 0);
            assert_eq!(rig.allocator.is_caching(), round % 2 == 0);
            live.extend([700 * KIB, 3 * MIB].map(|bytes| rig.allocate(bytes, A)));
            rig.allocator.is_valid().unwrap();
        }
        assert_eq!(rig.statistics().allocation.all.current, 12);
        for k in [5, 0, 3, 8, 1, 11, 2, 4, 10, 6, 9, 7] {
            rig.free(live[k]);
            rig.allocator.is_valid().unwrap();
        }
        rig.finish();
    }
}

#[test]
fn the_cache_is_emptied_before_a_request_without_caching_fails() {
    for options in [capacity(64 * MIB), plain(64 * MIB)] {
        let rig = Rig::new(options, Config::default());
        let cached = rig.allocate(60 * MIB, A);
        rig.free(cached);
        rig.allocator.set_caching(false);
        let block = rig.allocate(40 * MIB, A);
        rig.out_of_memory(40 * MIB, B);
        rig.free(block);
        rig.finish();
    }
}

#[test]
fn the_memory_fraction_holds_without_caching() {
    let rig = Rig::new(capacity(64 * MIB), config(|c| c.caching = false));
    rig.allocator.set_memory_fraction(GPU, 0.5).unwrap();
    let block = rig.allocate(30 * MIB, A);
    assert_eq!(rig.out_of_memory(10 * MIB, A).limit, 32 * MIB);
    rig.free(block);
    rig.finish();
}

#[test]
fn unused_pieces_of_divided_segments_are_counted() {
    let rig = Rig::new(plain(256 * MIB), config(|c| c.max_split_size = Some(20 * MIB)));
    let small = rig.allocate(512, A);
    let large = rig.allocate(30 * MIB, A);
    let statistics = rig.statistics();
    assert_eq!(statistics.inactive_split.all.current, 1, "the rest of the small segment");
    assert_eq!(statistics.inactive_split_bytes.small_pool.current, 2 * MIB as i64 - 512);
    assert_eq!(statistics.oversize_allocations.current, 1);
    rig.free(small);
    rig.free(large);
    rig.allocator.empty_cache().unwrap();
    let statistics = rig.statistics();
    assert_eq!(statistics.inactive_split.all.current, 0);
    assert_eq!(statistics.inactive_split.all.peak, 1);
    assert_eq!(statistics.oversize_allocations.freed, 1);
    rig.finish();
}

/// The segment for a request below the limit may be as long as the limit, or longer.
#[test]
fn segments_at_the_split_limit_serve_those_who_take_them() {
    for (limit, bytes, segment) in [(20, 5, 20), (21, 5, 20), (64, 63, 64), (21, 10, 10)] {
        let rig = Rig::new(plain(256 * MIB), config(|c| c.max_split_size = Some(limit * MIB)));
        let first = rig.allocate(bytes * MIB, A);
        assert_eq!(rig.statistics().reserved_bytes.all.current, (segment * MIB) as i64);
        rig.free(first);
        let again = rig.allocate(bytes * MIB, A);
        assert_eq!(again, first, "what it has left joined serves the next");
        assert_eq!(rig.allocator.block(again).unwrap().bytes, bytes * MIB, "it is split");
        rig.free(again);
        rig.finish();
    }
}

#[test]
fn blocks_above_the_split_limit_are_handed_out_whole() {
    let settings = config(|c| {
        c.max_split_size = Some(20 * MIB);
        c.max_non_split_rounding = 20 * MIB;
    });
    let rig = Rig::new(plain(256 * MIB), settings);
    let long = rig.allocate(60 * MIB, A);
    rig.free(long);
    let short = rig.allocate(12 * MIB, A);
    assert_ne!(short, long, "a short request does not split it");
    let much_shorter = rig.allocate(30 * MIB, A);
    assert_ne!(much_shorter, long, "30 MiB would be left unused");
    let nearly = rig.allocate(50 * MIB, A);
    assert_eq!(nearly, long);
    assert_eq!(rig.allocator.block(nearly).unwrap().bytes, 60 * MIB, "whole");
    [short, much_shorter, nearly].into_iter().for_each(|address| rig.free(address));
    rig.finish();
}

#[test]
fn limits_that_are_no_limits_are_taken_at_their_word() {
    let most = u64::MAX / MIB;
    let text = format!("max_split_size_mb:20,max_non_split_rounding_mb:{most}");
    let rig = Rig::new(plain(GIB), Config::parse(&text).unwrap());
    let block = rig.allocate(60 * MIB, A);
    rig.free(block);
    assert_eq!(rig.allocate(40 * MIB, A), block, "any block serves");
    rig.free(block);
    rig.finish();
    let rig = Rig::new(plain(GIB), Config::parse("large_segment_size_mb:1048576").unwrap());
    assert!(rig.try_allocate(2 * MIB, A).unwrap_err().is_out_of_memory());
    let block = rig.allocate(10 * MIB, A);
    rig.free(block);
    rig.finish();
}
