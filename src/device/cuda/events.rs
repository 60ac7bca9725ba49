//! Events: the driver's own, without times.

use cudarc::driver::sys::{CUevent, CUevent_flags, CUresult};

use super::CudaDevice;
use super::driver::Code;
use super::streams;
use crate::device::{DeviceResult, EventId};
use crate::error::DriverCall;
use crate::units::StreamId;

/// The driver's handle of an event.
pub(super) fn raw(event: EventId) -> CUevent {
    event.0 as usize as CUevent
}

pub(super) fn create(device: &CudaDevice) -> DeviceResult<EventId> {
    let mut event = std::ptr::null_mut();
    let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
    device.call(DriverCall::EventCreate, |driver| {
        // SAFETY: writes one handle.
        unsafe { (driver.event_create)(&raw mut event, flags) }
    })?;
    Ok(EventId(event as usize as u64))
}

pub(super) fn destroy(device: &CudaDevice, event: EventId) -> DeviceResult<()> {
    device.call(DriverCall::EventDestroy, |driver| {
        // SAFETY: the event exists, which is the caller's contract; waits for it stay.
        unsafe { (driver.event_destroy)(raw(event)) }
    })
}

pub(super) fn record(device: &CudaDevice, event: EventId, stream: StreamId) -> DeviceResult<()> {
    device.call(DriverCall::EventRecord, |driver| {
        // SAFETY: event and stream exist, which is the caller's contract.
        unsafe { (driver.event_record)(raw(event), streams::raw(stream)) }
    })
}

pub(super) fn query(device: &CudaDevice, event: EventId) -> DeviceResult<bool> {
    let mut completed = true;
    device.relaxed_call(DriverCall::EventQuery, |driver| {
        // SAFETY: the event exists, which is the caller's contract.
        let code = unsafe { (driver.event_query)(raw(event)) };
        if code.is(CUresult::CUDA_ERROR_NOT_READY) {
            completed = false;
            return Code(0);
        }
        code
    })?;
    Ok(completed)
}

pub(super) fn synchronize(device: &CudaDevice, event: EventId) -> DeviceResult<()> {
    device.relaxed_call(DriverCall::EventSynchronize, |driver| {
        // SAFETY: the event exists, which is the caller's contract.
        unsafe { (driver.event_synchronize)(raw(event)) }
    })
}
