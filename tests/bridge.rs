//! Rust drives the C++ classes, which drive the Rust engine: values, errors and ownership survive
//! both ways over the bridge.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use plugalloc::cpp::{self, CachingAllocator, CudaAllocator, PluggableAllocator};
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::error::{OutOfMemory, PointerFault};
use plugalloc::units::{GIB, MIB};
use plugalloc::{Allocator, Config, DeviceId, Error, StreamId};

/// A simulated machine, an engine over it, and the C++ object over that.
struct Rig {
    machine: SimMachine,
    engine: Arc<Allocator>,
    cpp: CachingAllocator,
}

fn rig(devices: usize, capacity: u64) -> Rig {
    let options = SimOptions { devices, capacity, ..SimOptions::default() };
    let machine = SimMachine::new(options).expect("a machine");
    let engine = Arc::new(Allocator::new(machine.as_devices(), Config::default()).expect("new"));
    let cpp = CachingAllocator::new(Arc::clone(&engine)).expect("a C++ object");
    Rig { machine, engine, cpp }
}

fn fault(error: Error) -> PointerFault {
    match error {
        Error::InvalidPointer(pointer) => pointer.fault,
        other => panic!("not about a pointer: {other}"),
    }
}

fn numbers(error: Error) -> OutOfMemory {
    match error {
        Error::OutOfMemory(numbers) => *numbers,
        other => panic!("not out of memory: {other}"),
    }
}

#[test]
fn allocates_and_frees_through_the_virtual_calls() {
    let rig = rig(1, GIB);
    let block = rig.cpp.raw_alloc_with_stream(3 * MIB as usize, 7).expect("fits");
    let known = rig.engine.block(block).expect("live");
    assert_eq!((known.requested, known.stream), (3 * MIB, StreamId(7)));
    rig.cpp.raw_delete(block).expect("live");
    rig.engine.is_quiescent().expect("nothing is left");
    assert_eq!(rig.cpp.raw_alloc_with_stream(3 * MIB as usize, 7).expect("fits"), block);
    rig.cpp.raw_delete(block).expect("live");
}

#[test]
fn statistics_are_the_same_on_both_sides() {
    let rig = rig(1, GIB);
    let blocks: Vec<u64> = (1..20).map(|i| rig.cpp.raw_alloc(i * 100_000).expect("fits")).collect();
    for block in &blocks[..7] {
        rig.cpp.raw_delete(*block).expect("live");
    }
    let seen = rig.cpp.statistics(0).expect("device 0");
    assert_eq!(seen, rig.engine.statistics(DeviceId(0)).expect("device 0"));
    assert_eq!((seen.allocation.all.current, seen.allocation.all.allocated), (12, 19));
    rig.cpp.reset_accumulated_statistics(0).expect("device 0");
    rig.cpp.reset_peak_statistics(0).expect("device 0");
    let seen = rig.cpp.statistics(0).expect("device 0");
    assert_eq!((seen.allocation.all.peak, seen.allocation.all.allocated), (12, 0));
    blocks[7..].iter().for_each(|block| rig.cpp.raw_delete(*block).expect("live"));
}

#[test]
fn out_of_memory_keeps_its_numbers_both_ways() {
    let rig = rig(1, 64 * MIB);
    let block = rig.cpp.raw_alloc(40 * MIB as usize).expect("fits");
    let direct = rig.engine.allocate(DeviceId(0), 100 * MIB, StreamId(0)).expect_err("too large");
    let error = rig.cpp.raw_alloc(100 * MIB as usize).expect_err("too large");
    assert_eq!(error.to_string(), direct.to_string());
    let (over, here) = (numbers(error), numbers(direct));
    assert_eq!((over.requested, over.total), (100 * MIB, 64 * MIB));
    assert_eq!((over.allocated, over.free), (here.allocated, here.free));
    assert_eq!((over.reserved, over.limit), (here.reserved, here.limit));
    assert_eq!(over.streams.len(), here.streams.len());
    rig.cpp.raw_delete(block).expect("the allocator is as before");
}

#[test]
fn requests_beyond_an_exbibyte_are_refused_by_size() {
    let rig = rig(1, GIB);
    let error = rig.cpp.raw_alloc(1 << 60).expect_err("too large");
    assert!(matches!(error, Error::SizeTooLarge { bytes, .. } if bytes == 1 << 60), "{error}");
}

#[test]
fn bad_pointers_are_told_apart() {
    let rig = rig(1, GIB);
    let block = rig.cpp.raw_alloc(4096).expect("fits");
    assert!(matches!(
        fault(rig.cpp.raw_delete(block + 512).expect_err("inside")),
        PointerFault::Interior { start, .. } if start == block
    ));
    rig.cpp.raw_delete(block).expect("live");
    assert_eq!(fault(rig.cpp.raw_delete(block).expect_err("twice")), PointerFault::DoubleFree);
    let error = rig.cpp.raw_delete(0x1230).expect_err("foreign");
    assert!(error.to_string().contains("Trying to free a pointer not allocated here: 0x1230"));
    assert_eq!(fault(error), PointerFault::Foreign);
    rig.cpp.raw_delete(0).expect("null is ignored");
}

#[test]
fn data_ptr_is_its_own_context_and_gives_its_memory_back() {
    let rig = rig(1, GIB);
    let data = rig.cpp.allocate(MIB as usize).expect("fits");
    assert_ne!(data.address(), 0);
    assert_eq!(data.context(), data.address());
    assert_eq!(data.deleter(), rig.cpp.raw_deleter());
    assert_eq!(data.device(), 0);
    drop(data);
    rig.engine.is_quiescent().expect("the deleter gave it back");
}

#[test]
fn zero_bytes_are_null_with_deleter_and_device() {
    let rig = rig(1, GIB);
    assert_eq!(rig.cpp.raw_alloc(0).expect("nothing"), 0);
    let data = rig.cpp.allocate(0).expect("nothing");
    assert_eq!((data.address(), data.context(), data.device()), (0, 0, 0));
    assert_eq!(data.deleter(), rig.cpp.raw_deleter());
    assert_eq!(rig.cpp.statistics(0).expect("device 0").allocation.all.allocated, 0);
}

#[test]
fn deleter_is_one_function_and_finds_the_owner_among_several() {
    let (first, second) = (rig(1, GIB), rig(1, GIB));
    assert_eq!(first.cpp.raw_deleter(), second.cpp.raw_deleter());
    let (a, b) =
        (first.cpp.raw_alloc(512).expect("fits"), second.cpp.raw_alloc(512).expect("fits"));
    second.cpp.call_raw_deleter(a).expect("has a deleter");
    first.cpp.call_raw_deleter(b).expect("has a deleter");
    first.engine.is_quiescent().expect("a went back to its own engine");
    second.engine.is_quiescent().expect("b went back to its own engine");
}

#[test]
fn memory_outlives_its_allocator() {
    let rig = rig(1, GIB);
    let data = rig.cpp.allocate(MIB as usize).expect("fits");
    let Rig { engine, cpp, machine } = rig;
    drop(cpp);
    assert_eq!(engine.statistics(DeviceId(0)).expect("device 0").allocation.all.current, 1);
    drop(data);
    engine.is_quiescent().expect("the deleter still found the engine");
    drop(machine);
}

#[test]
fn an_idle_allocator_lets_its_engine_go() {
    let rig = rig(1, GIB);
    let block = rig.cpp.raw_alloc(MIB as usize).expect("fits");
    rig.cpp.raw_delete(block).expect("live");
    let Rig { engine, cpp, .. } = rig;
    drop(cpp);
    assert_eq!(Arc::strong_count(&engine), 1);
}

#[test]
fn current_device_and_stream_of_the_thread_are_used() {
    let rig = rig(2, GIB);
    cpp::set_current_device(1).expect("in range");
    cpp::set_current_stream(9, 1).expect("in range");
    let data = rig.cpp.allocate(512).expect("fits");
    assert_eq!(data.device(), 1);
    let known = rig.engine.block(data.address()).expect("live");
    assert_eq!((known.device, known.stream), (DeviceId(1), StreamId(9)));
    cpp::set_current_device(5).expect("in range of the header");
    let error = rig.cpp.raw_alloc(512).expect_err("there are two");
    assert!(matches!(error, Error::InvalidDevice { device: DeviceId(5), count: 2 }), "{error}");
    cpp::set_current_device(-1).expect("back to the provider");
    assert!(cpp::set_current_device(64).is_err());
    assert!(cpp::set_current_device(-2).is_err());
}

#[test]
fn record_stream_holds_the_memory_until_the_other_stream_has_passed() {
    let rig = rig(1, GIB);
    let device = rig.machine.device(0);
    let data = rig.cpp.allocate(512).expect("fits");
    let address = data.address();
    rig.cpp.record_stream(&data, 5).expect("live");
    device.hold(StreamId(5)).expect("adopted");
    drop(data);
    let other = rig.cpp.raw_alloc(512).expect("fits");
    assert_ne!(other, address, "stream 5 has not passed");
    device.resume(StreamId(5)).expect("held");
    rig.cpp.raw_delete(other).expect("live");
}

#[test]
fn memory_is_described_and_limited() {
    let rig = rig(1, 256 * MIB);
    assert_eq!(rig.cpp.memory_info(0).expect("device 0"), (256 << 20, 256 << 20));
    assert_eq!(rig.cpp.cache_info(0, 0).expect("device 0"), 256 << 20);
    rig.cpp.set_memory_fraction(0.25, 0).expect("in range");
    assert_eq!(rig.cpp.memory_fraction(0).expect("device 0"), 0.25);
    assert_eq!(numbers(rig.cpp.raw_alloc(128 << 20).expect_err("limited")).limit, 64 * MIB);
    assert!(matches!(
        rig.cpp.set_memory_fraction(1.5, 0),
        Err(Error::InvalidArgument { argument: "memory fraction", .. })
    ));
    let block = rig.cpp.raw_alloc(4 << 20).expect("fits");
    let (start, bytes) = rig.cpp.base_allocation(block).expect("live");
    assert!(start <= block && block + (4 << 20) <= start + bytes as u64);
    rig.cpp.raw_delete(block).expect("live");
    assert_eq!(rig.cpp.cache_info(0, 1).expect("device 0"), 4 << 20);
    rig.cpp.empty_cache().expect("idle");
    assert_eq!(rig.machine.device(0).ledger().used, 0);
    assert_eq!(rig.cpp.memory_info(0).expect("device 0"), (256 << 20, 256 << 20));
}

#[test]
fn caching_can_be_turned_off() {
    let rig = rig(1, GIB);
    assert!(rig.cpp.is_enabled());
    rig.cpp.enable(false).expect("always");
    assert!(!rig.cpp.is_enabled());
    let block = rig.cpp.raw_alloc(4096).expect("fits");
    rig.cpp.call_raw_deleter(block).expect("has a deleter");
    assert_eq!(rig.machine.device(0).ledger().used, 0);
}

#[test]
fn copies_bytes_on_the_current_stream() {
    let rig = rig(1, GIB);
    let (from, to) =
        (rig.cpp.raw_alloc(4096).expect("fits"), rig.cpp.raw_alloc(4096).expect("fits"));
    let device = rig.engine.device(DeviceId(0)).expect("device 0");
    device.fill_async(from, 0x5a, 4096, StreamId::DEFAULT).expect("live");
    // SAFETY: both blocks are live and 4096 bytes long.
    unsafe { rig.cpp.copy_data(to, from, 4096) }.expect("live");
    let mut seen = [0u8; 4096];
    let host = seen.as_mut_ptr() as u64;
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(host, to, 4096, StreamId::DEFAULT) }.expect("live");
    device.stream_synchronize(StreamId::DEFAULT).expect("idle");
    assert!(seen.iter().all(|byte| *byte == 0x5a));
    rig.cpp.raw_delete(from).expect("live");
    rig.cpp.raw_delete(to).expect("live");
}

#[test]
fn what_is_missing_names_the_method_and_the_allocator() {
    let none = || PluggableAllocator::new(|_, _, _| Ok(0), |_, _, _, _| ());
    assert_eq!(none().expect("made").snapshot_segments().expect("known"), 0);
    match none().expect("made").memory_info(0) {
        Err(Error::Unsupported { operation, by, .. }) => {
            assert_eq!((operation.as_str(), by.as_str()), ("getMemoryInfo", "pluggable"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_is_that_of_the_engine() {
    let rig = rig(2, GIB);
    assert_eq!(rig.cpp.snapshot_segments().expect("a snapshot"), 0);
    let blocks = [100, 3 << 20].map(|bytes| rig.cpp.raw_alloc(bytes).expect("fits"));
    let segments = rig.engine.snapshot(None, false).unwrap().segments;
    assert!(segments.len() >= 2, "small and large: {segments:?}");
    assert_eq!(rig.cpp.snapshot_segments().expect("a snapshot"), segments.len());
    blocks.into_iter().for_each(|block| rig.cpp.raw_delete(block).expect("live"));
}

#[test]
fn current_allocator_can_be_swapped_until_it_is_in_use() {
    let (first, second) = (rig(1, GIB), rig(1, GIB));
    first.cpp.make_current().expect("nothing is current yet");
    assert_eq!(CudaAllocator::current().expect("set").name(), "caching");
    second.cpp.make_current().expect("the first was not in use");
    let block = CudaAllocator::current().expect("set").raw_alloc(512).expect("fits");
    assert!(second.engine.block(block).is_ok());
    assert!(second.cpp.initialized() && !first.cpp.initialized());
    let refused = first.cpp.make_current();
    assert!(matches!(refused, Err(Error::AlreadyInitialized(name)) if name == "caching"));
    second.cpp.raw_delete(block).expect("live");
}

#[test]
fn an_allocation_that_fails_does_not_put_an_allocator_in_use() {
    let rig = rig(1, 64 * MIB);
    assert!(rig.cpp.raw_alloc(GIB as usize).is_err());
    assert!(!rig.cpp.initialized());
    let block = rig.cpp.raw_alloc(MIB as usize).expect("fits");
    assert!(rig.cpp.initialized());
    rig.cpp.raw_delete(block).expect("live");
    rig.engine.is_quiescent().expect("nothing is left");
}

#[test]
fn threads_on_their_own_streams_share_one_object() {
    let rig = rig(1, GIB);
    std::thread::scope(|scope| {
        for stream in 1..=4 {
            let cpp = rig.cpp.clone();
            scope.spawn(move || {
                for round in 0..200 {
                    let block = cpp.raw_alloc_with_stream(512 + round * 700, stream).expect("fits");
                    cpp.raw_delete(block).expect("live");
                }
            });
        }
    });
    assert_eq!(rig.cpp.statistics(0).expect("device 0").allocation.all.allocated, 800);
    rig.engine.is_quiescent().expect("nothing is left");
}

/// Pointers outlive the C++ object; the engine goes with the last of them, also where another
/// allocator was made meanwhile.
#[test]
fn the_last_pointer_of_an_object_that_is_gone_lets_the_engine_go() {
    for others in [false, true] {
        let Rig { machine, engine, cpp } = rig(1, GIB);
        let weak = Arc::downgrade(&engine);
        drop(engine);
        let blocks = [1, 2].map(|k| cpp.raw_alloc(k * MIB as usize).expect("fits"));
        let data = cpp.allocate(MIB as usize).expect("fits");
        let other = others.then(|| rig(1, GIB));
        drop(cpp);
        for block in blocks {
            assert!(weak.upgrade().is_some(), "memory is live");
            // Any allocator of the class has the same deleter.
            let deleter = rig(1, GIB);
            deleter.cpp.call_raw_deleter(block).expect("has a deleter");
        }
        assert!(weak.upgrade().is_some(), "memory is live");
        drop(data);
        assert!(weak.upgrade().is_none(), "the engine has gone");
        assert_eq!(machine.device(0).ledger().used, 0);
        drop(other);
    }
}

/// The object is destroyed while a thread is inside of the deleter with its last pointers.
#[test]
fn the_engine_goes_also_where_the_last_free_is_under_way() {
    for _ in 0..200 {
        let Rig { engine, cpp, .. } = rig(1, GIB);
        let weak = Arc::downgrade(&engine);
        drop(engine);
        let data: Vec<_> = (0..20).map(|_| cpp.allocate(4096).expect("fits")).collect();
        std::thread::scope(|scope| {
            scope.spawn(move || drop(data));
            drop(cpp);
        });
        assert!(weak.upgrade().is_none(), "the engine has gone");
    }
}
