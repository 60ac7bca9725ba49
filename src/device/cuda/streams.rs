//! Streams: the driver's own, by their handles.

use cudarc::driver::sys::{CUstream, CUstream_flags};

use super::CudaDevice;
use super::driver::Code;
use super::events;
use crate::device::{DeviceResult, EventId};
use crate::error::DriverCall;
use crate::units::StreamId;

/// Up to here numbers stand for default streams: 0 and 1 for the legacy one, 2 for the thread's.
const LAST_SPECIAL: u64 = 2;

/// The driver's handle of a stream.
pub(super) fn raw(stream: StreamId) -> CUstream {
    stream.0 as usize as CUstream
}

pub(super) fn create(device: &CudaDevice) -> DeviceResult<StreamId> {
    let mut stream = std::ptr::null_mut();
    let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    device.relaxed_call(DriverCall::StreamCreate, |driver| {
        // SAFETY: writes one handle.
        unsafe { (driver.stream_create)(&raw mut stream, flags) }
    })?;
    Ok(StreamId(stream as usize as u64))
}

/// Whether the stream is of this device's context, or may be as far as the driver tells.
pub(super) fn belongs(device: &CudaDevice, stream: StreamId) -> DeviceResult<bool> {
    if stream.0 <= LAST_SPECIAL {
        return Ok(true);
    }
    let own = device.context(DriverCall::HasStream)?;
    let Some(stream_context) = device.driver.stream_context else {
        return Ok(true);
    };
    let mut found = std::ptr::null_mut();
    let mut told = true;
    device.call(DriverCall::HasStream, |_| {
        // SAFETY: the stream exists, which is the caller's contract; writes one handle.
        let code = unsafe { stream_context(raw(stream), &raw mut found) };
        // Where the driver does not tell, whoever uses the stream next learns why.
        told = code.check().is_ok();
        Code(0)
    })?;
    Ok(!told || found == own.raw())
}

pub(super) fn destroy(device: &CudaDevice, stream: StreamId) -> DeviceResult<()> {
    device.call(DriverCall::StreamDestroy, |driver| {
        // SAFETY: the stream exists, which is the caller's contract; its work still runs.
        unsafe { (driver.stream_destroy)(raw(stream)) }
    })
}

pub(super) fn synchronize(device: &CudaDevice, stream: StreamId) -> DeviceResult<()> {
    device.call(DriverCall::StreamSynchronize, |driver| {
        // SAFETY: the stream exists, which is the caller's contract.
        unsafe { (driver.stream_synchronize)(raw(stream)) }
    })
}

pub(super) fn wait_event(
    device: &CudaDevice,
    stream: StreamId,
    event: EventId,
) -> DeviceResult<()> {
    device.call(DriverCall::StreamWaitEvent, |driver| {
        // SAFETY: stream and event exist, which is the caller's contract.
        unsafe { (driver.stream_wait_event)(raw(stream), events::raw(event), 0) }
    })
}

pub(super) fn synchronize_all(device: &CudaDevice) -> DeviceResult<()> {
    device.call(DriverCall::DeviceSynchronize, |driver| {
        // SAFETY: takes nothing; the context is current.
        unsafe { (driver.context_synchronize)() }
    })
}
