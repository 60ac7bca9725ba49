//! The allocator over user functions, from Rust and through the C++ class: the same behaviour
//! twice.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use plugalloc::error::PointerFault;
use plugalloc::pluggable::Hooks;
use plugalloc::units::MIB;
use plugalloc::{DeviceId, Error, PluggableAllocator, StreamId, cpp};

/// A source that hands out numbers and checks what comes back.
#[derive(Default)]
struct Source {
    next: AtomicU64,
    live: Mutex<HashMap<u64, (u64, i32, u64)>>,
    freed: AtomicUsize,
}

impl Source {
    fn alloc(&self, bytes: u64, device: DeviceId, stream: StreamId) -> plugalloc::Result<u64> {
        let address =
            0x10_0000 + self.next.fetch_add(bytes.max(1).next_multiple_of(512), Ordering::Relaxed);
        let before = self.live.lock().unwrap().insert(address, (bytes, device.0, stream.0));
        assert_eq!(before, None);
        Ok(address)
    }

    fn free(&self, address: u64, bytes: u64, device: DeviceId, stream: StreamId) {
        let known = self.live.lock().unwrap().remove(&address);
        assert_eq!(known, Some((bytes, device.0, stream.0)), "{address:#x}");
        self.freed.fetch_add(1, Ordering::Relaxed);
    }
}

fn rust_allocator(source: &Arc<Source>) -> PluggableAllocator {
    let (gives, takes) = (Arc::clone(source), Arc::clone(source));
    PluggableAllocator::new(
        move |bytes, device, stream| gives.alloc(bytes, device, stream),
        move |address, bytes, device, stream| takes.free(address, bytes, device, stream),
    )
}

fn cpp_allocator(source: &Arc<Source>) -> cpp::PluggableAllocator {
    let (gives, takes) = (Arc::clone(source), Arc::clone(source));
    cpp::PluggableAllocator::new(
        move |bytes, device, stream| gives.alloc(bytes, device, stream),
        move |address, bytes, device, stream| takes.free(address, bytes, device, stream),
    )
    .unwrap()
}

fn fault(error: Error) -> PointerFault {
    match error {
        Error::InvalidPointer(pointer) => pointer.fault,
        other => panic!("not about a pointer: {other}"),
    }
}

#[test]
fn free_gets_exactly_what_the_allocation_was() {
    let source = Arc::new(Source::default());
    let allocator = rust_allocator(&source);
    let block = allocator.allocate(DeviceId(1), 1000, StreamId(7)).unwrap();
    let entry = allocator.entry(block).unwrap();
    assert_eq!((entry.bytes, entry.device, entry.stream), (1000, DeviceId(1), StreamId(7)));
    allocator.free(block).unwrap();
    assert_eq!(source.freed.load(Ordering::Relaxed), 1);
}

#[test]
fn free_gets_exactly_what_the_allocation_was_through_cpp() {
    let source = Arc::new(Source::default());
    let allocator = cpp_allocator(&source);
    assert_eq!(allocator.name(), "pluggable");
    cpp::set_current_device(2).unwrap();
    let block = allocator.raw_alloc_with_stream(1000, 7).unwrap();
    assert_eq!(source.live.lock().unwrap()[&block], (1000, 2, 7));
    cpp::set_current_device(-1).unwrap();
    assert_eq!(allocator.base_allocation(block).unwrap(), (block, 1000));
    allocator.raw_delete(block).unwrap();
    assert_eq!(source.freed.load(Ordering::Relaxed), 1);
}

#[test]
fn data_ptr_goes_back_to_its_source() {
    let source = Arc::new(Source::default());
    let allocator = cpp_allocator(&source);
    let data = allocator.allocate(4096).unwrap();
    assert_eq!(data.context(), data.address());
    assert_eq!(data.deleter(), allocator.raw_deleter());
    drop(data);
    let data = allocator.allocate(4096).unwrap();
    drop(allocator);
    drop(data);
    assert_eq!(source.freed.load(Ordering::Relaxed), 2, "also after the allocator's death");
}

#[test]
fn bad_pointers_are_refused_and_told_apart() {
    let source = Arc::new(Source::default());
    let (rust, cpp) = (rust_allocator(&source), cpp_allocator(&source));
    let block = rust.allocate(DeviceId(0), 512, StreamId(0)).unwrap();
    let error = cpp.raw_delete(block).unwrap_err();
    let expected = format!("Trying to free a pointer not allocated here: {block:#x}");
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(fault(error), PointerFault::Foreign);
    rust.free(block).unwrap();
    assert_eq!(fault(rust.free(block).unwrap_err()), PointerFault::DoubleFree);
    assert_eq!(source.freed.load(Ordering::Relaxed), 1, "nothing else reached the source");
    rust.free(0).unwrap();
    cpp.raw_delete(0).unwrap();
}

#[test]
fn statistics_are_exact() {
    let source = Arc::new(Source::default());
    let allocator = cpp_allocator(&source);
    let blocks: Vec<u64> = (1..=10).map(|i| allocator.raw_alloc(i << 18).unwrap()).collect();
    blocks[..6].iter().for_each(|block| allocator.raw_delete(*block).unwrap());
    let seen = allocator.statistics(0).unwrap();
    let count = seen.allocation.all;
    assert_eq!((count.current, count.peak, count.allocated, count.freed), (4, 10, 10, 6));
    let bytes = seen.allocated_bytes.all;
    let sum = |range: std::ops::RangeInclusive<i64>| range.map(|i| i << 18).sum::<i64>();
    assert_eq!((bytes.current, bytes.peak), (sum(7..=10), sum(1..=10)));
    assert_eq!((bytes.allocated, bytes.freed), (sum(1..=10), sum(1..=6)));
    assert_eq!(seen.allocated_bytes.small_pool.allocated, sum(1..=4), "up to 1 MiB");
    assert_eq!(seen.reserved_bytes, seen.allocated_bytes);

    allocator.reset_accumulated_statistics(0).unwrap();
    allocator.reset_peak_statistics(0).unwrap();
    let seen = allocator.statistics(0).unwrap();
    let count = seen.allocation.all;
    assert_eq!((count.current, count.peak, count.allocated, count.freed), (4, 4, 0, 0));
    assert_eq!(seen.allocated_bytes.all.peak, sum(7..=10));
    assert!(matches!(allocator.statistics(-1), Err(Error::InvalidDevice { .. })));
    blocks[6..].iter().for_each(|block| allocator.raw_delete(*block).unwrap());
}

#[test]
fn peaks_are_exact_over_threads_that_meet() {
    let allocator = Arc::new(rust_allocator(&Arc::new(Source::default())));
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for stream in 0..8u64 {
            let (allocator, barrier) = (&allocator, &barrier);
            scope.spawn(move || {
                let one =
                    |i: u64| allocator.allocate(DeviceId(0), (1 + i % 2) * MIB, StreamId(stream));
                let blocks: Vec<u64> = (0..500).map(|i| one(i).unwrap()).collect();
                barrier.wait();
                blocks.into_iter().for_each(|block| allocator.free(block).unwrap());
            });
        }
    });
    let seen = allocator.statistics(DeviceId(0)).unwrap();
    assert_eq!((seen.allocation.all.peak, seen.allocation.all.current), (4000, 0));
    assert_eq!(seen.allocated_bytes.all.peak, 4000 * 3 * MIB as i64 / 2);
    assert_eq!(seen.allocated_bytes.all.allocated, seen.allocated_bytes.all.freed);
}

#[test]
fn null_is_out_of_memory_with_numbers() {
    let cpp = cpp::PluggableAllocator::new(
        |bytes, _, _| Ok(if bytes > 4096 { 0 } else { 64 }),
        |_, _, _, _| (),
    )
    .unwrap();
    let block = cpp.raw_alloc(4096).unwrap();
    match cpp.raw_alloc(5000).unwrap_err() {
        Error::OutOfMemory(numbers) => {
            assert_eq!((numbers.requested, numbers.allocated, numbers.device), (5000, 4096, 0));
            assert_eq!(
                numbers.to_string(),
                "CUDA out of memory. Tried to allocate 4.88 KiB on GPU 0, where 4.00 KiB is \
                 allocated already. The user's alloc_fn gave no memory."
            );
        }
        other => panic!("{other}"),
    }
    let seen = cpp.statistics(0).unwrap();
    assert_eq!((seen.num_ooms, seen.allocation.all.current), (1, 1));
    cpp.raw_delete(block).unwrap();
}

#[test]
fn null_for_zero_bytes_is_no_error() {
    let allocator = PluggableAllocator::new(|_, _, _| Ok(0), |_, _, _, _| ());
    assert_eq!(allocator.allocate(DeviceId(0), 0, StreamId(0)).unwrap(), 0);
    assert_eq!(allocator.statistics(DeviceId(0)).unwrap().allocation.all.allocated, 0);
}

#[test]
fn errors_and_panics_of_the_source_reach_the_caller_and_change_nothing() {
    let allocator = cpp::PluggableAllocator::new(
        |bytes, _, _| match bytes {
            1 => Err(Error::AlreadyInitialized("the source's own error".to_owned())),
            2 => panic!("the source panics"),
            _ => Ok(64),
        },
        |_, _, _, _| (),
    )
    .unwrap();
    let error = allocator.raw_alloc(1).unwrap_err();
    assert!(matches!(error, Error::AlreadyInitialized(text) if text.contains("own error")));
    let error = allocator.raw_alloc(2).unwrap_err();
    assert_eq!(error.to_string(), "the program's alloc_fn threw: a panic: the source panics");
    assert!(matches!(error, Error::Callback { .. }));
    assert_eq!(allocator.statistics(0).unwrap().allocation.all.allocated, 0);
    let block = allocator.raw_alloc(3).unwrap();
    allocator.raw_delete(block).unwrap();
}

#[test]
fn a_pointer_given_twice_is_refused_and_the_first_stays() {
    let allocator = PluggableAllocator::new(|_, _, _| Ok(64), |_, _, _, _| ());
    let block = allocator.allocate(DeviceId(0), 1, StreamId(0)).unwrap();
    let error = allocator.allocate(DeviceId(0), 2, StreamId(0)).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { argument: "alloc_fn", .. }), "{error}");
    assert_eq!(allocator.entry(block).unwrap().bytes, 1);
}

#[test]
fn functions_may_call_the_allocator() {
    let own: Arc<OnceLock<PluggableAllocator>> = Arc::default();
    let next = AtomicU64::new(1);
    let (for_alloc, for_free) = (Arc::clone(&own), Arc::clone(&own));
    let allocator = PluggableAllocator::new(
        move |bytes, device, stream| {
            if bytes == 1 {
                return Ok(512 * next.fetch_add(1, Ordering::Relaxed));
            }
            for_alloc.get().unwrap().allocate(device, 1, stream)?;
            Ok(512 * next.fetch_add(1, Ordering::Relaxed))
        },
        move |address, bytes, _, _| {
            if bytes != 1 {
                for_free.get().unwrap().free(address - 512).unwrap();
            }
        },
    );
    let allocator = own.get_or_init(|| allocator);
    let block = allocator.allocate(DeviceId(0), 100, StreamId(0)).unwrap();
    assert_eq!(allocator.statistics(DeviceId(0)).unwrap().allocation.all.current, 2);
    allocator.free(block).unwrap();
    assert_eq!(allocator.statistics(DeviceId(0)).unwrap().allocation.all.current, 0);
}

#[test]
fn hooks_are_called_and_fractions_remembered() {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = |text: &'static str| {
        let log = Arc::clone(&log);
        move |value: String| log.lock().unwrap().push(format!("{text} {value}"))
    };
    let mut hooks = Hooks::default();
    let (init, reset, fraction, stream) =
        (note("init"), note("reset"), note("fraction"), note("stream"));
    hooks.init = Some(Box::new(move |count| init(count.to_string())));
    hooks.reset = Some(Box::new(move || reset(String::new())));
    hooks.memory_fraction = Some(Box::new(move |f, device| fraction(format!("{f} {device}"))));
    hooks.record_stream = Some(Box::new(move |p, s| stream(format!("{p:#x} {s}"))));
    hooks.base_allocation = Some(Box::new(|address| (address & !0xfff, 4096)));
    let allocator = rust_allocator(&Arc::new(Source::default())).with_hooks(hooks);
    allocator.init(2);
    allocator.empty_cache();
    allocator.set_memory_fraction(DeviceId(0), 0.5).unwrap();
    assert!(allocator.set_memory_fraction(DeviceId(0), -0.1).is_err());
    assert!(allocator.set_memory_fraction(DeviceId(0), f64::NAN).is_err());
    allocator.record_stream(0x1234, StreamId(3));
    allocator.record_stream(0, StreamId(3));
    assert_eq!(allocator.base_allocation(0x1234).unwrap(), (0x1000, 4096));
    assert_eq!(allocator.memory_fraction(DeviceId(0)).unwrap(), 0.5);
    assert_eq!(allocator.memory_fraction(DeviceId(1)).unwrap(), 1.0);
    let expected = ["init 2", "reset ", "fraction 0.5 device 0", "stream 0x1234 stream 0x3"];
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn threads_free_what_others_allocated() {
    let source = Arc::new(Source::default());
    let allocator = cpp_allocator(&source);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for stream in 0..4 {
            let (allocator, sender) = (allocator.clone(), sender.clone());
            scope.spawn(move || {
                for bytes in 1..500 {
                    sender.send(allocator.raw_alloc_with_stream(bytes, stream).unwrap()).unwrap();
                }
            });
        }
        drop(sender);
        receiver.iter().for_each(|block| allocator.raw_delete(block).unwrap());
    });
    assert_eq!(source.freed.load(Ordering::Relaxed), 4 * 499);
    assert_eq!(allocator.statistics(0).unwrap().allocation.all.current, 0);
}
