//! Captures of the program around the allocator, and graphs that replay.

use std::thread;

use cudarc::driver::sys;
use plugalloc::Allocator;
use plugalloc::device::Device;
use plugalloc::units::{MIB, StreamId};
use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL as GLOBAL;

use crate::contexts::with_primary_context;
use crate::{GPU, Gpu, Numbers, gpu};

/// Allocates, frees, records streams and polls, as another part of the program would.
fn disturb(gpu: &Gpu, allocator: &Allocator, seed: u64) {
    let (one, two) = (gpu.device.stream_create().unwrap(), gpu.device.stream_create().unwrap());
    let mut numbers = Numbers::new(seed);
    for step in 0..60u8 {
        let bytes = numbers.size().min(32 * MIB);
        let at = allocator.allocate(GPU, bytes, one).unwrap();
        gpu.device.fill_async(at, step, bytes, two).unwrap();
        allocator.record_stream(at, two).unwrap();
        allocator.free(at).unwrap();
        allocator.process_events().unwrap();
    }
    gpu.device.stream_synchronize(two).unwrap();
    allocator.process_events().unwrap();
}

#[test]
fn a_graph_over_allocated_blocks_replays_rightly_while_others_allocate() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let stream = gpu.device.stream_create().unwrap();
    let bytes = 6 * MIB;
    let input = allocator.allocate(GPU, bytes, stream).unwrap();
    let output = allocator.allocate(GPU, bytes, stream).unwrap();
    gpu.device.capture_begin(stream).unwrap();
    let between = allocator.allocate(GPU, bytes, stream).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { gpu.device.copy_async(between, input, bytes, stream) }.unwrap();
    disturb(&gpu, &allocator, 11);
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { gpu.device.copy_async(output, between, bytes, stream) }.unwrap();
    let graph = gpu.device.capture_end(stream).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| disturb(&gpu, &allocator, 12));
        for value in 1..=30u8 {
            gpu.device.fill_async(input, value, bytes, stream).unwrap();
            gpu.device.graph_launch(graph, stream).unwrap();
            gpu.assert_filled(output, bytes, value, stream);
        }
    });
    gpu.device.graph_destroy(graph).unwrap();
    for at in [input, between, output] {
        allocator.free(at).unwrap();
    }
    gpu.device.synchronize().unwrap();
    allocator.process_events().unwrap();
    allocator.is_quiescent().unwrap();
    drop(allocator);
    gpu.device.stream_destroy(stream).unwrap();
}

#[test]
fn a_strict_capture_of_the_program_is_not_broken_by_the_allocator() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let stream = gpu.device.stream_create().unwrap();
    let memory = allocator.allocate(GPU, MIB, stream).unwrap();
    let raw = stream.0 as usize as sys::CUstream;
    with_primary_context(|| {
        // SAFETY: the stream exists, and its context is current.
        let begun = unsafe { sys::cuStreamBeginCapture_v2(raw, GLOBAL) };
        assert_eq!(begun, sys::CUresult::CUDA_SUCCESS);
        gpu.device.fill_async(memory, 6, MIB, stream).unwrap();
        disturb_strictly(&gpu, &allocator, 21);
        thread::scope(|scope| {
            scope.spawn(|| disturb_strictly(&gpu, &allocator, 22));
        });
        let mut graph = std::ptr::null_mut();
        // SAFETY: this thread has begun the capture; writes one handle.
        let ended = unsafe { sys::cuStreamEndCapture(raw, &raw mut graph) };
        assert_eq!(ended, sys::CUresult::CUDA_SUCCESS);
        assert!(!graph.is_null());
        // SAFETY: the graph was made just now, and nobody else has it.
        let destroyed = unsafe { sys::cuGraphDestroy(graph) };
        assert_eq!(destroyed, sys::CUresult::CUDA_SUCCESS);
    });
    allocator.free(memory).unwrap();
    gpu.device.synchronize().unwrap();
    allocator.process_events().unwrap();
    allocator.is_quiescent().unwrap();
}

/// As [`disturb`], with plain memory too, and without waiting for streams.
fn disturb_strictly(gpu: &Gpu, allocator: &Allocator, seed: u64) {
    let other = StreamId(gpu.device.stream_create().unwrap().0);
    let mut numbers = Numbers::new(seed);
    for _ in 0..20 {
        let at = allocator.allocate(GPU, numbers.size().min(32 * MIB), other).unwrap();
        allocator.record_stream(at, StreamId(2)).unwrap();
        allocator.free(at).unwrap();
        allocator.process_events().unwrap();
    }
    let plain = gpu.device.malloc(MIB).unwrap();
    gpu.device.free(plain).unwrap();
    let event = gpu.device.event_create().unwrap();
    gpu.device.event_record(event, other).unwrap();
    gpu.device.event_synchronize(event).unwrap();
    gpu.device.event_destroy(event).unwrap();
}

#[test]
fn the_capture_of_a_stream_is_seen_whoever_began_it() {
    let Some(gpu) = gpu() else { return };
    let stream = gpu.device.stream_create().unwrap();
    let raw = stream.0 as usize as sys::CUstream;
    with_primary_context(|| {
        // SAFETY: the stream exists, and its context is current.
        let begun = unsafe { sys::cuStreamBeginCapture_v2(raw, GLOBAL) };
        assert_eq!(begun, sys::CUresult::CUDA_SUCCESS);
        assert!(gpu.device.capture_status(stream).unwrap().is_some());
        let refused = gpu.device.host_function(stream, Box::new(|| ())).unwrap_err();
        println!("{refused}");
    });
    let graph = gpu.device.capture_end(stream).unwrap();
    gpu.device.graph_launch(graph, stream).unwrap();
    gpu.device.stream_synchronize(stream).unwrap();
    gpu.device.graph_destroy(graph).unwrap();
    gpu.device.stream_destroy(stream).unwrap();
}

#[test]
fn the_default_stream_counts_as_capturing_while_a_capture_would_feel_it() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let shared = allocator.allocate(GPU, 4 * MIB, StreamId::DEFAULT).unwrap();
    let user = gpu.device.stream_create().unwrap();
    with_primary_context(|| {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle, of a stream that synchronises with the default stream.
        let made = unsafe { sys::cuStreamCreate(&raw mut raw, 0) };
        assert_eq!(made, sys::CUresult::CUDA_SUCCESS);
        // SAFETY: the stream was made just now, and its context is current.
        let begun = unsafe { sys::cuStreamBeginCapture_v2(raw, GLOBAL) };
        assert_eq!(begun, sys::CUresult::CUDA_SUCCESS);
        assert!(gpu.device.capture_status(StreamId::DEFAULT).unwrap().is_some());
        assert!(gpu.device.capture_status(user).unwrap().is_none());
        // Frees that involve the default stream wait, and memory still comes.
        let other = allocator.allocate(GPU, 4 * MIB, user).unwrap();
        allocator.record_stream(other, StreamId::DEFAULT).unwrap();
        allocator.free(other).unwrap();
        allocator.record_stream(shared, user).unwrap();
        allocator.free(shared).unwrap();
        allocator.process_events().unwrap();
        let mut graph = std::ptr::null_mut();
        // SAFETY: this thread has begun the capture; writes one handle.
        let ended = unsafe { sys::cuStreamEndCapture(raw, &raw mut graph) };
        assert_eq!(ended, sys::CUresult::CUDA_SUCCESS);
        // SAFETY: the graph was made just now, and nobody else has it.
        let destroyed = unsafe { sys::cuGraphDestroy(graph) };
        assert_eq!(destroyed, sys::CUresult::CUDA_SUCCESS);
        // SAFETY: nobody uses the stream any more.
        let destroyed = unsafe { sys::cuStreamDestroy_v2(raw) };
        assert_eq!(destroyed, sys::CUresult::CUDA_SUCCESS);
    });
    gpu.device.synchronize().unwrap();
    allocator.process_events().unwrap();
    allocator.process_events().unwrap();
    allocator.is_quiescent().unwrap();
    drop(allocator);
    gpu.device.stream_destroy(user).unwrap();
}
