//! Loans: one handle in use at two addresses. Shown with work that is held back on one stream while
//! memory passes to another, and on random loads in little memory, where every byte of every block
//! is looked at when it is freed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{A, B, C, GPU, Random, Rig, capacity, config, two_blocks};
use plugalloc::device::Device;
use plugalloc::error::Error;
use plugalloc::units::{Address, Bytes, GRANULE, KIB, MIB, StreamId};

#[test]
fn work_of_the_lender_comes_before_that_of_the_borrower() {
    for order in [[A, B], [B, A]] {
        let (rig, [kept, freed]) = two_blocks();
        [A, B].into_iter().for_each(|stream| rig.device().hold(stream).unwrap());
        rig.fill(kept, 0xaa, 2560 * KIB, A);
        rig.fill(freed, 0xaa, 1536 * KIB, A);
        rig.free(freed);
        // Two handles and the end of another one.
        let borrowed = rig.allocate(5632 * KIB, B);
        rig.fill(borrowed, 0xbb, 5632 * KIB, B);
        assert_eq!(rig.ledger().used, 8 * MIB);
        order.into_iter().for_each(|stream| rig.device().resume(stream).unwrap());
        rig.assert_filled(borrowed, 0xbb, 5632 * KIB);
        rig.assert_filled(kept, 0xaa, 2560 * KIB);
        [kept, borrowed].into_iter().for_each(|block| rig.free(block));
        rig.finish();
    }
}

#[test]
fn work_of_the_borrower_comes_before_what_the_lender_does_after_it() {
    for order in [[A, B], [B, A]] {
        let (rig, [kept, freed]) = two_blocks();
        rig.free(freed);
        let borrowed = rig.allocate(5632 * KIB, B);
        [A, B].into_iter().for_each(|stream| rig.device().hold(stream).unwrap());
        rig.fill(kept, 0xaa, 2560 * KIB, A);
        rig.fill(borrowed, 0xbb, 5632 * KIB, B);
        rig.free(borrowed);
        let again = rig.allocate(5632 * KIB, A);
        rig.fill(again, 0xcc, 5632 * KIB, A);
        order.into_iter().for_each(|stream| rig.device().resume(stream).unwrap());
        rig.assert_filled(again, 0xcc, 5632 * KIB);
        rig.assert_filled(kept, 0xaa, 2560 * KIB);
        [kept, again].into_iter().for_each(|block| rig.free(block));
        rig.finish();
    }
}

#[test]
fn a_third_stream_that_was_recorded_holds_the_loan_up() {
    let (rig, [kept, freed]) = two_blocks();
    rig.free(freed);
    let borrowed = rig.allocate(5632 * KIB, B);
    rig.device().hold(C).unwrap();
    rig.fill(borrowed, 0xcc, 5632 * KIB, C);
    rig.allocator.record_stream(borrowed, C).unwrap();
    rig.free(borrowed);
    let waits = rig.try_allocate(1536 * KIB, A);
    rig.device().resume(C).unwrap();
    rig.fill(kept, 0xaa, 2560 * KIB, A);
    if let Ok(block) = waits {
        rig.fill(block, 0xdd, 1536 * KIB, A);
        rig.assert_filled(block, 0xdd, 1536 * KIB);
        rig.free(block);
    }
    rig.assert_filled(kept, 0xaa, 2560 * KIB);
    rig.free(kept);
    rig.finish();
}

/// On which what is left of streams that ended is looked at.
const REST: StreamId = StreamId(0xeee);

/// A block and the bytes in it.
struct Live {
    bytes: Bytes,
    stream: StreamId,
    value: u8,
}

/// What a freed block had in it when its stream came to its end, and what it should have had.
struct Seen {
    bytes: Vec<u8>,
    value: u8,
}

/// Random blocks of four streams, whose work is held back now and then and which end at times, for
/// others to take their place, in less memory than they would like. Gives how many requests were
/// served and refused.
fn random_load(seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let handles = [GRANULE, 4 * MIB, 16 * MIB][random.below(3) as usize];
    let bytes = (20 + random.below(24)) * MIB;
    let rig = Rig::new(capacity(bytes), config(|c| c.max_handle = handles));
    rig.allocator.clock().set_us(0);
    let counts = random_steps(&rig, &mut random, seed);
    assert_eq!(rig.allocator.statistics(GPU).unwrap().allocated_bytes.all.current, 0);
    rig.finish();
    counts
}

fn resume(rig: &Rig, streams: &[StreamId]) {
    streams.iter().for_each(|&stream| rig.device().resume(stream).unwrap());
}

/// Ends one of the streams, on which nothing is held back, and puts a new one into its place.
fn replace(rig: &Rig, stream: &mut StreamId, live: &mut BTreeMap<Address, Live>) {
    rig.allocator.retire_stream(GPU, *stream).unwrap();
    rig.device().stream_destroy(*stream).unwrap();
    for block in live.values_mut().filter(|block| block.stream == *stream) {
        block.stream = REST;
    }
    *stream = rig.device().stream_create().unwrap();
}

/// Allocates; where the host would have to wait for work that is held back, that goes on first.
fn allocate(
    rig: &Rig,
    streams: &[StreamId],
    bytes: Bytes,
    stream: StreamId,
) -> Result<Address, Error> {
    match rig.try_allocate(bytes, stream) {
        Err(error) if !error.is_out_of_memory() => {
            assert!(error.to_string().contains("would wait for ever"), "{error}");
            resume(rig, streams);
            rig.try_allocate(bytes, stream)
        }
        result => result,
    }
}

fn random_steps(rig: &Rig, random: &mut Random, seed: u64) -> (u64, u64) {
    let mut live: BTreeMap<Address, Live> = BTreeMap::new();
    let mut seen: Vec<Seen> = Vec::new();
    let (mut served, mut refused) = (0, 0);
    let mut streams = [(); 4].map(|()| rig.device().stream_create().unwrap());
    for step in 0..250u64 {
        rig.allocator.clock().set_us(step * 10_000);
        let place = random.below(4) as usize;
        if random.below(16) == 0 {
            resume(rig, &streams);
            check(&mut seen, seed);
            replace(rig, &mut streams[place], &mut live);
        }
        let stream = streams[place];
        if random.below(3) == 0 {
            rig.device().hold(stream).unwrap();
        }
        if random.below(5) < 3 {
            let (least, most) =
                [(0, MIB), (MIB, 3 * MIB), (MIB, 9 * MIB)][random.below(3) as usize];
            let bytes = 1 + least + random.below(most);
            match allocate(rig, &streams, bytes, stream) {
                Ok(address) => {
                    let value = step as u8 | 1;
                    rig.fill(address, value, bytes, stream);
                    live.insert(address, Live { bytes, stream, value });
                    served += 1;
                }
                Err(error) => {
                    assert!(error.is_out_of_memory(), "{error}");
                    refused += 1;
                }
            }
        }
        while live.len() > 24 || (!live.is_empty() && random.below(5) < 2) {
            let at = random.below(live.len() as u64) as usize;
            let address = *live.keys().nth(at).unwrap();
            let Live { bytes, stream, value } = live.remove(&address).unwrap();
            let mut found = vec![0; bytes as usize];
            let to = found.as_mut_ptr() as Address;
            // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
            unsafe { rig.device().copy_async(to, address, bytes, stream) }.unwrap();
            seen.push(Seen { bytes: found, value });
            rig.free(address);
        }
        if step % 16 == 0 {
            rig.allocator.is_valid().unwrap();
        }
        if step % 32 == 0 {
            resume(rig, &streams);
            check(&mut seen, seed);
        }
    }
    resume(rig, &streams);
    check(&mut seen, seed);
    for (address, Live { bytes, value, .. }) in live {
        rig.assert_filled(address, value, bytes);
        rig.free(address);
    }
    assert_eq!(
        rig.ledger().calls_of_no_stream,
        0,
        "the driver was asked about streams that are gone"
    );
    (served, refused)
}

fn check(seen: &mut Vec<Seen>, seed: u64) {
    for Seen { bytes, value } in seen.drain(..) {
        let expected = vec![value; bytes.len()];
        assert!(bytes == expected, "a block was written to by another, seed {seed}");
    }
}

#[test]
fn no_byte_is_in_use_twice_under_random_loads() {
    let seed = Random::seed(41);
    let cases = 12;
    let (mut served, mut refused) = (0, 0);
    for case in 0..cases {
        let (here, not) = random_load(seed + case);
        (served, refused) = (served + here, refused + not);
    }
    assert!(refused > 0, "the device is too large for the test");
    println!("{cases} loads, {served} requests served, {refused} refused");
}
