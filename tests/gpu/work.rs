//! Real kernels on memory of the allocator: streams kept busy, captured work that replays, and
//! patterns that are checked by copies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use plugalloc::Allocator;
use plugalloc::device::Device;
use plugalloc::units::{Address, Bytes, MIB, StreamId};

use crate::contexts::with_primary_context;
use crate::kernels::Kernels;
use crate::{GPU, Gpu, Numbers, gpu, read_on};

/// A span of words, as a kernel takes it.
fn words(at: Address, bytes: Bytes) -> (Address, u32) {
    (at, (bytes / 4) as u32)
}

/// Asserts that every word of a span is `value`, once `stream` has run.
fn assert_words(gpu: &Gpu, at: Address, bytes: Bytes, value: u32, stream: StreamId) {
    let found = read_on(&*gpu.device, at, bytes / 4 * 4, stream).unwrap();
    let of_word = |word: &[u8]| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
    let wrong = found.chunks_exact(4).position(|word| of_word(word) != value);
    if let Some(index) = wrong {
        let word = of_word(&found[4 * index..4 * index + 4]);
        panic!("word {index} of {bytes} bytes at {at:#x} is {word:#x}, not {value:#x}");
    }
}

/// Sets every word of a span.
fn set_words(gpu: &Gpu, kernels: &Kernels, span: (Address, u32), value: u32, stream: StreamId) {
    gpu.device.fill_async(span.0, 0, 4 * Bytes::from(span.1), stream).unwrap();
    kernels.affine(span, (1, value), stream);
}

/// Allocates, fills and frees on streams of its own until it is told to stop, and checks that its
/// memory is nobody else's.
fn live_beside(gpu: &Gpu, allocator: &Allocator, stop: &AtomicBool, seed: u64) {
    let mut numbers = Numbers::new(seed);
    let streams = [gpu.device.stream_create().unwrap(), gpu.device.stream_create().unwrap()];
    while !stop.load(Ordering::Relaxed) {
        let bytes = numbers.size().min(16 * MIB);
        let (stream, value) = (streams[numbers.below(2) as usize], numbers.below(256) as u8);
        let at = allocator.allocate(GPU, bytes, stream).unwrap();
        gpu.device.fill_async(at, value, bytes, stream).unwrap();
        gpu.assert_filled(at, bytes, value, stream);
        allocator.free(at).unwrap();
    }
    for stream in streams {
        gpu.device.stream_synchronize(stream).unwrap();
        allocator.retire_stream(GPU, stream).unwrap();
        gpu.device.stream_destroy(stream).unwrap();
    }
}

#[test]
fn a_graph_of_kernels_replays_rightly_while_others_allocate() {
    let Some(gpu) = gpu() else { return };
    with_primary_context(|| {
        let (allocator, kernels) = (gpu.allocator(), Kernels::load());
        let stream = gpu.device.stream_create().unwrap();
        let bytes = 3 * MIB;
        let allocate = || allocator.allocate(GPU, bytes, stream).unwrap();
        let (input, output) = (allocate(), allocate());
        gpu.device.capture_begin(stream).unwrap();
        let first = allocate();
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { gpu.device.copy_async(first, input, bytes, stream) }.unwrap();
        kernels.affine(words(first, bytes), (3, 1), stream);
        let second = allocate();
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { gpu.device.copy_async(second, first, bytes, stream) }.unwrap();
        kernels.affine(words(second, bytes), (5, 2), stream);
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { gpu.device.copy_async(output, second, bytes, stream) }.unwrap();
        let graph = gpu.device.capture_end(stream).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for seed in 21..24 {
                let (gpu, allocator, stop) = (&gpu, &allocator, &stop);
                scope.spawn(move || live_beside(gpu, allocator, stop, seed));
            }
            for round in 1..=200u32 {
                set_words(&gpu, &kernels, words(input, bytes), round, stream);
                gpu.device.graph_launch(graph, stream).unwrap();
                assert_words(&gpu, output, bytes, (3 * round + 1) * 5 + 2, stream);
            }
            stop.store(true, Ordering::Relaxed);
        });
        gpu.device.graph_destroy(graph).unwrap();
        for at in [input, output, first, second] {
            allocator.free(at).unwrap();
        }
        allocator.is_quiescent().unwrap();
        allocator.is_valid().unwrap();
        drop(allocator);
        gpu.device.stream_destroy(stream).unwrap();
        kernels.unload();
    });
}

#[test]
fn a_block_that_a_spinning_kernel_will_write_is_not_reused() {
    let Some(gpu) = gpu() else { return };
    with_primary_context(|| {
        let (allocator, kernels) = (gpu.allocator(), Kernels::load());
        let (owner, user) =
            (gpu.device.stream_create().unwrap(), gpu.device.stream_create().unwrap());
        for bytes in [4096, 5 * MIB, 40 * MIB] {
            let shared = allocator.allocate(GPU, bytes, owner).unwrap();
            allocator.record_stream(shared, user).unwrap();
            kernels.spin(100, user);
            set_words(&gpu, &kernels, words(shared, bytes), 0xdead, user);
            allocator.free(shared).unwrap();
            let next = allocator.allocate(GPU, bytes, owner).unwrap();
            assert!(!gpu.is_idle(user), "the allocation waited for the busy stream");
            set_words(&gpu, &kernels, words(next, bytes), 0xbeef, owner);
            gpu.device.stream_synchronize(user).unwrap();
            assert_words(&gpu, next, bytes, 0xbeef, owner);
            allocator.free(next).unwrap();
            allocator.process_events().unwrap();
        }
        allocator.is_quiescent().unwrap();
        drop(allocator);
        gpu.device.stream_destroy(owner).unwrap();
        gpu.device.stream_destroy(user).unwrap();
        kernels.unload();
    });
}

/// What one thread of the next test has allocated.
struct Block {
    at: Address,
    bytes: Bytes,
    value: u32,
    stream: StreamId,
}

/// Allocates and frees at random on streams that kernels keep busy, and checks each block's words
/// before it is freed; a share of the room is kept, so that memory has to move between streams.
fn work_at_random(gpu: &Gpu, allocator: &Allocator, kernels: &Kernels, seed: u64) {
    let mut numbers = Numbers::new(seed);
    let streams: Vec<StreamId> = (0..3).map(|_| gpu.device.stream_create().unwrap()).collect();
    let mut live: Vec<Block> = Vec::new();
    let check = |block: Block| {
        let Block { at, bytes, value, stream } = block;
        assert_words(gpu, at, bytes, value, stream);
        allocator.free(at).unwrap();
    };
    for step in 0..150u32 {
        if live.len() > 8 || (!live.is_empty() && numbers.below(3) == 0) {
            check(live.swap_remove(numbers.below(live.len() as u64) as usize));
            continue;
        }
        let bytes = numbers.size().clamp(4, 24 * MIB);
        let stream = streams[numbers.below(3) as usize];
        if numbers.below(4) == 0 {
            kernels.spin(2, stream);
        }
        match allocator.allocate(GPU, bytes, stream) {
            Ok(at) => {
                let value = step << 8 | (seed as u32 & 0xff);
                set_words(gpu, kernels, words(at, bytes), value, stream);
                live.push(Block { at, bytes, value, stream });
            }
            // Others have the rest.
            Err(error) => assert!(error.is_out_of_memory(), "{error}"),
        }
    }
    live.into_iter().for_each(check);
    for stream in streams {
        gpu.device.stream_synchronize(stream).unwrap();
        allocator.retire_stream(GPU, stream).unwrap();
        gpu.device.stream_destroy(stream).unwrap();
    }
}

#[test]
fn patterns_survive_on_busy_streams_that_share_little_memory() {
    let Some(gpu) = gpu() else { return };
    with_primary_context(|| {
        let (allocator, kernels) = (gpu.allocator(), Kernels::load());
        let total = gpu.device.memory_info().unwrap().total;
        allocator.set_memory_fraction(GPU, 256.0 * MIB as f64 / total as f64).unwrap();
        let seed = u64::from(std::process::id());
        println!("seed {seed}");
        let context = crate::contexts::current();
        thread::scope(|scope| {
            for thread in 0..4 {
                let (gpu, allocator, kernels) = (&gpu, &allocator, &kernels);
                let context = crate::contexts::Shared(context);
                scope.spawn(move || {
                    context.set_current();
                    work_at_random(gpu, allocator, kernels, seed + thread);
                });
            }
        });
        allocator.process_events().unwrap();
        allocator.is_quiescent().unwrap();
        drop(allocator);
        kernels.unload();
    });
}
