//! Private pools through the C++ object: each virtual method reaches the engine, and filters and
//! segment sources of C++ are called back.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use plugalloc::cpp::{CachingAllocator, PluggableAllocator};
use plugalloc::device::Device;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{GIB, MIB};
use plugalloc::{Allocator, Config, DeviceId, Error, PoolId, StreamId};

const POOL: PoolId = PoolId(0, 7);

struct Rig {
    machine: SimMachine,
    engine: Arc<Allocator>,
    cpp: CachingAllocator,
}

fn rig() -> Rig {
    let options = SimOptions { capacity: GIB, devices: 2, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let engine = Arc::new(Allocator::new(machine.as_devices(), Config::default()).unwrap());
    let cpp = CachingAllocator::new(Arc::clone(&engine)).unwrap();
    Rig { machine, engine, cpp }
}

#[test]
fn filters_of_cpp_decide_and_are_forgotten_at_the_end() {
    let rig = rig();
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let filter = move |stream| {
        counter.fetch_add(1, Ordering::Relaxed);
        stream == StreamId(5)
    };
    rig.cpp.begin_allocate_to_pool(0, POOL, filter).unwrap();
    let inside = rig.cpp.raw_alloc_with_stream(MIB as usize, 5).unwrap();
    let outside = rig.cpp.raw_alloc_with_stream(MIB as usize, 6).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(Arc::strong_count(&asked), 2);
    assert!(rig.cpp.pool_holds_exactly(0, POOL, &[inside]).unwrap());
    assert!(!rig.cpp.pool_holds_exactly(0, POOL, &[inside, outside]).unwrap());
    assert_eq!(rig.cpp.pool_use_count(0, POOL).unwrap(), 1);
    assert_eq!(rig.cpp.pool_use_count(1, POOL).unwrap(), 0, "pools are a device's own");
    rig.cpp.end_allocate_to_pool(0, POOL).unwrap();
    assert_eq!(Arc::strong_count(&asked), 1);
    rig.cpp.raw_delete(inside).unwrap();
    rig.cpp.raw_delete(outside).unwrap();
    rig.cpp.release_pool(0, POOL).unwrap();
    let error = rig.cpp.release_pool(0, POOL).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { argument: "pool", .. }), "{error}");
    rig.engine.is_quiescent().unwrap();
}

#[test]
fn a_source_that_throws_fails_the_allocation_and_nothing_else() {
    let rig = rig();
    let broken = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&broken);
    let source = PluggableAllocator::new(
        move |_, _, _| match flag.load(Ordering::Relaxed) {
            true => Err(Error::Unsupported {
                operation: "segments".into(),
                by: "the test".into(),
                why: "it is broken".into(),
            }),
            false => Ok(0),
        },
        |_, _, _, _| (),
    )
    .unwrap();
    rig.cpp.create_or_incref_pool(0, POOL, Some(&source)).unwrap();
    rig.cpp.begin_allocate_to_pool(0, POOL, |_| true).unwrap();
    let error = rig.cpp.raw_alloc(MIB as usize).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { by, .. } if by == "the test"), "{error}");
    broken.store(false, Ordering::Relaxed);
    let error = rig.cpp.raw_alloc(MIB as usize).unwrap_err();
    assert!(error.is_out_of_memory());
    let hint = "private pool (0, 7), whose own allocator gave no segment for it.";
    assert!(error.to_string().ends_with(hint), "{error}");
    rig.cpp.end_allocate_to_pool(0, POOL).unwrap();
    rig.cpp.raw_delete(rig.cpp.raw_alloc(MIB as usize).unwrap()).unwrap();
    rig.cpp.release_pool(0, POOL).unwrap();
    rig.cpp.release_pool(0, POOL).unwrap();
    rig.engine.is_quiescent().unwrap();
}

#[test]
fn a_pool_takes_segments_from_another_cpp_allocator() {
    let rig = rig();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (device, log) = (rig.machine.device(1), Arc::clone(&seen));
    let (freeing, freed) = (rig.machine.device(1), Arc::clone(&seen));
    let source = PluggableAllocator::new(
        move |bytes, id, stream| {
            log.lock().unwrap().push((true, bytes, id, stream));
            Ok(device.malloc(bytes)?)
        },
        move |address, bytes, id, stream| {
            freed.lock().unwrap().push((false, bytes, id, stream));
            freeing.free(address).unwrap();
        },
    )
    .unwrap();
    rig.cpp.create_or_incref_pool(1, POOL, Some(&source)).unwrap();
    rig.engine.begin_allocate_to_pool(DeviceId(1), POOL, |_| true).unwrap();
    let blocks = [1, 2].map(|_| rig.engine.allocate(DeviceId(1), 3 * MIB, StreamId(9)).unwrap());
    rig.engine.end_allocate_to_pool(DeviceId(1), POOL).unwrap();
    assert!(rig.cpp.pool_holds_exactly(1, POOL, &blocks).unwrap());
    blocks.iter().for_each(|&block| rig.cpp.raw_delete(block).unwrap());
    rig.cpp.release_pool(1, POOL).unwrap();
    rig.cpp.release_pool(1, POOL).unwrap();
    rig.cpp.empty_pool(POOL).unwrap();
    let (id, stream) = (DeviceId(1), StreamId(9));
    let expected = [(true, 20 * MIB, id, stream), (false, 20 * MIB, id, stream)];
    assert_eq!(seen.lock().unwrap().as_slice(), expected);
    rig.engine.is_quiescent().unwrap();
    assert_eq!(rig.machine.device(1).ledger().used, 0);
}

#[test]
fn the_other_switches_arrive() {
    let rig = rig();
    rig.cpp.create_or_incref_pool(0, POOL, None).unwrap();
    rig.cpp.set_no_split(0, POOL).unwrap();
    rig.cpp.set_use_on_oom(0, POOL, true).unwrap();
    rig.cpp.begin_allocate_to_pool(0, POOL, |_| true).unwrap();
    let block = rig.cpp.raw_alloc(600 * MIB as usize).unwrap();
    let small = rig.cpp.raw_alloc(100).unwrap();
    assert_eq!(rig.engine.block(small).unwrap().bytes, 2 * MIB);
    rig.cpp.end_allocate_to_pool(0, POOL).unwrap();
    rig.cpp.raw_delete(block).unwrap();
    rig.cpp.raw_delete(small).unwrap();
    // More than the device has left: the pool's.
    assert_eq!(rig.cpp.raw_alloc(500 * MIB as usize).unwrap(), block);
    rig.cpp.raw_delete(block).unwrap();
    rig.cpp.mark_capture_begin(0).unwrap();
    rig.cpp.release_pool(0, POOL).unwrap();
    rig.cpp.release_pool(0, POOL).unwrap();
    rig.cpp.empty_pool(POOL).unwrap();
    assert_eq!(rig.machine.device(0).ledger().used, 602 * MIB, "a capture may be under way");
    rig.cpp.mark_capture_end(0).unwrap();
    rig.cpp.empty_pool(POOL).unwrap();
    assert_eq!(rig.machine.device(0).ledger().used, 0);
    rig.engine.is_quiescent().unwrap();
}
