//! The calling thread's context is the caller's.

use std::thread;

use cudarc::driver::sys;
use plugalloc::device::Device;
use plugalloc::units::{MIB, StreamId};
use sys::CUresult::CUDA_SUCCESS;

use crate::{GPU, Gpu, gpu};

/// The context that is current in this thread.
fn current() -> sys::CUcontext {
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
    let before = current();
    let mut primary = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut primary, 0) };
    assert_eq!(code, CUDA_SUCCESS);
    set_current(primary);
    body();
    assert_eq!(current(), primary);
    set_current(before);
    // SAFETY: gives back what was retained above.
    let code = unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) };
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
    let mut other = std::ptr::null_mut();
    // SAFETY: writes one pointer; device 0 exists.
    let code = unsafe { sys::cuCtxCreate_v2(&raw mut other, 0, 0) };
    assert_eq!(code, CUDA_SUCCESS);
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
    // SAFETY: nobody uses the context any more; its stream ends with it.
    let code = unsafe { sys::cuCtxDestroy_v2(other) };
    assert_eq!(code, CUDA_SUCCESS);
}
