//! Hand-over to and from cudarc.

use std::io::Write;
use std::sync::Arc;

use plugalloc::device::Device;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::interop::Slice;
use plugalloc::interop::cudarc::driver::{CudaContext, CudaSlice};
use plugalloc::units::{MIB, StreamId};
use plugalloc::{Allocator, Error, Stream};

use crate::{GPU, gpu};

/// Says where a test is, at once: a fault in the driver would take what is captured with it.
fn step(what: &str) {
    drop(writeln!(std::io::stderr(), "interop: {what}"));
}

/// A shared allocator over the device of the tests.
fn shared_allocator(device: Arc<dyn Device>) -> Arc<Allocator> {
    Allocator::builder().devices(vec![device]).build().unwrap()
}

#[test]
fn values_go_to_cudarc_and_come_back_in_place() {
    let Some(gpu) = gpu() else { return };
    let allocator = shared_allocator(Arc::clone(&gpu.device) as Arc<dyn Device>);
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    step("allocate a slice");
    let mut numbers = allocator.alloc_slice::<u32>(GPU, 1 << 20, &stream).unwrap();
    let address = numbers.allocation().address();
    assert_eq!(stream.clone_dtoh(&*numbers).unwrap(), vec![0; 1 << 20]);
    step("write it");
    let wanted: Vec<u32> = (0..1 << 20).collect();
    stream.memcpy_htod(&wanted, &mut numbers.as_view_mut()).unwrap();
    step("copy it on another stream");
    // Another stream of cudarc's, ordered after that by cudarc's events.
    let other = context.new_stream().unwrap();
    let copy: CudaSlice<u32> = other.clone_dtod(&*numbers).unwrap();
    assert_eq!(other.clone_dtoh(&copy).unwrap(), wanted);

    step("take the memory out");
    let memory = numbers.into_allocation();
    assert_eq!((memory.address(), memory.bytes()), (address, 4 << 20));
    let mut back = vec![0u32; 1 << 20];
    let ours = Stream::from_cudarc(&allocator, GPU, &stream).unwrap();
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { ours.copy(back.as_mut_ptr() as u64, memory.address(), memory.bytes()) }.unwrap();
    ours.synchronize().unwrap();
    assert_eq!(back, wanted);
    drop(memory);

    step("hand out a bare slice");
    // A bare slice goes out and comes back; cudarc's own is refused, and stays whole.
    let numbers = allocator.alloc_slice::<u32>(GPU, 100, &stream).unwrap();
    // SAFETY: it is handed back below.
    let bare = unsafe { numbers.into_cuda_slice() };
    drop(Slice::from_cuda_slice(&allocator, bare).unwrap());
    step("hand in a slice of cudarc's own");
    let (copy, error) = *Slice::from_cuda_slice(&allocator, copy).unwrap_err();
    assert!(error.is_invalid_pointer(), "{error}");
    assert_eq!(other.clone_dtoh(&copy).unwrap(), wanted);
    step("drop everything");
    drop((copy, ours));
    stream.synchronize().unwrap();
    other.synchronize().unwrap();
    context.check_err().unwrap();
    allocator.process_events().unwrap();
    allocator.is_quiescent().unwrap();
    // The streams go before the allocator, which looks at them when it goes.
    drop((stream, other));
    step("drop the allocator");
    drop(allocator);
    context.check_err().unwrap();
    step("done");
}

#[test]
fn streams_go_to_cudarc_and_come_back() {
    let Some(gpu) = gpu() else { return };
    let allocator = shared_allocator(Arc::clone(&gpu.device) as Arc<dyn Device>);
    let context = CudaContext::new(0).unwrap();
    let ours = Stream::new(&allocator, GPU).unwrap();
    // SAFETY: `ours` lives until the end of the test.
    let theirs = unsafe { ours.to_cudarc(&context) }.unwrap();
    let numbers = allocator.alloc_slice::<u8>(GPU, MIB as usize, &theirs).unwrap();
    gpu.keep_busy(ours.id(), 50);
    ours.fill(numbers.allocation().address(), 9, MIB).unwrap();
    assert_eq!(theirs.clone_dtoh(&*numbers).unwrap(), vec![9; MIB as usize]);
    drop((numbers, theirs));
    ours.synchronize().unwrap();

    // A stream of cudarc's lives as long as the one that was made of it.
    let stream = context.new_stream().unwrap();
    let kept = Stream::from_cudarc(&allocator, GPU, &stream).unwrap();
    drop(stream);
    let memory = allocator.alloc(GPU, MIB, kept.id()).unwrap();
    kept.fill(memory.address(), 1, MIB).unwrap();
    kept.synchronize().unwrap();
    drop((memory, kept, ours));
    let default = Stream::from_cudarc(&allocator, GPU, &context.default_stream()).unwrap();
    assert_eq!(default.id(), StreamId::DEFAULT);
    drop(default);
    context.check_err().unwrap();
    allocator.is_quiescent().unwrap();
}

#[test]
fn streams_of_other_contexts_and_simulated_devices_are_refused() {
    let Some(gpu) = gpu() else { return };
    let machine = SimMachine::new(SimOptions::default()).unwrap();
    let simulated = shared_allocator(machine.device(0));
    let primary = CudaContext::new(0).unwrap();
    let refused = Stream::from_cudarc(&simulated, GPU, &primary.default_stream()).unwrap_err();
    println!("{refused}");
    assert!(matches!(refused, Error::Unsupported { .. }));

    let allocator = shared_allocator(Arc::clone(&gpu.device) as Arc<dyn Device>);
    let own = CudaContext::new_non_primary(0, 0).unwrap();
    let refused = allocator.alloc_slice::<f32>(GPU, 10, &own.default_stream()).unwrap_err();
    println!("{refused}");
    assert!(matches!(refused, Error::Unsupported { .. }));
    allocator.is_quiescent().unwrap();
}
