//! Allocating and freeing on one stream: sizes, reuse, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::{A, B, GPU, Rig, SIZES, capacity, config, fault};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{Error, PointerFault};
use plugalloc::units::{Bytes, DeviceId, GIB, KIB, MIB, StreamId};

#[test]
fn addresses_are_multiples_of_512() {
    let rig = Rig::of(GIB);
    let live: Vec<_> = SIZES.iter().map(|&bytes| rig.allocate(bytes, A)).collect();
    for (address, bytes) in live.into_iter().zip(SIZES) {
        assert_eq!(address % 512, 0, "{bytes} bytes");
        assert_ne!(address, 0);
        rig.free(address);
    }
    rig.finish();
}

#[test]
fn a_freed_block_serves_the_next_request_of_its_size() {
    for bytes in SIZES {
        let rig = Rig::of(GIB);
        let first = rig.allocate(bytes, A);
        rig.free(first);
        let calls = rig.ledger().total_calls;
        assert_eq!(rig.allocate(bytes, A), first, "{bytes} bytes");
        assert_eq!(rig.ledger().total_calls, calls, "a hit in the cache calls no driver");
        rig.free(first);
        rig.finish();
    }
}

#[test]
fn a_block_is_split_and_its_parts_are_joined_again() {
    let rig = Rig::of(GIB);
    let whole = rig.allocate(16 * MIB, A);
    rig.free(whole);
    let parts: Vec<_> = (0..4).map(|_| rig.allocate(4 * MIB, A)).collect();
    assert_eq!(parts, (0..4).map(|k| whole + k * 4 * MIB).collect::<Vec<_>>());
    for k in [2, 0, 3, 1] {
        rig.free(parts[k]);
    }
    assert_eq!(rig.allocate(16 * MIB, A), whole);
    assert_eq!(rig.ledger().used, 16 * MIB);
    rig.free(whole);
    rig.finish();
}

#[test]
fn small_and_large_requests_live_apart() {
    let rig = Rig::of(GIB);
    let small = rig.allocate(MIB, A);
    let large = rig.allocate(MIB + 1, A);
    let (small_base, small_bytes) = rig.allocator.base_allocation(small).unwrap();
    assert!(large < small_base || large >= small_base + small_bytes);
    rig.free(large);
    let other = rig.allocate(512, A);
    assert_eq!(other, small + MIB, "a small request does not use the large block that is free");
    rig.free(small);
    rig.free(other);
    rig.finish();
}

#[test]
fn zero_bytes_are_the_null_pointer() {
    let rig = Rig::of(GIB);
    assert_eq!(rig.allocate(0, A), 0);
    rig.free(0);
    rig.allocator.record_stream(0, B).unwrap();
    assert_eq!(rig.statistics().allocation.all.allocated, 0);
    rig.finish();
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_asked() {
    let rig = Rig::of(GIB);
    let calls = rig.ledger().total_calls;
    for bytes in [1 << 60, u64::MAX] {
        match rig.try_allocate(bytes, A) {
            Err(Error::SizeTooLarge { bytes: asked, max }) => {
                assert_eq!((asked, max), (bytes, (1 << 60) - 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.ledger().total_calls, calls);
    let most = rig.out_of_memory((1 << 60) - 1, A);
    assert_eq!(most.requested, (1 << 60) - 1);
    rig.finish();
}

#[test]
fn devices_that_do_not_exist_are_refused() {
    let rig = Rig::of(GIB);
    for device in [DeviceId(1), DeviceId(-1), DeviceId(i32::MAX)] {
        let results = [
            rig.allocator.allocate(device, 1, A).map(|_| ()),
            rig.allocator.statistics(device).map(|_| ()),
            rig.allocator.set_memory_fraction(device, 0.5),
            rig.allocator.memory_info(device).map(|_| ()),
        ];
        for result in results {
            let Err(Error::InvalidDevice { device: asked, count }) = result else {
                panic!("{device}: {result:?}");
            };
            assert_eq!((asked, count), (device, 1));
        }
    }
    rig.finish();
}

#[test]
fn devices_do_not_mix() {
    let rig = Rig::new(SimOptions { devices: 2, ..capacity(GIB) }, Config::default());
    let allocate = |device| rig.allocator.allocate(DeviceId(device), 3 * MIB, A).unwrap();
    let first = allocate(0);
    rig.free(first);
    let second = allocate(1);
    assert_ne!(second, first);
    assert_eq!(rig.allocator.block(second).unwrap().device, DeviceId(1));
    let used = |device: usize| rig.machine.device(device).ledger().used;
    assert_eq!((used(0), used(1)), (4 * MIB, 4 * MIB));
    assert_eq!(rig.allocator.statistics(DeviceId(1)).unwrap().allocation.all.allocated, 1);
    assert_eq!(rig.allocator.statistics(GPU).unwrap().allocation.all.current, 0);
    rig.free(second);
    rig.finish();
}

#[test]
fn an_address_that_was_never_given_out_is_foreign() {
    let rig = Rig::of(GIB);
    let on_the_host = [0u8; 64];
    let live = rig.allocate(512, A);
    let outside = [on_the_host.as_ptr() as u64, 0x1000, u64::MAX, live + (1 << 40)];
    for address in outside {
        assert_eq!(fault(rig.allocator.free(address)), PointerFault::Foreign, "{address:#x}");
        assert_eq!(fault(rig.allocator.record_stream(address, B)), PointerFault::Foreign);
        assert_eq!(fault(rig.allocator.block(address)), PointerFault::Foreign);
        assert_eq!(fault(rig.allocator.base_allocation(address)), PointerFault::Foreign);
        assert!(!rig.allocator.owns(address));
    }
    let text = rig.allocator.free(0x1000).unwrap_err().to_string();
    assert_eq!(text, "Trying to free a pointer not allocated here: 0x1000");
    let asked = [
        rig.allocator.record_stream(0x1000, B).map(drop),
        rig.allocator.block(0x1000).map(drop),
        rig.allocator.base_allocation(0x1000).map(drop),
        rig.allocator.pin(0x1000).map(drop),
        rig.allocator.share(0x1000).map(drop),
        rig.allocator.adopt(0x1000).map(drop),
    ];
    let words =
        ["record a stream for", "look up", "find the memory around", "pin", "share", "look up"];
    for (result, words) in asked.into_iter().zip(words) {
        let text = result.unwrap_err().to_string();
        assert_eq!(text, format!("Trying to {words} a pointer not allocated here: 0x1000"));
    }
    rig.free(live);
    rig.finish();
}

#[test]
fn pointers_into_what_was_allocated_without_caching_are_known() {
    let rig = Rig::of(GIB);
    rig.allocator.set_caching(false);
    let block = rig.allocate(5000, A);
    let inside = block + 8;
    for answer in [rig.allocator.free(inside), rig.allocator.record_stream(inside, B)] {
        assert!(matches!(fault(answer), PointerFault::Interior { start, .. } if start == block));
    }
    assert_eq!(rig.allocator.base_allocation(inside).unwrap().0, block);
    assert!(matches!(rig.allocator.pin(inside), Err(Error::Unsupported { .. })));
    rig.free(block);
    assert_eq!(fault(rig.allocator.free(block)), PointerFault::Foreign);
    rig.allocator.set_caching(true);
    rig.finish();
}

#[test]
fn a_second_free_is_refused_at_once() {
    for bytes in SIZES {
        let rig = Rig::of(GIB);
        let address = rig.allocate(bytes, A);
        rig.free(address);
        assert_eq!(fault(rig.allocator.free(address)), PointerFault::DoubleFree);
        assert_eq!(fault(rig.allocator.record_stream(address, B)), PointerFault::DoubleFree);
        rig.finish();
    }
}

#[test]
fn a_second_free_is_refused_after_the_block_was_joined() {
    let rig = Rig::of(GIB);
    // More of one size than are kept aside, so that some of them are joined.
    let blocks: Vec<_> = (0..32).map(|_| rig.allocate(64 * KIB, A)).collect();
    blocks.iter().for_each(|&address| rig.free(address));
    for &address in &blocks {
        assert_eq!(fault(rig.allocator.free(address)), PointerFault::DoubleFree);
    }
    rig.finish();
}

#[test]
fn a_second_free_is_refused_while_the_first_waits_for_a_stream() {
    let rig = Rig::of(GIB);
    let address = rig.allocate(MIB, A);
    rig.device().hold(B).unwrap();
    rig.allocator.record_stream(address, B).unwrap();
    rig.free(address);
    assert_eq!(fault(rig.allocator.free(address)), PointerFault::DoubleFree);
    rig.device().resume(B).unwrap();
    rig.allocator.process_events().unwrap();
    assert_eq!(fault(rig.allocator.free(address)), PointerFault::DoubleFree);
    rig.finish();
}

#[test]
fn a_pointer_into_the_middle_is_refused_with_the_block_around_it() {
    let rig = Rig::of(GIB);
    for bytes in [1000, 5 * MIB + 7] {
        let start = rig.allocate(bytes, A);
        for offset in [1, 512, bytes - 1] {
            let expected = PointerFault::Interior { start, bytes };
            assert_eq!(fault(rig.allocator.free(start + offset)), expected);
            assert_eq!(fault(rig.allocator.block(start + offset)), expected);
        }
        let text = rig.allocator.free(start + 1).unwrap_err().to_string();
        assert!(text.contains(&format!("the allocation of {bytes} bytes at {start:#x}")), "{text}");
        rig.free(start);
    }
    rig.finish();
}

#[test]
fn a_block_is_known_by_its_size_device_and_stream() {
    let rig = Rig::of(GIB);
    let small = [(1, 512), (513, 1024), (16 * KIB, 16 * KIB), (16 * KIB + 1, 17 * KIB)];
    let large = [(600 * KIB + 1, 608 * KIB), (MIB, MIB), (MIB + 1, MIB + 4096)];
    for (bytes, served) in small.into_iter().chain(large) {
        let address = rig.allocate(bytes, B);
        let block = rig.allocator.block(address).unwrap();
        assert_eq!((block.address, block.requested, block.bytes), (address, bytes, served));
        assert_eq!((block.device, block.stream), (GPU, B));
        assert!(rig.allocator.owns(address) && rig.allocator.owns(address + bytes - 1));
        rig.free(address);
    }
    rig.finish();
}

#[test]
fn the_base_allocation_contains_the_block_and_its_neighbours() {
    let rig = Rig::of(GIB);
    let first = rig.allocate(3 * MIB, A);
    let second = rig.allocate(3 * MIB, A);
    let (base, bytes) = rig.allocator.base_allocation(second + 5).unwrap();
    assert_eq!((base, bytes), (first, 6 * MIB));
    rig.free(first);
    rig.free(second);
    rig.finish();
}

#[test]
fn patterns_survive_what_happens_around_them() {
    let rig = Rig::of(GIB);
    let mut live = Vec::new();
    for round in 0..60u64 {
        let bytes = SIZES[(round % 7) as usize].min(MIB + 1);
        let address = rig.allocate(bytes, A);
        rig.fill(address, round as u8, bytes, A);
        live.push((address, round as u8, bytes));
        if round % 3 == 2 {
            let (address, value, bytes) = live.remove((round as usize * 7) % live.len());
            rig.assert_filled(address, value, bytes);
            rig.free(address);
        }
    }
    for (address, value, bytes) in live {
        rig.assert_filled(address, value, bytes);
        rig.free(address);
    }
    rig.finish();
}

#[test]
fn free_memory_grows_in_place() {
    let rig = Rig::of(GIB);
    let first = rig.allocate(10 * MIB, A);
    rig.free(first);
    let second = rig.allocate(20 * MIB, A);
    assert_eq!(second, first);
    assert_eq!(rig.ledger().used, 20 * MIB);
    rig.free(second);
    rig.finish();
}

#[test]
fn sizes_are_rounded_up_to_divisions_of_powers_of_two() {
    let rig = Rig::new(capacity(GIB), config(|c| c.roundup_power2_divisions = [4; 16]));
    for (bytes, served) in [(1200, 1536), (1100 * KIB, 1280 * KIB), (9 * MIB, 10 * MIB)] {
        let address = rig.allocate(bytes, A);
        let block = rig.allocator.block(address).unwrap();
        assert_eq!((block.requested, block.bytes), (bytes, served));
        rig.free(address);
    }
    rig.finish();
}

#[test]
fn what_is_in_use_is_told_as_such() {
    let rig = Rig::of(64 * MIB);
    let in_use = || match rig.allocator.is_quiescent() {
        Err(Error::InUse(used)) => used,
        other => panic!("{other:?}"),
    };
    let (first, second) = (rig.allocate(20 * MIB, A), rig.allocate(1000, A));
    let served = rig.served(first) + rig.served(second);
    let used = in_use();
    assert_eq!((used.device, used.allocations, used.allocated), (GPU, 2, served as Bytes));
    assert_eq!((used.recorded, used.waiting, used.pins), (0, 0, 0));
    let text = rig.allocator.is_quiescent().unwrap_err().to_string();
    assert_eq!(text, "device 0 is in use: 2 allocation(s) of 20.00 MiB live");
    rig.device().hold(B).unwrap();
    rig.fill(first, 1, 1000, B);
    rig.allocator.record_stream(first, B).unwrap();
    assert_eq!(in_use().recorded, 1);
    rig.free(first);
    let pin = rig.allocator.pin(second).unwrap();
    rig.free(second);
    let used = in_use();
    assert_eq!((used.allocations, used.allocated, used.recorded), (0, 0, 0));
    assert_eq!((used.waiting, used.pins), (1, 1));
    rig.device().resume(B).unwrap();
    drop(pin);
    rig.allocator.process_events().unwrap();
    rig.finish();
}

#[test]
fn after_every_refusal_the_allocator_goes_on() {
    let rig = Rig::of(64 * MIB);
    let live = rig.allocate(20 * MIB, A);
    for _ in 0..3 {
        assert!(rig.try_allocate(1 << 60, A).is_err());
        assert!(rig.try_allocate(65 * MIB, StreamId::DEFAULT).unwrap_err().is_out_of_memory());
        assert!(rig.allocator.free(live + 512).unwrap_err().is_invalid_pointer());
        assert!(rig.allocator.free(0x10).unwrap_err().is_invalid_pointer());
        assert!(rig.allocator.set_memory_fraction(GPU, 1.5).is_err());
        assert!(rig.allocator.set_memory_fraction(GPU, f64::NAN).is_err());
        rig.allocator.is_valid().unwrap();
        let other = rig.allocate(40 * MIB, B);
        rig.free(other);
    }
    rig.free(live);
    rig.finish();
}
