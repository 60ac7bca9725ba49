//! Memory that was pinned stays in place, and observers are told of all that appears and
//! disappears: before it is used, and before it is unmapped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/mapping_books.rs"]
mod mapping_books;

use std::sync::{Arc, Weak};

use common::{A, B, C, GPU, Random, capacity, config, fault, plain};
use mapping_books::{Seen, observe};
use parking_lot::Mutex;
use plugalloc::device::Device;
use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::error::{DriverCall, Error, PointerFault};
use plugalloc::units::{Address, Bytes, GIB, MIB, PoolId};
use plugalloc::{Allocator, Config, MappingChange};

fn open(options: SimOptions, config: Config) -> (Arc<SimDevice>, Arc<Allocator>) {
    let machine = SimMachine::new(options).unwrap();
    let allocator = Arc::new(Allocator::new(machine.as_devices(), config).unwrap());
    (machine.device(0), allocator)
}

#[track_caller]
fn finish(device: &SimDevice, allocator: &Allocator) {
    allocator.process_events().unwrap();
    allocator.is_quiescent().unwrap();
    allocator.empty_cache().unwrap();
    assert_eq!(device.ledger().used, 0);
}

#[test]
fn pinned_memory_is_neither_moved_nor_given_back() {
    let (device, allocator) = open(capacity(64 * MIB), Config::default());
    let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
    let pin = allocator.pin(block).unwrap();
    assert_eq!((pin.address(), pin.bytes(), pin.device()), (block, 40 * MIB, GPU));
    device.fill_async(block, 0x5a, 40 * MIB, A).unwrap();
    allocator.free(block).unwrap();
    allocator.empty_cache().unwrap();
    assert_eq!(device.ledger().used, 40 * MIB);
    assert!(allocator.allocate(GPU, 40 * MIB, B).unwrap_err().is_out_of_memory());
    // Its own stream may use it, in place.
    assert_eq!(allocator.allocate(GPU, 50 * MIB, A).unwrap(), block);
    allocator.free(block).unwrap();
    assert!(allocator.is_quiescent().unwrap_err().to_string().contains("pinned"));
    drop(pin);
    let other = allocator.allocate(GPU, 60 * MIB, B).unwrap();
    allocator.free(other).unwrap();
    finish(&device, &allocator);
}

#[test]
fn pins_are_counted_and_cover_what_lies_under_the_allocation_only() {
    let (device, allocator) = open(capacity(64 * MIB), Config::default());
    let blocks = [0; 3].map(|_| allocator.allocate(GPU, 8 * MIB, A).unwrap());
    let first = allocator.pin(blocks[1]).unwrap();
    let second = allocator.pin(blocks[1] + 5).unwrap();
    assert_eq!((first.address(), first.bytes()), (second.address(), second.bytes()));
    blocks.iter().for_each(|&block| allocator.free(block).unwrap());
    allocator.empty_cache().unwrap();
    assert_eq!(device.ledger().used, 8 * MIB);
    drop(first);
    allocator.empty_cache().unwrap();
    assert_eq!(device.ledger().used, 8 * MIB);
    drop(second);
    finish(&device, &allocator);
}

#[test]
fn a_segment_is_pinned_whole() {
    let (device, allocator) = open(plain(GIB), Config::default());
    let block = allocator.allocate(GPU, 3 * MIB, A).unwrap();
    let pin = allocator.pin(block).unwrap();
    assert_eq!((pin.address(), pin.bytes()), (block, 20 * MIB));
    allocator.free(block).unwrap();
    allocator.empty_cache().unwrap();
    assert_eq!(device.ledger().used, 20 * MIB);
    drop(pin);
    finish(&device, &allocator);
}

#[test]
fn only_live_memory_with_a_cache_behind_it_can_be_pinned() {
    let (device, allocator) = open(capacity(GIB), Config::default());
    let block = allocator.allocate(GPU, MIB, A).unwrap();
    allocator.free(block).unwrap();
    assert_eq!(fault(allocator.pin(block)), PointerFault::DoubleFree);
    assert_eq!(fault(allocator.pin(0x1000)), PointerFault::Foreign);
    allocator.set_caching(false);
    let direct = allocator.allocate(GPU, MIB, A).unwrap();
    let error = allocator.pin(direct).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { operation, .. } if operation == "pinning memory")
    );
    allocator.free(direct).unwrap();
    finish(&device, &allocator);
}

#[test]
fn pinned_memory_stays_through_random_traffic_that_needs_everything() {
    let seed = Random::seed(0x51d);
    let mut random = Random::new(seed);
    let (device, allocator) = open(capacity(96 * MIB), Config::default());
    let registered = allocator.allocate(GPU, 5 * MIB, A).unwrap();
    let pin = allocator.pin(registered).unwrap();
    // What a network card would write, whoever the memory belongs to now.
    let (at, bytes) = (pin.address(), pin.bytes());
    allocator.free(registered).unwrap();
    let mut live: Vec<(Address, Bytes)> = Vec::new();
    for step in 0..2000 {
        if live.len() > 12 || (random.below(2) == 0 && !live.is_empty()) {
            let (block, _) = live.swap_remove(random.below(live.len() as u64) as usize);
            allocator.free(block).unwrap();
        } else if let Ok(block) = {
            let stream = [A, B, C][random.below(3) as usize];
            let bytes = random.size(40 * MIB);
            allocator.allocate(GPU, bytes, stream).inspect(|&block| live.push((block, bytes)))
        } {
            assert_ne!(block, 0);
        }
        if step % 50 == 0 {
            device.fill_async(at, step as u8, bytes, C).unwrap();
            allocator.empty_cache().unwrap();
            allocator.is_valid().unwrap();
        }
        // Nothing lies on it at other addresses: a fill of the pinned span shows nowhere else.
        if step % 200 == 7 {
            device.fill_async(at, 0xee, bytes, C).unwrap();
            for &(block, length) in &live {
                if block < at + bytes && at < block + length {
                    continue;
                }
                device.fill_async(block, 0x11, length, C).unwrap();
            }
            let mut seen = vec![0u8; bytes as usize];
            // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
            unsafe { device.copy_async(seen.as_mut_ptr() as Address, at, bytes, C) }.unwrap();
            let free = live.iter().all(|&(b, l)| b >= at + bytes || at >= b + l);
            assert!(!free || seen.iter().all(|&byte| byte == 0xee), "step {step}");
        }
    }
    live.iter().for_each(|&(block, _)| allocator.free(block).unwrap());
    drop(pin);
    finish(&device, &allocator);
}

#[test]
fn observers_know_of_all_memory_that_is_handed_out_and_of_nothing_that_is_gone() {
    let options = [capacity(96 * MIB), plain(96 * MIB)];
    let configs = [
        Config::default(),
        config(|c| {
            (c.garbage_collection_threshold, c.memory_fraction) = (0.4, 0.9);
        }),
        config(|c| c.caching = false),
    ];
    for (options, config) in options.iter().flat_map(|o| configs.iter().map(move |c| (o, c))) {
        let mut random = Random::new(Random::seed(11));
        let (device, allocator) = open(options.clone(), config.clone());
        let early = allocator.allocate(GPU, 3 * MIB, A).unwrap();
        let seen = observe(&allocator, &device);
        assert!(seen.lock().covers(early, 3 * MIB), "what was there before is told first");
        let mut live: Vec<Address> = vec![early];
        for step in 0..600 {
            if live.len() > 10 || (random.below(2) == 0 && !live.is_empty()) {
                let block = live.swap_remove(random.below(live.len() as u64) as usize);
                allocator.free(block).unwrap();
            } else {
                let (bytes, stream) = (random.size(30 * MIB), [A, B, C][random.below(3) as usize]);
                if let Ok(block) = allocator.allocate(GPU, bytes, stream) {
                    assert!(seen.lock().covers(block, bytes), "step {step}: {bytes} at {block:#x}");
                    live.push(block);
                }
            }
            if step % 100 == 99 {
                allocator.empty_cache().unwrap();
                allocator.is_valid().unwrap();
            }
        }
        live.iter().for_each(|&block| allocator.free(block).unwrap());
        allocator.empty_cache().unwrap();
        let seen = seen.lock();
        assert!(seen.spans.is_empty(), "{:?}", seen.spans);
        assert!(seen.mapped > 20 && seen.mapped == seen.unmapped);
        drop(seen);
        finish(&device, &allocator);
    }
}

#[test]
fn nothing_runs_out_of_memory_because_observers_have_to_be_told_first() {
    for options in [capacity(64 * MIB), plain(64 * MIB)] {
        let (device, allocator) = open(options, Config::default());
        let seen = observe(&allocator, &device);
        // Pieces of other sizes have to be given back before the last request fits.
        let blocks: Vec<Address> =
            (0..16).map(|_| allocator.allocate(GPU, 4 * MIB, A).unwrap_or(0)).collect();
        blocks.iter().for_each(|&block| allocator.free(block).unwrap());
        let block = allocator.allocate(GPU, 63 * MIB, B).unwrap();
        assert!(seen.lock().covers(block, 63 * MIB));
        allocator.free(block).unwrap();
        finish(&device, &allocator);
        assert!(seen.lock().spans.is_empty());
    }
}

#[test]
fn an_observer_may_call_the_allocator() {
    let (device, allocator) = open(capacity(64 * MIB), Config::default());
    let weak: Weak<Allocator> = Arc::downgrade(&allocator);
    let calls = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&calls);
    let id = allocator
        .observe_mappings(move |event| {
            *counter.lock() += 1;
            let Some(allocator) = weak.upgrade() else { return };
            // Others may have moved it on since.
            let _ = allocator.owns(event.address);
            assert!(allocator.statistics(GPU).unwrap().reserved_bytes.all.current >= 0);
            allocator.largest_free_block(GPU).unwrap();
            allocator.is_valid().unwrap();
            allocator.process_events().unwrap();
            allocator.empty_cache().unwrap();
            let block = allocator.allocate(GPU, MIB, C).unwrap();
            allocator.free(block).unwrap();
        })
        .unwrap();
    std::thread::scope(|scope| {
        for stream in [A, B] {
            let allocator = &allocator;
            scope.spawn(move || {
                for round in 1..40 {
                    let block = allocator.allocate(GPU, round * 300_000, stream).unwrap();
                    allocator.free(block).unwrap();
                    allocator.empty_cache().unwrap();
                }
            });
        }
    });
    assert!(*calls.lock() > 10);
    assert!(allocator.unobserve_mappings(id).unwrap());
    assert!(!allocator.unobserve_mappings(id).unwrap());
    let before = *calls.lock();
    let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
    allocator.free(block).unwrap();
    finish(&device, &allocator);
    assert_eq!(*calls.lock(), before);
}

#[test]
fn what_could_not_be_given_back_is_told_as_mapped_again() {
    let (device, allocator) = open(plain(64 * MIB), Config::default());
    let seen = observe(&allocator, &device);
    let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
    allocator.free(block).unwrap();
    device.fail_nth(DriverCall::Free, 1);
    allocator.empty_cache().unwrap_err();
    allocator.is_valid().unwrap();
    let counts = |seen: &Seen| (seen.mapped, seen.unmapped);
    assert_eq!(counts(&seen.lock()), (2, 1));
    assert_eq!(allocator.allocate(GPU, 30 * MIB, A).unwrap(), block);
    allocator.free(block).unwrap();
    finish(&device, &allocator);
    assert!(seen.lock().spans.is_empty());
}

#[test]
fn who_comes_late_hears_nothing_of_what_is_about_to_go() {
    let (device, allocator) = open(capacity(64 * MIB), Config::default());
    let early = observe(&allocator, &device);
    let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
    allocator.free(block).unwrap();
    device.fail_nth(DriverCall::Unmap, 1);
    allocator.empty_cache().unwrap_err();
    assert!(early.lock().unmapped > 0, "told, and mapped still");
    let late = observe(&allocator, &device);
    let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
    for seen in [&early, &late] {
        assert!(seen.lock().covers(block, 30 * MIB), "told of what is used again");
    }
    allocator.free(block).unwrap();
    device.fail_nth(DriverCall::Unmap, 1);
    allocator.empty_cache().unwrap_err();
    let last = observe(&allocator, &device);
    finish(&device, &allocator);
    allocator.is_valid().unwrap();
    for seen in [early, late, last] {
        assert!(seen.lock().spans.is_empty(), "{:?}", seen.lock().spans);
    }
}

/// What an observer gives back is told later, and is there until then.
#[test]
fn what_an_observer_gives_back_disappears_after_it_was_told() {
    for options in [plain(256 * MIB), capacity(256 * MIB)] {
        let (device, allocator) = open(options, Config::default());
        let seen = observe(&allocator, &device);
        let [first, second] = [A, B].map(|on| allocator.allocate(GPU, 30 * MIB, on).unwrap());
        let weak = Arc::downgrade(&allocator);
        let left = Mutex::new(Some(second));
        let id = allocator
            .observe_mappings(move |event| {
                let Some(allocator) = weak.upgrade() else { return };
                if event.change == MappingChange::Unmapping {
                    let block = left.lock().take();
                    block.into_iter().for_each(|block| allocator.free(block).unwrap());
                    allocator.empty_cache().unwrap();
                }
            })
            .unwrap();
        allocator.free(first).unwrap();
        allocator.empty_cache().unwrap();
        allocator.is_valid().unwrap();
        assert!(allocator.unobserve_mappings(id).unwrap());
        finish(&device, &allocator);
        assert!(seen.lock().spans.is_empty());
    }
}

/// The same of allocations of the device's own, also where one of them cannot be freed at first.
#[test]
fn what_an_observer_frees_without_a_cache_disappears_after_it_was_told() {
    for fails in [false, true] {
        let (device, allocator) = open(capacity(256 * MIB), config(|c| c.caching = false));
        let seen = observe(&allocator, &device);
        let [first, second] = [A, B].map(|on| allocator.allocate(GPU, 30 * MIB, on).unwrap());
        let (weak, faulty) = (Arc::downgrade(&allocator), Arc::downgrade(&device));
        let left = Mutex::new(Some(second));
        let id = allocator
            .observe_mappings(move |event| {
                let Some(allocator) = weak.upgrade() else { return };
                if event.change == MappingChange::Unmapping
                    && let Some(block) = left.lock().take()
                {
                    allocator.free(block).unwrap();
                    assert_eq!(fault(allocator.free(block)), PointerFault::Foreign);
                    assert!(!allocator.owns(block));
                    if fails {
                        faulty.upgrade().unwrap().fail_nth(DriverCall::Free, 1);
                    }
                }
            })
            .unwrap();
        allocator.free(first).unwrap();
        allocator.is_valid().unwrap();
        assert_eq!(device.ledger().used, if fails { 30 * MIB } else { 0 });
        let counts = |seen: &Seen| (seen.mapped, seen.unmapped);
        assert_eq!(counts(&seen.lock()), (2, 2));
        // Who comes now hears nothing of what could not be freed, which is freed with the next.
        let late = observe(&allocator, &device);
        let third = allocator.allocate(GPU, 30 * MIB, A).unwrap();
        allocator.free(third).unwrap();
        assert_eq!(device.ledger().used, 0);
        assert!(allocator.unobserve_mappings(id).unwrap());
        finish(&device, &allocator);
        for seen in [seen, late] {
            assert!(seen.lock().spans.is_empty());
        }
    }
}

#[test]
fn nothing_goes_where_a_capture_begins_while_observers_are_told() {
    for options in [plain(256 * MIB), capacity(256 * MIB)] {
        let (device, allocator) = open(options, Config::default());
        let seen = observe(&allocator, &device);
        let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
        let weak = Arc::downgrade(&allocator);
        let begun = Mutex::new(false);
        let id = allocator
            .observe_mappings(move |event| {
                let Some(allocator) = weak.upgrade() else { return };
                if event.change == MappingChange::Unmapping
                    && !std::mem::replace(&mut *begun.lock(), true)
                {
                    allocator.mark_capture_begin(GPU).unwrap();
                }
            })
            .unwrap();
        allocator.free(block).unwrap();
        allocator.empty_cache().unwrap();
        let ledger = device.ledger();
        assert_eq!((ledger.calls(DriverCall::Free), ledger.calls(DriverCall::Unmap)), (0, 0));
        assert_eq!(allocator.allocate(GPU, 30 * MIB, A).unwrap(), block);
        assert!(seen.lock().covers(block, 30 * MIB));
        allocator.mark_capture_end(GPU).unwrap();
        allocator.free(block).unwrap();
        assert!(allocator.unobserve_mappings(id).unwrap());
        finish(&device, &allocator);
        assert!(seen.lock().spans.is_empty());
    }
}

#[test]
fn an_observer_that_comes_during_a_call_of_another_hears_everything_once() {
    for change in [MappingChange::Mapped, MappingChange::Unmapping] {
        let (device, allocator) = open(capacity(64 * MIB), Config::default());
        let (weak, machine) = (Arc::downgrade(&allocator), Arc::clone(&device));
        let late = Arc::new(Mutex::new(None));
        let place = Arc::clone(&late);
        let id = allocator
            .observe_mappings(move |event| {
                let Some(allocator) = weak.upgrade() else { return };
                if event.change == change && place.lock().is_none() {
                    *place.lock() = Some(observe(&allocator, &machine));
                }
            })
            .unwrap();
        // Of several handles, each of which is told by itself.
        let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
        allocator.free(block).unwrap();
        allocator.empty_cache().unwrap();
        let seen = late.lock().take().unwrap();
        assert!(seen.lock().mapped > 1 && seen.lock().spans.is_empty());
        assert!(allocator.unobserve_mappings(id).unwrap());
        finish(&device, &allocator);
    }
}

/// What nobody is left to be told of does not keep the next observer from coming.
#[test]
fn observers_come_and_go_while_memory_is_put_aside() {
    let (device, allocator) = open(plain(256 * MIB), config(|c| c.release_idle_ms = 10));
    let id = allocator.observe_mappings(|_| {}).unwrap();
    let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
    allocator.free(block).unwrap();
    for (stream, ms) in [(B, 11), (C, 22)] {
        allocator.clock().set_us(ms * 1000);
        let block = allocator.allocate(GPU, 12 * MIB, stream).unwrap();
        allocator.free(block).unwrap();
    }
    assert!(allocator.unobserve_mappings(id).unwrap());
    allocator.empty_cache().unwrap();
    let seen = observe(&allocator, &device);
    let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
    assert!(seen.lock().covers(block, 30 * MIB));
    allocator.free(block).unwrap();
    finish(&device, &allocator);
    assert!(seen.lock().spans.is_empty());
}

#[test]
fn what_could_not_be_given_back_is_told_before_the_call_ends() {
    let pool = PoolId(0, 1);
    for way in ["pool", "idle", "direct"] {
        let (device, allocator) = open(plain(64 * MIB), config(|c| c.release_idle_ms = 10));
        allocator.clock().set_us(0);
        let seen = observe(&allocator, &device);
        if way == "pool" {
            allocator.begin_allocate_to_pool(GPU, pool, |on| on == A).unwrap();
        }
        let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
        allocator.free(block).unwrap();
        if way == "pool" {
            allocator.end_allocate_to_pool(GPU, pool).unwrap();
            allocator.release_pool(GPU, pool).unwrap();
        }
        device.fail_nth(DriverCall::Free, 1);
        match way {
            "pool" => allocator.empty_pool(pool).unwrap_err(),
            "idle" => {
                let look = |ms: u64| {
                    allocator.clock().set_us(ms * 1000);
                    allocator.process_events()
                };
                [11, 22].into_iter().find_map(|ms| look(ms).err()).unwrap()
            }
            _ => {
                allocator.set_caching(false);
                let error = allocator.allocate(GPU, 60 * MIB, B).unwrap_err();
                allocator.set_caching(true);
                error
            }
        };
        let counts = |seen: &Seen| (seen.mapped, seen.unmapped);
        assert_eq!(counts(&seen.lock()), (2, 1), "{way}");
        finish(&device, &allocator);
        assert!(seen.lock().spans.is_empty());
    }
}

/// While observers are told of segments that go, these are in no heap, but the device has them.
#[test]
fn a_snapshot_shows_what_is_put_aside_for_observers() {
    let (device, allocator) = open(plain(64 * MIB), Config::default());
    let weak = Arc::downgrade(&allocator);
    let shown = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&shown);
    allocator
        .observe_mappings(move |event| {
            let Some(allocator) = weak.upgrade() else { return };
            if event.change == MappingChange::Unmapping {
                let snapshot = allocator.snapshot(None, false).unwrap();
                let total: Bytes = snapshot.segments.iter().map(|segment| segment.total).sum();
                let reserved = allocator.statistics(GPU).unwrap().reserved_bytes.all.current;
                into.lock().push((total, reserved as Bytes));
            }
        })
        .unwrap();
    let block = allocator.allocate(GPU, 30 * MIB, A).unwrap();
    allocator.free(block).unwrap();
    finish(&device, &allocator);
    assert_eq!(*shown.lock(), [(30 * MIB, 30 * MIB)]);
}

#[test]
fn emptying_the_cache_gives_back_what_it_can_with_observers_too() {
    let (device, allocator) = open(capacity(64 * MIB), Config::default());
    let seen = observe(&allocator, &device);
    let [idle, waits] = [A, B].map(|on| allocator.allocate(GPU, 20 * MIB, on).unwrap());
    allocator.record_stream(waits, C).unwrap();
    device.hold(C).unwrap();
    [idle, waits].iter().for_each(|&block| allocator.free(block).unwrap());
    let error = allocator.empty_cache().unwrap_err();
    assert!(error.to_string().contains("would wait for ever"), "{error}");
    assert_eq!(device.ledger().used, 20 * MIB, "what waits for C");
    device.resume(C).unwrap();
    finish(&device, &allocator);
    assert!(seen.lock().spans.is_empty());
}
