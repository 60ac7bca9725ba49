//! Memory given to other processes.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::CUresult;

use super::attributes::Attribute;
use super::driver::{Code, Driver};
use super::{CudaDevice, live, vmm};
use crate::device::{
    Capabilities, DeviceResult, HandleId, HandleType, HandleTypes, IpcHandle, ShareableHandle,
};
use crate::error::{DeviceError, DeviceErrorKind, DriverCall};
use crate::units::Address;

/// The driver's `CUipcMemHandle`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct IpcBytes([u8; 64]);

/// The driver's flag of `cuIpcOpenMemHandle`, the only one: where the memory is a peer's, enable
/// access to the peer.
const ENABLE_PEER: c_uint = 1;

/// The driver's `CUmemAllocationHandleType`.
pub(super) fn number(handle_type: HandleType) -> c_uint {
    match handle_type {
        HandleType::FileDescriptor => 1,
        HandleType::Fabric => 8,
    }
}

/// What the device can do; what it makes handles of is tried for that.
pub(super) fn capabilities(device: &CudaDevice) -> Capabilities {
    let mut found = Capabilities::new(device.granularity);
    if device.granularity.is_some() {
        found.handle_types = handle_types(device);
        found.rdma = vmm::placement(device, true).is_some();
    }
    found.legacy_ipc = has_legacy_ipc(device.driver, device.ordinal);
    found
}

/// What memory that the device makes can be exported as.
fn handle_types(device: &CudaDevice) -> HandleTypes {
    vmm::placement(device, false).map_or(HandleTypes::NONE, |placement| placement.handles)
}

/// Whether plain memory has legacy handles. Drivers before CUDA 12 do not know the question; there,
/// unified addressing decides.
pub(super) fn has_legacy_ipc(driver: &Driver, ordinal: i32) -> bool {
    let is_old = || driver.version().is_ok_and(|version| version < 12000);
    driver.has(ordinal, Attribute::IPC)
        || driver.has(ordinal, Attribute::UNIFIED_ADDRESSING) && is_old()
}

pub(super) fn export_handle(
    device: &CudaDevice,
    handle: HandleId,
    handle_type: HandleType,
) -> DeviceResult<ShareableHandle> {
    require(device, DriverCall::ExportHandle, handle_type)?;
    match handle_type {
        HandleType::FileDescriptor => {
            let mut descriptor: c_int = -1;
            export(device, handle, handle_type, (&raw mut descriptor).cast())?;
            // SAFETY: the driver has just made this descriptor for its caller to own.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            Ok(ShareableHandle::FileDescriptor(descriptor))
        }
        HandleType::Fabric => {
            let mut bytes = [0u8; 64];
            export(device, handle, handle_type, (&raw mut bytes).cast())?;
            Ok(ShareableHandle::Fabric(bytes))
        }
    }
}

/// Exports to `place`, which has room for what this type consists of.
fn export(
    device: &CudaDevice,
    handle: HandleId,
    handle_type: HandleType,
    place: *mut c_void,
) -> DeviceResult<()> {
    let _alive = live::handles_with(device, DriverCall::ExportHandle, handle)?;
    device.call(DriverCall::ExportHandle, |driver| {
        // SAFETY: writes one integer or 64 bytes, by the type; the handle is alive while the lock
        // is held.
        unsafe { (driver.mem_export)(place, handle.0, number(handle_type), 0) }
    })
}

pub(super) fn import_handle(
    device: &CudaDevice,
    shared: &ShareableHandle,
) -> DeviceResult<HandleId> {
    let handle_type = shared.handle_type();
    require(device, DriverCall::ImportHandle, handle_type)?;
    let mut bytes;
    let place: *mut c_void = match shared {
        // A descriptor stands in the place of the pointer itself.
        ShareableHandle::FileDescriptor(descriptor) => {
            std::ptr::without_provenance_mut(descriptor.as_raw_fd() as usize)
        }
        ShareableHandle::Fabric(fabric) => {
            bytes = *fabric;
            (&raw mut bytes).cast()
        }
    };
    let mut handle = 0;
    device.call(DriverCall::ImportHandle, |driver| {
        // SAFETY: reads the descriptor or 64 bytes, by the type, and checks what they are; writes
        // one integer.
        unsafe { (driver.mem_import)(&raw mut handle, place, number(handle_type)) }
    })?;
    device.live.handles().add(handle);
    Ok(HandleId(handle))
}

/// Fails where the device's handles are not of this type, with a better reason than the driver's.
fn require(device: &CudaDevice, call: DriverCall, handle_type: HandleType) -> DeviceResult<()> {
    if device.granularity.is_none() {
        return Err(vmm::no_virtual_memory(device, call));
    }
    // A lost device gives no type, and must not be told to lack one.
    device.context(call)?;
    if handle_types(device).contains(handle_type) {
        return Ok(());
    }
    let detail = format!("this device's memory has no {handle_type} (see `plugalloc doctor`)");
    Err(device.error(call, DeviceErrorKind::Unsupported, detail))
}

fn require_legacy(device: &CudaDevice, call: DriverCall) -> DeviceResult<()> {
    if has_legacy_ipc(device.driver, device.ordinal) {
        return Ok(());
    }
    let detail = "this device has no legacy handles of CUDA IPC (see `plugalloc doctor`)";
    Err(device.error(call, DeviceErrorKind::Unsupported, detail))
}

pub(super) fn get_handle(device: &CudaDevice, address: Address) -> DeviceResult<IpcHandle> {
    require_legacy(device, DriverCall::IpcGetHandle)?;
    if device.peers.bank(device.ordinal).is_mapped(address) {
        let detail =
            format!("mapped memory, as at {address:#x}, has no legacy handle: export its handles");
        return Err(device.error(DriverCall::IpcGetHandle, DeviceErrorKind::Unsupported, detail));
    }
    let mut handle = IpcBytes([0; 64]);
    device.relaxed_call(DriverCall::IpcGetHandle, |driver| {
        // SAFETY: writes 64 bytes; the driver checks the address.
        unsafe { (driver.ipc_get)(&raw mut handle, address) }
    })?;
    Ok(IpcHandle(handle.0))
}

pub(super) fn open_handle(device: &CudaDevice, handle: IpcHandle) -> DeviceResult<Address> {
    let call = DriverCall::IpcOpenHandle;
    require_legacy(device, call)?;
    let mut address = 0;
    let mut answer = Code(0);
    let mut opened = device.live.opened();
    device.relaxed_call(call, |driver| {
        // SAFETY: reads 64 bytes, which the driver checks, and writes one address.
        answer = unsafe { (driver.ipc_open)(&raw mut address, IpcBytes(handle.0), ENABLE_PEER) };
        // Judged below.
        Code(0)
    })?;
    answer.check().map_err(|code| refused_open(device, code))?;
    opened.add(address);
    Ok(address)
}

/// The driver says of a handle of this very process that the context is invalid. That is so where a
/// call which needs the context works.
fn refused_open(device: &CudaDevice, code: Code) -> DeviceError {
    let call = DriverCall::IpcOpenHandle;
    if !code.is(CUresult::CUDA_ERROR_INVALID_CONTEXT) {
        return device.refused(call, code);
    }
    match super::memory::info(device) {
        Ok(_) => {
            device.misuse(call, "this is a handle of this process, which only others can open")
        }
        Err(error) => DeviceError { call, ..error },
    }
}

pub(super) fn close_handle(device: &CudaDevice, address: Address) -> DeviceResult<()> {
    require_legacy(device, DriverCall::IpcCloseHandle)?;
    let mut opened = live::opened_with(device, DriverCall::IpcCloseHandle, address)?;
    device.relaxed_call(DriverCall::IpcCloseHandle, |driver| {
        // SAFETY: the memory is open while the lock is held; that no queued work uses it any more
        // is the caller's contract.
        unsafe { (driver.ipc_close)(address) }
    })?;
    opened.remove(address);
    Ok(())
}
