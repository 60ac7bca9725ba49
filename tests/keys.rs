//! What each key of the configuration does, as `docs/CONFIG.md` says it, from its text on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{A, B, GPU, Rig, capacity, plain};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::DriverCall;
use plugalloc::units::{Bytes, GIB, KIB, MIB};

fn rig(options: SimOptions, text: &str) -> Rig {
    Rig::new(options, Config::parse(text).unwrap())
}

/// What the allocator counts as allocated for one request.
fn served(text: &str, bytes: Bytes) -> Bytes {
    let rig = rig(capacity(8 * GIB), text);
    let block = rig.allocate(bytes, A);
    let served = rig.statistics().allocated_bytes.all.current as Bytes;
    rig.free(block);
    rig.finish();
    served
}

#[test]
fn empty_cache_gives_back_all_that_is_idle_and_nothing_else() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = rig(options, "max_handle_mb:2");
        let blocks = [100 * MIB, 40 * MIB, 3 * KIB].map(|bytes| rig.allocate(bytes, A));
        rig.fill(blocks[1], 0x5a, 40 * MIB, A);
        let shared = rig.allocate(60 * MIB, B);
        rig.device().hold(A).unwrap();
        rig.allocator.record_stream(shared, A).unwrap();
        rig.free(blocks[0]);
        rig.free(shared);
        rig.device().resume(A).unwrap();
        rig.allocator.empty_cache().unwrap();
        assert_eq!(rig.ledger().used, 42 * MIB, "one block of 40 MiB and a page of small ones");
        rig.assert_filled(blocks[1], 0x5a, 40 * MIB);
        rig.free(blocks[1]);
        rig.free(blocks[2]);
        rig.allocator.empty_cache().unwrap();
        assert_eq!(rig.ledger().used, 0);
        rig.finish();
    }
}

#[test]
fn above_the_collection_threshold_idle_memory_goes_back_before_more_is_taken() {
    for options in [capacity(GIB), plain(GIB)] {
        let text = "per_process_memory_fraction:0.5,garbage_collection_threshold:0.5,steal:False";
        let rig = rig(options, text);
        let idle = rig.allocate(200 * MIB, A);
        rig.free(idle);
        // 250 of 512 MiB: below the threshold.
        let small = rig.allocate(50 * MIB, B);
        assert_eq!(rig.ledger().used, 250 * MIB);
        // 350 MiB would be above it by 94.
        let large = rig.allocate(100 * MIB, B);
        let used = rig.ledger().used;
        assert!((150 * MIB..=256 * MIB).contains(&used), "{used} bytes");
        rig.free(small);
        rig.free(large);
        rig.finish();
    }
}

#[test]
fn without_a_limit_the_collection_threshold_does_nothing() {
    let rig = rig(capacity(GIB), "garbage_collection_threshold:0.5,steal:False");
    let idle = rig.allocate(600 * MIB, A);
    rig.free(idle);
    let block = rig.allocate(300 * MIB, B);
    assert_eq!(rig.ledger().used, 900 * MIB);
    rig.free(block);
    rig.finish();
}

#[test]
fn blocks_of_the_split_limit_stay_whole_on_a_device_without_virtual_memory() {
    let text = "max_split_size_mb:64,max_non_split_rounding_mb:20";
    for (options, splits) in [(plain(GIB), false), (capacity(GIB), true)] {
        let rig = rig(options, text);
        let whole = rig.allocate(100 * MIB, A);
        rig.free(whole);
        let [small, near] = [30 * MIB, 90 * MIB].map(|bytes| rig.allocate(bytes, A));
        // With virtual memory the key has no effect: the small one is cut out of the idle block.
        assert_eq!(small == whole, splits);
        assert_eq!(near == whole, !splits, "90 MiB leave less than 20 of 100 unused");
        rig.free(small);
        rig.free(near);
        rig.finish();
    }
}

#[test]
fn sizes_are_rounded_up_to_divisions_of_a_power_of_two() {
    let four = "roundup_power2_divisions:4";
    assert_eq!(served(four, 1100 * KIB), 1280 * KIB);
    assert_eq!(served(four, 5 * MIB), 5 * MIB);
    assert_eq!(served(four, 5 * MIB + 1), 6 * MIB);
    let list = "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]";
    assert_eq!(served(list, 300 * MIB), 300 * MIB, "one division leaves sizes alone");
    assert_eq!(served(list, 600 * MIB), 768 * MIB);
    assert_eq!(served(list, GIB + 1), GIB + 256 * MIB);
    assert_eq!(served(list, 2 * GIB + 1), 2 * GIB + 256 * MIB);
    assert_eq!(served("roundup_power2_divisions:0", 1100 * KIB), 1100 * KIB);
}

#[test]
fn without_expandable_segments_memory_comes_as_whole_segments() {
    for (text, segments) in [("expandable_segments:False", true), ("", false)] {
        let rig = rig(capacity(GIB), text);
        let block = rig.allocate(5 * MIB, A);
        assert_eq!(rig.ledger().calls(DriverCall::Malloc) > 0, segments);
        assert_eq!(rig.ledger().calls(DriverCall::Map) > 0, !segments);
        let expected = if segments { 20 * MIB } else { 6 * MIB };
        assert_eq!(rig.ledger().used, expected);
        rig.free(block);
        rig.finish();
    }
}

#[test]
fn large_segments_have_the_size_that_is_set() {
    let rig = rig(plain(GIB), "large_segment_size_mb:32");
    let block = rig.allocate(5 * MIB, A);
    assert_eq!(rig.ledger().used, 32 * MIB);
    rig.free(block);
    rig.finish();
}

#[test]
fn the_fraction_of_the_device_is_never_exceeded() {
    for options in [capacity(256 * MIB), plain(256 * MIB)] {
        let rig = rig(options, "per_process_memory_fraction:0.25");
        let block = rig.allocate(48 * MIB, A);
        let report = rig.out_of_memory(48 * MIB, B);
        assert_eq!(report.limit, 64 * MIB);
        assert!(rig.ledger().used_peak <= 64 * MIB);
        rig.free(block);
        // What was idle counts, too, and moves.
        let other = rig.allocate(60 * MIB, B);
        assert!(rig.ledger().used_peak <= 64 * MIB);
        rig.free(other);
        rig.finish();
    }
}

#[test]
fn idle_memory_serves_other_streams_unless_stealing_is_off() {
    for (text, used) in [("", 100 * MIB), ("steal:False", 200 * MIB)] {
        let rig = rig(capacity(GIB), text);
        let first = rig.allocate(100 * MIB, A);
        rig.free(first);
        let second = rig.allocate(100 * MIB, B);
        assert_eq!(rig.ledger().used, used, "{text}");
        rig.free(second);
        rig.finish();
    }
}

#[test]
fn handles_are_no_longer_than_is_set() {
    // Without a bound they would be 32 MiB, as much of the request as handles are of what is live;
    // beyond 16 MiB one stream alone is given a quarter of what is set.
    for (mib, count) in [(2, 512), (4, 256), (16, 64), (64, 64), (128, 32)] {
        let rig = rig(capacity(GIB), &format!("max_handle_mb:{mib}"));
        let block = rig.allocate(GIB, A);
        assert_eq!(rig.ledger().calls(DriverCall::Create), count);
        rig.free(block);
        rig.finish();
    }
}

#[test]
fn without_caching_freed_memory_goes_back_at_once() {
    let rig = rig(capacity(GIB), "caching:False");
    let block = rig.allocate(100 * MIB, A);
    rig.free(block);
    assert_eq!(rig.ledger().used, 0);
    rig.finish();
}

#[test]
fn beyond_the_share_of_time_for_moving_memory_is_taken_from_the_device() {
    for (percent, taken) in [(33, 0), (0, 20 * MIB)] {
        let rig = rig(capacity(4 * GIB), &format!("moving_percent:{percent},max_handle_mb:2"));
        let blocks: Vec<_> = (0..800).map(|_| rig.allocate(2 * MIB, A)).collect();
        let (idle, live): (Vec<_>, Vec<_>) =
            blocks.iter().enumerate().partition(|(at, _)| at % 2 == 1);
        idle.into_iter().for_each(|(_, &block)| rig.free(block));
        // Every other handle is idle. To move these takes longer than may be spent at once.
        let large = rig.allocate(700 * MIB, B);
        rig.allocator.clock().set_us(60_000_000);
        let before = rig.ledger().used;
        let small = rig.allocate(20 * MIB, B);
        assert_eq!(rig.ledger().used - before, taken, "{percent} percent");
        live.into_iter().for_each(|(_, &block)| rig.free(block));
        [large, small].into_iter().for_each(|block| rig.free(block));
        rig.finish();
    }
}

/// Lets so many milliseconds pass for the allocator, and gives it the chance to look.
fn rest(rig: &Rig, now_ms: &mut u64, milliseconds: u64) {
    *now_ms += milliseconds;
    rig.allocator.clock().set_us(*now_ms * 1000);
    rig.allocator.process_events().unwrap();
}

#[test]
fn memory_that_was_idle_for_the_time_that_is_set_goes_back() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = rig(options, "release_idle_ms:1000,max_handle_mb:2");
        let mut now = 0;
        rest(&rig, &mut now, 0);
        let blocks = [60 * MIB, 40 * MIB].map(|bytes| rig.allocate(bytes, A));
        let small = [(); 3].map(|()| rig.allocate(KIB, A));
        rig.free(blocks[0]);
        small.into_iter().for_each(|address| rig.free(address));
        rest(&rig, &mut now, 999);
        assert_eq!(rig.ledger().used, 102 * MIB, "nothing has been idle for a second");
        // Looks begin a second; the memory has to be idle for all of the next.
        (0..3).for_each(|_| rest(&rig, &mut now, 1000));
        assert_eq!(rig.ledger().used, 40 * MIB, "what is live stays");
        assert_eq!(rig.allocator.memory_info(GPU).unwrap().free, (1024 - 40) * MIB);
        rig.free(blocks[1]);
        (0..3).for_each(|_| rest(&rig, &mut now, 1000));
        assert_eq!(rig.ledger().used, 0);
        rig.finish();
    }
}

#[test]
fn memory_that_was_needed_in_between_stays() {
    for options in [capacity(GIB), plain(GIB)] {
        let rig = rig(options, "release_idle_ms:1000,max_handle_mb:2");
        let mut now = 0;
        let first = rig.allocate(100 * MIB, A);
        rig.free(first);
        for round in 0..8 {
            rest(&rig, &mut now, 500);
            // Other sizes each time, so that it is not one block that is handed out again.
            let block = rig.allocate([70, 67][round % 2] * MIB, A);
            rig.free(block);
            // The last block is kept aside, and that is to be another one.
            let last = rig.allocate(2 * MIB, A);
            rig.free(last);
        }
        let used = rig.ledger().used;
        assert!(used >= 70 * MIB, "{used} bytes are left of what is needed twice a second");
        if rig.ledger().calls(DriverCall::Map) > 0 {
            assert!(used < 76 * MIB, "{used} bytes are left, though no more than 70 are needed");
        }
        rig.finish();
    }
}

#[test]
fn memory_that_queued_work_uses_is_not_given_back_and_not_waited_for() {
    let options = SimOptions { wait_for_release: true, ..capacity(GIB) };
    let rig = rig(options, "release_idle_ms:1000");
    let mut now = 0;
    rig.device().hold(A).unwrap();
    let block = rig.allocate(100 * MIB, A);
    rig.fill(block, 0x77, 100 * MIB, A);
    rig.free(block);
    (0..4).for_each(|_| rest(&rig, &mut now, 1000));
    assert_eq!(rig.ledger().used, 100 * MIB);
    rig.device().resume(A).unwrap();
    (0..2).for_each(|_| rest(&rig, &mut now, 1000));
    assert_eq!(rig.ledger().used, 0);
    rig.finish();
}
