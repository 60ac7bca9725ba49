//! Memory of the device's choice, and work on memory.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::CudaDevice;
use super::streams::raw;
use crate::device::{DeviceResult, HostFunction, MemoryInfo};
use crate::error::{DeviceErrorKind, DriverCall};
use crate::units::{Address, Bytes, StreamId};

pub(super) fn info(device: &CudaDevice) -> DeviceResult<MemoryInfo> {
    let (mut free, mut total) = (0usize, 0usize);
    device.call(DriverCall::MemoryInfo, |driver| {
        // SAFETY: writes two integers.
        unsafe { (driver.mem_info)(&raw mut free, &raw mut total) }
    })?;
    Ok(MemoryInfo { free: free as Bytes, total: total as Bytes })
}

pub(super) fn malloc(device: &CudaDevice, bytes: Bytes) -> DeviceResult<Address> {
    let mut address = 0;
    device.relaxed_call(DriverCall::Malloc, |driver| {
        // SAFETY: writes one address.
        unsafe { (driver.mem_alloc)(&raw mut address, bytes as usize) }
    })?;
    Ok(address)
}

pub(super) fn free(device: &CudaDevice, address: Address) -> DeviceResult<()> {
    if device.live.opened().contains(address) {
        let detail = format!("the memory at {address:#x} is another process's: close its handle");
        return Err(device.misuse(DriverCall::Free, detail));
    }
    device.relaxed_call(DriverCall::Free, |driver| {
        // SAFETY: the driver checks the address, and waits for the work that may use it.
        unsafe { (driver.mem_free)(address) }
    })
}

pub(super) fn copy(
    device: &CudaDevice,
    to: Address,
    from: Address,
    bytes: Bytes,
    stream: StreamId,
) -> DeviceResult<()> {
    if bytes == 0 {
        return Ok(());
    }
    device.call(DriverCall::Copy, |driver| {
        // SAFETY: the addresses are the caller's, whose contract is that they stay valid until the
        // copy has run; with unified addresses the driver tells by itself whose memory each is.
        unsafe { (driver.mem_copy)(to, from, bytes as usize, raw(stream)) }
    })
}

pub(super) fn fill(
    device: &CudaDevice,
    at: Address,
    value: u8,
    bytes: Bytes,
    stream: StreamId,
) -> DeviceResult<()> {
    if bytes == 0 {
        return Ok(());
    }
    device.call(DriverCall::Fill, |driver| {
        // SAFETY: as for a copy.
        unsafe { (driver.mem_fill)(at, value, bytes as usize, raw(stream)) }
    })
}

/// Queues a function, which runs once, or never where the device is lost before.
pub(super) fn host_function(
    device: &CudaDevice,
    stream: StreamId,
    function: HostFunction,
) -> DeviceResult<()> {
    if super::graphs::status(device, stream)?.is_some() {
        let detail = "a function of the host can run only once, so it cannot be captured";
        return Err(device.error(DriverCall::HostFunction, DeviceErrorKind::Unsupported, detail));
    }
    let boxed = Box::into_raw(Box::new(function));
    let queued = device.call(DriverCall::HostFunction, |driver| {
        // SAFETY: `run_boxed` takes what `boxed` points to, once, because the stream does not
        // capture.
        unsafe { (driver.launch_host_function)(raw(stream), Some(run_boxed), boxed.cast()) }
    });
    if queued.is_err() {
        // SAFETY: the driver has not taken it, so it is still ours.
        drop(unsafe { Box::from_raw(boxed) });
    }
    queued
}

/// Runs a boxed [`HostFunction`] in a thread of the driver.
unsafe extern "C" fn run_boxed(data: *mut c_void) {
    // SAFETY: `data` is the box that was handed over when this was queued, and nobody else has it.
    let function = unsafe { Box::from_raw(data.cast::<HostFunction>()) };
    // A panic must not reach the driver; it has been printed, and nobody waits for its value. That
    // is forgotten, because dropping it could panic again.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(function)) {
        std::mem::forget(payload);
    }
}
