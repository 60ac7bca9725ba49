//! The allocator over a GPU, in several threads.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use plugalloc::Allocator;
use plugalloc::device::Device;
use plugalloc::units::{Address, Bytes, StreamId};

use crate::{GPU, Gpu, Numbers, gpu};

#[test]
fn threads_with_streams_of_their_own_do_not_disturb_each_other() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    thread::scope(|scope| {
        for thread in 0..8u64 {
            let (gpu, allocator) = (&gpu, &allocator);
            scope.spawn(move || work_alone(gpu, allocator, thread));
        }
    });
    allocator.is_quiescent().unwrap();
}

fn work_alone(gpu: &Gpu, allocator: &Allocator, thread: u64) {
    let stream = gpu.device.stream_create().unwrap();
    let mut numbers = Numbers::new(thread);
    let mut live: Vec<(Address, Bytes, u8)> = Vec::new();
    for step in 0..120u64 {
        if live.len() > 8 {
            let (at, bytes, value) = live.swap_remove(numbers.below(live.len() as u64) as usize);
            gpu.assert_filled(at, bytes, value, stream);
            allocator.free(at).unwrap();
        }
        let bytes = numbers.size().min(8 << 20);
        let at = allocator.allocate(GPU, bytes, stream).unwrap();
        let value = (step * 8 + thread) as u8;
        gpu.device.fill_async(at, value, bytes, stream).unwrap();
        live.push((at, bytes, value));
    }
    for (at, bytes, value) in live {
        gpu.assert_filled(at, bytes, value, stream);
        allocator.free(at).unwrap();
    }
    gpu.device.stream_synchronize(stream).unwrap();
}

/// A block on its way to the thread that frees it: where, how long, what is in it, and when it is
/// there.
type Parcel = (Address, Bytes, u8, plugalloc::device::EventId);

#[test]
fn blocks_pass_from_thread_to_thread_and_stream_to_stream() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let streams = [(); 4].map(|()| gpu.device.stream_create().unwrap());
    thread::scope(|scope| {
        let (gpu, allocator) = (&gpu, &allocator);
        for pair in streams.chunks(2) {
            let (sender, receiver) = channel::<Parcel>();
            scope.spawn(move || produce(gpu, allocator, pair[0], &sender));
            scope.spawn(move || consume(gpu, allocator, pair[1], &receiver));
        }
    });
    gpu.device.synchronize().unwrap();
    allocator.process_events().unwrap();
    allocator.is_quiescent().unwrap();
    drop(allocator);
    for stream in streams {
        gpu.device.stream_destroy(stream).unwrap();
    }
}

fn produce(gpu: &Gpu, allocator: &Allocator, stream: StreamId, parcels: &Sender<Parcel>) {
    let mut numbers = Numbers::new(stream.0);
    for step in 0..200u32 {
        let bytes = numbers.size().min(4 << 20);
        let at = allocator.allocate(GPU, bytes, stream).unwrap();
        gpu.device.fill_async(at, step as u8, bytes, stream).unwrap();
        let event = gpu.device.event_create().unwrap();
        gpu.device.event_record(event, stream).unwrap();
        parcels.send((at, bytes, step as u8, event)).unwrap();
    }
}

fn consume(gpu: &Gpu, allocator: &Allocator, stream: StreamId, parcels: &Receiver<Parcel>) {
    for (at, bytes, value, filled) in parcels {
        gpu.device.stream_wait_event(stream, filled).unwrap();
        gpu.device.event_destroy(filled).unwrap();
        let copy = allocator.allocate(GPU, bytes, stream).unwrap();
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { gpu.device.copy_async(copy, at, bytes, stream) }.unwrap();
        // The producer's stream may have the block again once this copy has run.
        allocator.record_stream(at, stream).unwrap();
        allocator.free(at).unwrap();
        gpu.assert_filled(copy, bytes, value, stream);
        allocator.free(copy).unwrap();
    }
}
