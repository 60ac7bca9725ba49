//! What is tried before a request fails, and giving memory back. A request that fits does not fail.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::thread;
use std::time::Duration;

use common::{A, B, C, GPU, Random, Rig, capacity, config, plain};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::DriverCall;
use plugalloc::units::{Bytes, GIB, GRANULE, KIB, MIB, StreamId, align_up};

#[test]
fn pending_frees_are_waited_for_before_a_request_fails() {
    for options in [capacity(64 * MIB), plain(64 * MIB)] {
        let options = SimOptions { wait_for_release: true, ..options };
        let rig = Rig::new(options, Config::default());
        let block = rig.allocate(60 * MIB, A);
        rig.device().hold(B).unwrap();
        rig.allocator.record_stream(block, B).unwrap();
        rig.free(block);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                rig.device().resume(B).unwrap();
            });
            let next = rig.allocate(60 * MIB, A);
            rig.free(next);
        });
        assert_eq!(rig.statistics().num_ooms, 0);
        assert_eq!(rig.statistics().num_alloc_retries, 1);
        rig.finish();
    }
}

#[test]
fn memory_that_became_free_on_the_way_is_used() {
    // The event completes, and another thread notices, while this request is on its way to fail.
    for options in [capacity(64 * MIB), plain(64 * MIB)] {
        let options = SimOptions { wait_for_release: true, ..options };
        let rig = Rig::new(options, Config::default());
        for _ in 0..20 {
            let block = rig.allocate(50 * MIB, A);
            rig.device().hold(B).unwrap();
            rig.allocator.record_stream(block, B).unwrap();
            rig.free(block);
            thread::scope(|scope| {
                scope.spawn(|| {
                    rig.device().resume(B).unwrap();
                    rig.allocator.process_events().unwrap();
                });
                let next = rig.allocate(50 * MIB, C);
                rig.free(next);
            });
            rig.allocator.process_events().unwrap();
        }
        assert_eq!(rig.statistics().num_ooms, 0);
        rig.finish();
    }
}

#[test]
fn idle_pages_of_other_streams_are_taken_before_more_is_asked_for() {
    let rig = Rig::of(GIB);
    let idle = rig.allocate(100 * MIB, A);
    rig.free(idle);
    let calls = rig.ledger().calls(DriverCall::Map);
    let blocks = [rig.allocate(48 * MIB, B), rig.allocate(50 * MIB, C)];
    assert_eq!(rig.ledger().used_peak, 100 * MIB, "nothing is added");
    assert_eq!(rig.ledger().calls(DriverCall::Map), calls, "nor is anything mapped anew");
    assert_eq!(rig.statistics().reserved_bytes.all.current, 100 * MIB as i64);
    blocks.into_iter().for_each(|address| rig.free(address));
    rig.finish();
}

#[test]
fn idle_pages_that_lie_apart_are_mapped_side_by_side() {
    let rig = Rig::of(GIB);
    let [first, live, last] = [48, 2, 52].map(|mib| rig.allocate(mib * MIB, A));
    rig.free(first);
    rig.free(last);
    let block = rig.allocate(96 * MIB, B);
    assert_eq!(rig.ledger().used_peak, 102 * MIB, "long handles are cut, but nothing is added");
    rig.free(block);
    rig.free(live);
    rig.finish();
}

#[test]
fn pages_of_small_requests_serve_large_ones_and_back() {
    let rig = Rig::of(32 * MIB);
    for _ in 0..3 {
        let small: Vec<_> = (0..32).map(|_| rig.allocate(MIB, A)).collect();
        small.into_iter().for_each(|address| rig.free(address));
        let large = rig.allocate(32 * MIB, A);
        rig.free(large);
    }
    rig.finish();
}

#[test]
fn long_handles_are_made_into_short_ones_where_only_short_ones_fit() {
    let rig = Rig::new(capacity(512 * MIB), config(|c| c.max_handle = 64 * MIB));
    let long = rig.allocate(512 * MIB, A);
    assert_eq!(rig.ledger().calls(DriverCall::Create), 32, "handles of 16 MiB");
    rig.free(long);
    // The addresses for small requests are a sixteenth of the device: 32 MiB.
    let small = rig.allocate(KIB, B);
    rig.fill(small, 0x11, KIB, B);
    let large = rig.allocate(510 * MIB, C);
    assert_eq!(rig.ledger().used, 512 * MIB);
    rig.assert_filled(small, 0x11, KIB);
    rig.free(small);
    rig.free(large);
    rig.finish();
}

#[test]
fn spare_handles_of_a_wrong_size_are_made_into_others() {
    let rig = Rig::new(capacity(512 * MIB), config(|c| c.max_handle = 64 * MIB));
    let [first, live, last] = [32, 448, 32].map(|mib| rig.allocate(mib * MIB, A));
    rig.free(first);
    rig.free(last);
    // A handle is taken from A and left over; everything else is in use or idle in two places.
    rig.device().fail_nth(DriverCall::Map, 1);
    assert!(rig.try_allocate(64 * MIB, B).is_err());
    let small = rig.allocate(KIB, C);
    let large = rig.allocate(62 * MIB, C);
    for address in [live, small, large] {
        rig.free(address);
    }
    rig.finish();
}

/// Random requests on a small device; whenever one fails, it must be true that the device has too
/// little for it even when everything that is not in use is given back.
fn nothing_fails_that_fits(options: SimOptions, seed: u64, exact: bool) -> u64 {
    let rig = Rig::new(options, Config::default());
    let mut random = Random::new(seed);
    let mut live: Vec<(u64, Bytes)> = Vec::new();
    let mut failures = 0;
    for _ in 0..400 {
        let bytes = random.size(24 * MIB);
        let stream = [A, B, C][random.below(3) as usize];
        if random.below(5) < 2 && !live.is_empty() {
            let (address, _) = live.swap_remove(random.below(live.len() as u64) as usize);
            if random.below(4) == 0 {
                rig.allocator.record_stream(address, stream).unwrap();
            }
            rig.free(address);
            continue;
        }
        match rig.try_allocate(bytes, stream) {
            Ok(address) => live.push((address, bytes)),
            Err(error) => {
                assert!(error.is_out_of_memory(), "{error}");
                failures += 1;
                rig.allocator.empty_cache().unwrap();
                let free = rig.allocator.memory_info(GPU).unwrap().free;
                if exact {
                    assert!(free < align_up(bytes, GRANULE), "{bytes} bytes failed: {error}");
                }
                assert!(rig.try_allocate(bytes, stream).is_err(), "{bytes} bytes fit: {error}");
                for _ in 0..live.len().min(4) {
                    let (address, _) = live.swap_remove(random.below(live.len() as u64) as usize);
                    rig.free(address);
                }
            }
        }
    }
    live.into_iter().for_each(|(address, _)| rig.free(address));
    rig.finish();
    failures
}

#[test]
fn nothing_is_out_of_memory_while_it_fits() {
    let seed = Random::seed(11);
    let mut failures = 0;
    for round in 0..12 {
        failures += nothing_fails_that_fits(capacity(64 * MIB), seed + round, true);
        failures += nothing_fails_that_fits(plain(64 * MIB), seed + round, false);
    }
    assert!(failures > 0, "the devices are too large for the test");
}

#[test]
fn the_memory_fraction_is_a_hard_limit() {
    let seed = Random::seed(5);
    for options in [capacity(128 * MIB), plain(128 * MIB)] {
        let rig = Rig::new(options, config(|c| c.memory_fraction = 0.25));
        assert_eq!(rig.allocator.memory_fraction(GPU).unwrap(), 0.25);
        let mut random = Random::new(seed);
        let mut live = Vec::new();
        for _ in 0..200 {
            match rig.try_allocate(random.size(16 * MIB), StreamId(random.below(3))) {
                Ok(address) => live.push(address),
                Err(_) => live.drain(..).for_each(|address| rig.free(address)),
            }
        }
        assert!(rig.ledger().used_peak <= 32 * MIB);
        live.into_iter().for_each(|address| rig.free(address));
        rig.allocator.set_memory_fraction(GPU, 0.0).unwrap();
        rig.allocator.empty_cache().unwrap();
        rig.out_of_memory(1, A);
        rig.allocator.set_memory_fraction(GPU, 1.0).unwrap();
        let all = rig.allocate(128 * MIB, A);
        rig.free(all);
        rig.finish();
    }
}

#[test]
fn a_limit_below_what_is_reserved_stops_growth_only() {
    let rig = Rig::of(64 * MIB);
    let live = rig.allocate(40 * MIB, A);
    rig.allocator.set_memory_fraction(GPU, 0.25).unwrap();
    rig.out_of_memory(2 * MIB, A);
    rig.free(live);
    let again = rig.allocate(40 * MIB, A);
    rig.free(again);
    rig.finish();
}

#[test]
fn a_device_that_shrinks_and_grows_is_followed() {
    let rig = Rig::of(64 * MIB);
    rig.device().set_capacity(16 * MIB);
    rig.out_of_memory(20 * MIB, A);
    rig.device().set_capacity(64 * MIB);
    let served = rig.allocate(60 * MIB, A);
    rig.free(served);
    rig.finish();
}

#[test]
fn emptying_the_cache_gives_everything_back_that_is_not_live() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = Rig::new(options, Config::default());
        let blocks: Vec<_> =
            (0..60).map(|k| rig.allocate((k % 7 + 1) * MIB, [A, B][k as usize % 2])).collect();
        let live = rig.allocate(5 * MIB, C);
        blocks.into_iter().for_each(|address| rig.free(address));
        rig.allocator.empty_cache().unwrap();
        let left = rig.ledger().used;
        assert!((6 * MIB..=20 * MIB).contains(&left), "{left} bytes");
        assert_eq!(rig.statistics().reserved_bytes.all.current, left as i64);
        rig.fill(live, 1, 5 * MIB, C);
        rig.free(live);
        rig.finish();
    }
}

#[test]
fn idle_memory_is_given_back_above_the_threshold() {
    let settings = config(|c| {
        c.memory_fraction = 0.5;
        c.garbage_collection_threshold = 0.5;
    });
    // The limit is 256 MiB, and the threshold 128 of them.
    let rig = Rig::new(capacity(512 * MIB), settings);
    let kept = rig.allocate(60 * MIB, A);
    let idle = rig.allocate(60 * MIB, A);
    rig.free(idle);
    assert_eq!(rig.ledger().used, 120 * MIB, "below the threshold nothing is given back");
    let more = rig.allocate(100 * MIB, B);
    assert!(rig.ledger().calls(DriverCall::Release) > 0);
    assert!(rig.ledger().used <= 164 * MIB, "{} bytes", rig.ledger().used);
    rig.free(kept);
    rig.free(more);
    rig.finish();
}

#[test]
fn failing_at_the_limit_waits_for_no_stream() {
    let settings = config(|c| {
        c.memory_fraction = 0.5;
        c.fail_at_limit = true;
    });
    let rig = Rig::new(capacity(256 * MIB), settings);
    let block = rig.allocate(100 * MIB, A);
    rig.device().hold(B).unwrap();
    rig.fill(block, 1, 16, B);
    rig.allocator.record_stream(block, B).unwrap();
    rig.free(block);
    // Waiting for B would be an error here, since nobody resumes it.
    let error = rig.try_allocate(100 * MIB, A).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    rig.device().resume(B).unwrap();
    let again = rig.allocate(100 * MIB, A);
    rig.free(again);
    rig.finish();
}
