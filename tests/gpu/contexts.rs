//! The calling thread's context is the caller's.

use std::sync::Arc;
use std::thread;

use cudarc::driver::sys;
use plugalloc::device::Device;
use plugalloc::device::cuda::CudaMachine;
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{MIB, StreamId};
use plugalloc::{Allocator, Config, Error};
use sys::CUresult::CUDA_SUCCESS;

use crate::processes::{is_child, print_of, run_child};
use crate::{GPU, Gpu, gpu};

/// The context that is current in this thread.
pub(crate) fn current() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    let code = unsafe { sys::cuCtxGetCurrent(&raw mut context) };
    assert_eq!(code, CUDA_SUCCESS);
    context
}

/// Makes a context current in this thread.
fn set_current(context: sys::CUcontext) {
    // SAFETY: the context lives for as long as this test.
    let code = unsafe { sys::cuCtxSetCurrent(context) };
    assert_eq!(code, CUDA_SUCCESS);
}

/// A context on its way to another thread.
pub(crate) struct Shared(pub(crate) sys::CUcontext);

// SAFETY: the driver lets every thread use a context.
unsafe impl Send for Shared {}

impl Shared {
    /// Makes it current in this thread.
    pub(crate) fn set_current(self) {
        set_current(self.0);
    }
}

/// The mode in which this thread captures.
fn capture_mode() -> sys::CUstreamCaptureMode {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    // SAFETY: exchanges one integer.
    let code = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    assert_eq!(code, CUDA_SUCCESS);
    mode
}

/// Runs `body` with the primary context of device 0 current, as the CUDA runtime leaves it.
pub(crate) fn with_primary_context(body: impl FnOnce()) {
    with_primary_context_of(0, |_| body());
}

/// Runs `body` with the primary context of a device current, which it is told.
pub(crate) fn with_primary_context_of<T>(
    ordinal: i32,
    body: impl FnOnce(sys::CUcontext) -> T,
) -> T {
    let before = current();
    let mut primary = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut primary, ordinal) };
    assert_eq!(code, CUDA_SUCCESS);
    set_current(primary);
    let result = body(primary);
    assert_eq!(current(), primary);
    set_current(before);
    // SAFETY: gives back what was retained above.
    let code = unsafe { sys::cuDevicePrimaryCtxRelease_v2(ordinal) };
    assert_eq!(code, CUDA_SUCCESS);
    result
}

/// A context of the program, which is current from here on.
fn create_context() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one pointer; device 0 exists.
    let code = unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, 0) };
    assert_eq!(code, CUDA_SUCCESS);
    context
}

/// Ends a context, which is current and then no longer is.
fn destroy_context(context: sys::CUcontext) {
    // SAFETY: nobody is inside a call with the context; its streams end with it.
    let code = unsafe { sys::cuCtxDestroy_v2(context) };
    assert_eq!(code, CUDA_SUCCESS);
}

/// Makes many kinds of call.
fn use_everything(gpu: &Gpu) {
    let device = &*gpu.device;
    let allocator = gpu.allocator();
    let stream = device.stream_create().unwrap();
    let at = allocator.allocate(GPU, 30 * MIB, stream).unwrap();
    device.fill_async(at, 5, 30 * MIB, stream).unwrap();
    allocator.record_stream(at, StreamId::DEFAULT).unwrap();
    gpu.assert_filled(at, 30 * MIB, 5, stream);
    allocator.free(at).unwrap();
    allocator.process_events().unwrap();
    let plain = device.malloc(MIB).unwrap();
    device.free(plain).unwrap();
    assert!(device.free(4096).is_err(), "so for a call that fails");
    drop(allocator);
    device.stream_destroy(stream).unwrap();
}

#[test]
fn a_thread_without_a_context_stays_without_one() {
    let Some(gpu) = gpu() else { return };
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(current().is_null());
            use_everything(&gpu);
            assert!(current().is_null());
            assert_eq!(capture_mode() as u32, 0);
        });
    });
}

#[test]
fn the_primary_context_stays_current() {
    let Some(gpu) = gpu() else { return };
    with_primary_context(|| use_everything(&gpu));
}

#[test]
fn another_context_stays_current_and_its_streams_are_refused() {
    let Some(gpu) = gpu() else { return };
    let other = create_context();
    use_everything(&gpu);
    assert_eq!(current(), other);
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one handle, of a stream of the other context, which is current.
    let code = unsafe { sys::cuStreamCreate(&raw mut stream, 1) };
    assert_eq!(code, CUDA_SUCCESS);
    let foreign = StreamId(stream as usize as u64);
    let event = gpu.device.event_create().unwrap();
    let refused = gpu.device.event_record(event, foreign).unwrap_err();
    println!("{refused}");
    gpu.device.event_destroy(event).unwrap();
    destroy_context(other);
}

#[test]
fn devices_opened_in_a_context_of_the_program_work_in_it() {
    let Some(gpu) = gpu() else { return };
    let own = create_context();
    let machine = CudaMachine::open().unwrap();
    assert!(Arc::ptr_eq(&machine, &CudaMachine::open().unwrap()), "one machine a context");
    let device = Arc::clone(&machine.devices()[0]);
    assert!(!Arc::ptr_eq(&device, &gpu.device));
    let mut stream = std::ptr::null_mut();
    // SAFETY: writes one handle, of a stream of the own context, which is current.
    let code = unsafe { sys::cuStreamCreate(&raw mut stream, 1) };
    assert_eq!(code, CUDA_SUCCESS);
    let stream = StreamId(stream as usize as u64);
    let allocator = Allocator::new(machine.as_devices(), Config::default()).unwrap();
    thread::scope(|scope| {
        // A thread that knows nothing of the context works in it as well.
        scope.spawn(|| {
            let at = allocator.allocate(GPU, 20 * MIB, stream).unwrap();
            allocator.record_stream(at, StreamId::DEFAULT).unwrap();
            device.fill_async(at, 7, 20 * MIB, stream).unwrap();
            device.stream_synchronize(stream).unwrap();
            allocator.free(at).unwrap();
            device.synchronize().unwrap();
            allocator.process_events().unwrap();
            assert!(current().is_null());
        });
    });
    assert_eq!(current(), own);
    allocator.is_quiescent().unwrap();
    drop(allocator);
    use_everything(&Gpu { device, ..gpu });
    destroy_context(own);
}

#[test]
fn memory_of_a_destroyed_context_is_refused() {
    let test = "memory_of_a_destroyed_context_is_refused";
    let Some(gpu) = gpu() else { return };
    if !is_child(test) {
        let output = run_child("contexts", test);
        assert!(output.status.success(), "{}", print_of(&output));
        assert!(print_of(&output).contains("refused it all"), "{}", print_of(&output));
        return;
    }
    let own = create_context();
    let machine = CudaMachine::open().unwrap();
    let allocator = Allocator::new(machine.as_devices(), Config::default()).unwrap();
    let at = allocator.allocate(GPU, 20 * MIB, StreamId::DEFAULT).unwrap();
    destroy_context(own);
    // Another one, which may well lie at the same place, is not mistaken for it.
    let next = create_context();
    let error = allocator.allocate(GPU, 40 * MIB, StreamId::DEFAULT).unwrap_err();
    println!("{error}");
    let Error::Device(error) = error else { panic!("not the device's: {error}") };
    assert_eq!(error.kind, DeviceErrorKind::Lost);
    assert!(machine.devices()[0].event_create().is_err());
    allocator.free(at).unwrap();
    drop(allocator);
    let again = CudaMachine::open().unwrap();
    let memory = again.devices()[0].malloc(MIB).unwrap();
    again.devices()[0].free(memory).unwrap();
    destroy_context(next);
    // That of everybody else is unharmed.
    use_everything(&gpu);
    println!("refused it all");
}
