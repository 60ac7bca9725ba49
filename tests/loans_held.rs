//! Loans together with what holds memory in place: exports to other processes, captures, and
//! private pools.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{A, B, C, GPU, Random, Rig, capacity, config, two_blocks};
use plugalloc::device::sim::SimOptions;
use plugalloc::device::{CaptureId, Device};
use plugalloc::error::DriverCall;
use plugalloc::units::{Address, Bytes, GRANULE, KIB, MIB, PoolId, StreamId};

/// What a request for this takes in the 8 MiB of `two_blocks`: two handles and a part of another.
const BORROWED: Bytes = 5632 * KIB;
/// What stays of the lender in the handle that is at two places, and in the one before it.
const KEPT: Bytes = 2560 * KIB;
const POOL: PoolId = PoolId(1, 0);

/// A block of A, one of B that has borrowed what the first leaves, and the whole device in use.
fn lent() -> (Rig, Address, Address) {
    let (rig, [kept, freed]) = two_blocks();
    rig.free(freed);
    let borrowed = rig.allocate(BORROWED, B);
    (rig, kept, borrowed)
}

/// The end of a test that shared memory: processes that other tests start have all descriptors,
/// also of exported memory, until they run their program.
fn finish_exports(rig: Rig) {
    rig.allocator.empty_cache().unwrap();
    let start = Instant::now();
    while rig.ledger().used > 0 && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.finish();
}

#[test]
fn an_export_of_borrowed_memory_holds_the_loan_until_it_ends() {
    let (rig, kept, borrowed) = lent();
    let shared = rig.allocator.share(borrowed).unwrap();
    let opened = rig.allocator.open_shared(GPU, &shared.handle).unwrap();
    assert!(shared.offset + BORROWED <= opened.bytes());
    rig.fill(kept, 0xaa, KEPT, A);
    rig.fill(opened.address() + shared.offset, 0x42, BORROWED, C);
    rig.assert_filled(borrowed, 0x42, BORROWED);
    rig.assert_filled(kept, 0xaa, KEPT);
    // The lender's memory serves again, but not what it has lent.
    rig.free(kept);
    rig.allocator.empty_cache().unwrap();
    rig.allocator.is_valid().unwrap();
    let again = rig.allocate(KEPT, A);
    rig.fill(again, 0xbb, KEPT, A);
    rig.out_of_memory(1536 * KIB, A);
    rig.assert_filled(opened.address() + shared.offset, 0x42, BORROWED);
    drop(opened);
    rig.free(borrowed);
    let back = rig.allocate(BORROWED, A);
    rig.fill(back, 0xcc, BORROWED, A);
    rig.assert_filled(again, 0xbb, KEPT);
    [again, back].into_iter().for_each(|block| rig.free(block));
    finish_exports(rig);
}

#[test]
fn an_export_of_memory_whose_handle_lends_leaves_the_loan_alone() {
    let (rig, kept, borrowed) = lent();
    let shared = rig.allocator.share(kept).unwrap();
    let opened = rig.allocator.open_shared(GPU, &shared.handle).unwrap();
    rig.fill(borrowed, 0xbb, BORROWED, B);
    rig.fill(opened.address() + shared.offset, 0x42, KEPT, C);
    rig.assert_filled(kept, 0x42, KEPT);
    rig.assert_filled(borrowed, 0xbb, BORROWED);
    // The loan ends; what is shared stays where it is, and lends nothing more.
    rig.free(borrowed);
    let back = rig.allocate(BORROWED, A);
    rig.fill(back, 0xcc, BORROWED, A);
    rig.assert_filled(opened.address() + shared.offset, 0x42, KEPT);
    rig.free(back);
    rig.out_of_memory(BORROWED, B);
    drop(opened);
    rig.free(kept);
    let all = rig.allocate(8 * MIB, B);
    rig.free(all);
    finish_exports(rig);
}

/// What the host may not do while a capture is under way that a wait would spoil.
fn waits(rig: &Rig) -> u64 {
    let calls = [DriverCall::EventQuery, DriverCall::EventSynchronize, DriverCall::Unmap];
    calls.iter().map(|&call| rig.ledger().calls(call)).sum()
}

#[test]
fn nothing_is_lent_to_a_captured_stream_nor_by_one() {
    for captured in [A, B] {
        let (rig, [kept, freed]) = two_blocks();
        rig.free(freed);
        rig.device().capture_begin(captured).unwrap();
        rig.out_of_memory(BORROWED, B);
        rig.allocator.is_valid().unwrap();
        rig.device().capture_end(captured).unwrap();
        let borrowed = rig.allocate(BORROWED, B);
        [kept, borrowed].into_iter().for_each(|block| rig.free(block));
        rig.finish();
    }
}

#[test]
fn a_captured_stream_takes_more_memory_where_another_would_borrow() {
    let taken = |capture: bool| {
        let rig = Rig::new(capacity(64 * MIB), config(|c| c.max_handle = GRANULE));
        let (kept, own) = (rig.allocate(KEPT, A), rig.allocate(4 * MIB, B));
        rig.free(own);
        if capture {
            rig.device().capture_begin(B).unwrap();
        }
        let block = rig.allocate(5 * MIB, B);
        rig.fill(block, 0xbb, 5 * MIB, B);
        let taken = rig.ledger().used;
        if capture {
            let graph = rig.device().capture_end(B).unwrap();
            rig.device().graph_launch(graph, C).unwrap();
        }
        rig.assert_filled(block, 0xbb, 5 * MIB);
        [kept, block].into_iter().for_each(|block| rig.free(block));
        rig.finish();
        taken
    };
    assert_eq!((taken(false), taken(true)), (8 * MIB, 10 * MIB));
}

/// Two streams leave something, the one that is being captured what would fit best.
#[test]
fn another_stream_lends_where_a_captured_one_must_not() {
    for captured in [A, C] {
        let rig = Rig::new(capacity(12 * MIB), config(|c| c.max_handle = GRANULE));
        let lenders = [rig.allocate(2560 * KIB, A), rig.allocate(2560 * KIB, C)];
        let other = if captured == A { C } else { A };
        let shorter = rig.allocate(256 * KIB + MIB, captured);
        rig.device().capture_begin(captured).unwrap();
        let block = rig.allocate(4 * MIB + 128 * KIB, B);
        rig.allocator.is_valid().unwrap();
        rig.fill(block, 0xbb, 4 * MIB + 128 * KIB, B);
        rig.fill(lenders[usize::from(other == C)], 0xcc, 2560 * KIB, other);
        rig.assert_filled(block, 0xbb, 4 * MIB + 128 * KIB);
        rig.device().capture_end(captured).unwrap();
        lenders.into_iter().chain([shorter, block]).for_each(|block| rig.free(block));
        rig.finish();
    }
}

#[test]
fn a_loan_does_not_end_while_its_lender_or_its_borrower_is_captured() {
    for captured in [A, B] {
        let (rig, kept, borrowed) = lent();
        rig.device().capture_begin(captured).unwrap();
        // In the graph, if the borrower is captured.
        rig.fill(borrowed, 0xbb, BORROWED, B);
        rig.free(borrowed);
        // Two handles at most, which nothing in the graph uses.
        rig.out_of_memory(BORROWED, A);
        rig.out_of_memory(BORROWED, C);
        let still = rig.allocate(1536 * KIB, B);
        rig.free(still);
        rig.allocator.is_valid().unwrap();
        let graph = rig.device().capture_end(captured).unwrap();
        rig.fill(kept, 0xaa, KEPT, A);
        rig.device().graph_launch(graph, B).unwrap();
        rig.assert_filled(kept, 0xaa, KEPT);
        let back = rig.allocate(BORROWED, A);
        [kept, back].into_iter().for_each(|block| rig.free(block));
        rig.finish();
    }
}

#[test]
fn a_capture_that_no_wait_may_disturb_leaves_loans_as_they_are() {
    let options = SimOptions { global_capture: true, ..capacity(8 * MIB) };
    let rig = Rig::new(options, config(|c| c.max_handle = GRANULE));
    let (kept, freed) = (rig.allocate(KEPT, A), rig.allocate(1536 * KIB, A));
    rig.free(freed);
    let borrowed = rig.allocate(BORROWED, B);
    // B has work to do, and a mark behind it that somebody has looked at.
    rig.device().hold(B).unwrap();
    rig.fill(borrowed, 0xbb, BORROWED, B);
    rig.free(borrowed);
    let back = rig.allocate(BORROWED, A);
    rig.free(back);
    let borrowed = rig.allocate(BORROWED, B);
    rig.allocator.mark_capture_begin(GPU).unwrap();
    rig.device().capture_begin(C).unwrap();
    let before = waits(&rig);
    rig.free(borrowed);
    // The lender waits for the borrower on the device, which disturbs nothing.
    let back = rig.allocate(BORROWED, A);
    rig.free(back);
    let again = rig.allocate(BORROWED, B);
    rig.free(again);
    rig.allocator.empty_cache().unwrap();
    rig.out_of_memory(7 * MIB, C);
    assert_eq!(waits(&rig), before, "no event was asked or waited for, and nothing unmapped");
    rig.device().capture_end(C).unwrap();
    rig.allocator.mark_capture_end(GPU).unwrap();
    rig.device().resume(B).unwrap();
    rig.free(kept);
    rig.finish();
}

/// Opens the pool for the stream and captures it.
fn begin(rig: &Rig, stream: StreamId) {
    rig.allocator.begin_allocate_to_pool(GPU, POOL, move |on| on == stream).unwrap();
    rig.device().capture_begin(stream).unwrap();
}

fn end(rig: &Rig, stream: StreamId) -> CaptureId {
    let graph = rig.device().capture_end(stream).unwrap();
    rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
    graph
}

fn forget(rig: &Rig, graph: CaptureId) {
    rig.device().graph_destroy(graph).unwrap();
    rig.allocator.release_pool(GPU, POOL).unwrap();
}

#[test]
fn private_pools_neither_lend_nor_borrow() {
    // The pool leaves 1.5 MiB: the graph may use that.
    let rig = Rig::new(capacity(8 * MIB), config(|c| c.max_handle = GRANULE));
    begin(&rig, A);
    let (kept, freed) = (rig.allocate(KEPT, A), rig.allocate(1536 * KIB, A));
    rig.fill(freed, 0x11, 1536 * KIB, A);
    rig.free(freed);
    let graph = end(&rig, A);
    for stream in [A, B] {
        rig.out_of_memory(BORROWED, stream);
    }
    let others = rig.allocate(4 * MIB, B);
    rig.fill(others, 0xbb, 4 * MIB, B);
    rig.device().graph_launch(graph, C).unwrap();
    rig.assert_filled(freed, 0x11, 1536 * KIB);
    rig.assert_filled(others, 0xbb, 4 * MIB);
    [kept, others].into_iter().for_each(|block| rig.free(block));
    forget(&rig, graph);
    rig.finish();
    // What others leave is not the pool's, whether that is captured or not.
    for (stream, capture) in [(A, true), (B, true), (A, false), (B, false)] {
        let (rig, [kept, freed]) = two_blocks();
        rig.free(freed);
        rig.allocator.begin_allocate_to_pool(GPU, POOL, move |on| on == stream).unwrap();
        if capture {
            rig.device().capture_begin(stream).unwrap();
        }
        let inside = rig.allocate(64 * KIB, stream);
        rig.out_of_memory(BORROWED - GRANULE, stream);
        let rest = rig.allocate(2 * MIB, stream);
        rig.allocator.is_valid().unwrap();
        if capture {
            rig.device().capture_end(stream).unwrap();
        }
        rig.allocator.end_allocate_to_pool(GPU, POOL).unwrap();
        [kept, inside, rest].into_iter().for_each(|block| rig.free(block));
        rig.allocator.release_pool(GPU, POOL).unwrap();
        rig.finish();
    }
}

/// Random blocks of two streams in what the pool leaves of the device, which lend to each other.
fn random_loans(rig: &Rig, random: &mut Random, live: &mut Vec<(Address, Bytes, u8)>) {
    for _ in 0..24 {
        if live.len() > 6 || (random.below(2) == 0 && !live.is_empty()) {
            let (block, bytes, value) = live.swap_remove(random.below(live.len() as u64) as usize);
            rig.assert_filled(block, value, bytes);
            rig.free(block);
        } else {
            let (bytes, stream) = (1 + random.below(4 * MIB), [B, C][random.below(2) as usize]);
            if let Ok(block) = rig.try_allocate(bytes, stream) {
                let value = random.next() as u8;
                rig.fill(block, value, bytes, stream);
                live.push((block, bytes, value));
            }
        }
    }
}

#[test]
fn graphs_replay_rightly_while_others_lend_to_each_other() {
    let seed = Random::seed(71);
    for case in 0..6 {
        let mut random = Random::new(seed + case);
        let rig = Rig::new(capacity(16 * MIB), config(|c| c.max_handle = GRANULE));
        let mut live = Vec::new();
        random_loans(&rig, &mut random, &mut live);
        begin(&rig, A);
        let mut results = Vec::new();
        for value in 1..4 {
            let bytes = 1 + random.below(3 * MIB);
            let Ok(scratch) = rig.try_allocate(bytes, A) else {
                continue;
            };
            rig.fill(scratch, value, bytes, A);
            // Others lend and borrow in the middle of the capture.
            random_loans(&rig, &mut random, &mut live);
            rig.free(scratch);
            if let Ok(result) = rig.try_allocate(64 * KIB, A) {
                rig.fill(result, value, 64 * KIB, A);
                results.push((result, value));
            }
        }
        let graph = end(&rig, A);
        for turn in 0..6 {
            random_loans(&rig, &mut random, &mut live);
            rig.device().graph_launch(graph, [B, C][turn % 2]).unwrap();
            results.iter().for_each(|&(at, value)| rig.assert_filled(at, value, 64 * KIB));
            rig.allocator.is_valid().unwrap();
        }
        live.iter().for_each(|&(at, bytes, value)| rig.assert_filled(at, value, bytes));
        let blocks = live.iter().map(|block| block.0).chain(results.iter().map(|r| r.0));
        blocks.for_each(|block| rig.free(block));
        forget(&rig, graph);
        rig.finish();
    }
}
