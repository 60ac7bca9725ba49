//! Checkpoints of private pools through the C++ object: both virtual methods reach the engine, what
//! comes back owns its memory, and errors cross with what they tell.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;

use plugalloc::cpp::{AllocatorState, CachingAllocator, PluggableAllocator};
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::error::{CheckpointError, CheckpointFault};
use plugalloc::units::{GIB, MIB};
use plugalloc::{Allocator, Config, DeviceId, Error, PoolId, Result, StreamId};

const POOL: PoolId = PoolId(0, 7);

fn open() -> (Arc<Allocator>, CachingAllocator) {
    let options = SimOptions { capacity: GIB, devices: 2, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let engine = Arc::new(Allocator::new(machine.as_devices(), Config::default()).unwrap());
    let cpp = CachingAllocator::new(Arc::clone(&engine)).unwrap();
    (engine, cpp)
}

#[track_caller]
fn fault<T>(result: Result<T>) -> CheckpointError {
    match result {
        Err(Error::Checkpoint(error)) => error,
        Err(error) => panic!("not an error about a checkpoint: {error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn what_comes_back_owns_its_memory() {
    let (engine, cpp) = open();
    cpp.begin_allocate_to_pool(0, POOL, |_| true).unwrap();
    let kept = cpp.raw_alloc_with_stream(3 * MIB as usize, 5).unwrap();
    let ended = cpp.raw_alloc_with_stream(1000, 6).unwrap();
    let state = cpp.checkpoint_state(0, POOL).unwrap();
    cpp.raw_delete(ended).unwrap();
    let later = cpp.raw_alloc_with_stream(9 * MIB as usize, 5).unwrap();
    let delta = cpp.set_checkpoint_pool_state(0, &state).unwrap();
    assert_eq!(BTreeSet::from_iter(delta.ptrs_freed), BTreeSet::from([kept, later]));
    assert_eq!(delta.dataptrs_allocd.len(), 2);
    for data in &delta.dataptrs_allocd {
        assert_eq!((data.context(), data.deleter()), (data.address(), cpp.raw_deleter()));
        assert_eq!(data.device(), 0);
    }
    let owned = delta.dataptrs_allocd.iter().map(|data| data.address());
    assert_eq!(BTreeSet::from_iter(owned), BTreeSet::from([kept, ended]));
    assert!(cpp.pool_holds_exactly(0, POOL, &[kept, ended]).unwrap());
    assert_eq!(engine.block(ended).unwrap().stream, StreamId(6));
    drop(delta.dataptrs_allocd);
    assert!(cpp.pool_holds_exactly(0, POOL, &[]).unwrap());
    cpp.end_allocate_to_pool(0, POOL).unwrap();
    cpp.release_pool(0, POOL).unwrap();
    engine.is_quiescent().unwrap();
}

#[test]
fn errors_cross_with_what_they_tell() {
    let (engine, cpp) = open();
    let unknown = cpp.checkpoint_state(0, POOL).unwrap_err();
    assert!(matches!(unknown, Error::InvalidArgument { argument: "pool", .. }), "{unknown}");
    let nowhere = cpp.checkpoint_state(3, POOL).unwrap_err();
    assert!(matches!(nowhere, Error::InvalidDevice { count: 2, .. }), "{nowhere}");
    let null = cpp.set_checkpoint_pool_state(0, &AllocatorState::default()).unwrap_err();
    assert!(matches!(null, Error::InvalidArgument { argument: "state", .. }), "{null}");
    cpp.begin_allocate_to_pool(1, POOL, |_| true).unwrap();
    let empty = cpp.checkpoint_state(1, POOL).unwrap();
    let block = engine.allocate(DeviceId(1), 3 * MIB, StreamId(5)).unwrap();
    let pin = engine.pin(block).unwrap();
    let (device, pool) = (DeviceId(1), POOL);
    let bytes = 3 * MIB;
    let pinned =
        CheckpointError { device, pool, fault: CheckpointFault::Pinned, address: block, bytes };
    let found = fault(cpp.set_checkpoint_pool_state(1, &empty));
    assert_eq!(found, pinned);
    let rust = engine.checkpoint_pool(device, pool).map(|_| found.to_string()).unwrap();
    assert!(rust.contains("is pinned"), "{rust}");
    drop(pin);
    let told = |fault| CheckpointError { device, pool, fault, address: 0, bytes: 0 };
    let other = open();
    let found = fault(other.1.set_checkpoint_pool_state(1, &empty));
    assert_eq!(found, told(CheckpointFault::OtherAllocator));
    let found = fault(cpp.set_checkpoint_pool_state(0, &empty));
    assert_eq!(found, told(CheckpointFault::OtherDevice));
    assert!(cpp.pool_holds_exactly(1, POOL, &[block]).unwrap(), "nothing has changed");
    engine.free(block).unwrap();
    cpp.end_allocate_to_pool(1, POOL).unwrap();
    cpp.release_pool(1, POOL).unwrap();
    let found = fault(cpp.set_checkpoint_pool_state(1, &empty));
    assert_eq!(found, told(CheckpointFault::PoolEnded));
    engine.is_quiescent().unwrap();
}

#[test]
fn user_functions_have_none() {
    let cpp = PluggableAllocator::new(|_, _, _| Ok(0), |_, _, _, _| ()).unwrap();
    let refused = cpp.checkpoint_state(0, POOL).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
}
