//! Virtual memory management: address ranges, physical memory, and mapping the one to the other.

use std::ffi::{c_int, c_uint, c_ushort, c_void};

use cudarc::driver::sys::{self, CUmemAllocationGranularity_flags as Granularity};

use super::attributes::Attribute;
use super::driver::{Code, Driver};
use super::{CudaDevice, ipc, live, peers};
use crate::device::{DeviceResult, HandleId, HandleType, HandleTypes};
use crate::error::{DeviceError, DeviceErrorKind, DriverCall};
use crate::units::{Address, Bytes, GRANULE};

/// The driver's `CUmemLocation`: a device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    kind: c_uint,
    ordinal: c_int,
}

/// The driver's `CUmemAllocationProp`: what physical memory is made of, and what may be done with
/// it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AllocationProperties {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
    security: *const c_void,
    compression: u8,
    rdma: u8,
    usage: c_ushort,
    reserved: [u8; 4],
}

/// The driver's `CUmemAccessDesc`: who may do what.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AccessDescription {
    location: Location,
    flags: c_uint,
}

const _: () = {
    assert!(size_of::<AllocationProperties>() == size_of::<sys::CUmemAllocationProp>());
    assert!(size_of::<AccessDescription>() == size_of::<sys::CUmemAccessDesc>());
};

const PINNED: c_uint = 1;
const ON_DEVICE: c_uint = 1;
const READ_AND_WRITE: c_uint = 3;

/// What kind of physical memory a device makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// What it can be exported as.
    pub(super) handles: HandleTypes,
    /// Whether network cards reach it. On an H100 that costs 5.6 microseconds more a mapping, and
    /// as much an unmapping; handles that can be shared cost nothing more.
    pub(super) rdma: bool,
}

impl Placement {
    /// Memory with no ability beyond being memory.
    pub(super) const PLAIN: Placement = Placement { handles: HandleTypes::NONE, rdma: false };

    fn properties(self, ordinal: i32) -> AllocationProperties {
        AllocationProperties {
            kind: PINNED,
            handle_types: requested(self.handles),
            location: Location { kind: ON_DEVICE, ordinal },
            security: std::ptr::null(),
            compression: 0,
            rdma: u8::from(self.rdma),
            usage: 0,
            reserved: [0; 4],
        }
    }

    /// What a device says it can do, from most to least.
    fn candidates(driver: &Driver, ordinal: i32, rdma: bool) -> Vec<Placement> {
        if rdma && !claims_rdma(driver, ordinal) {
            return Vec::new();
        }
        let file_descriptor = driver.has(ordinal, Attribute::POSIX_HANDLES);
        let fabric = driver.has(ordinal, Attribute::FABRIC_HANDLES);
        let claimed = HandleTypes { file_descriptor, fabric };
        // The claim of a fabric is false where its services do not run.
        let mut offers = vec![claimed, HandleTypes { fabric: false, ..claimed }, HandleTypes::NONE];
        offers.dedup();
        offers.into_iter().map(|handles| Placement { handles, rdma }).collect()
    }
}

/// Whether a device says that network cards reach its mapped memory.
pub(super) fn claims_rdma(driver: &Driver, ordinal: i32) -> bool {
    driver.has(ordinal, Attribute::RDMA) && driver.has(ordinal, Attribute::RDMA_WITH_VIRTUAL_MEMORY)
}

/// The driver's set of types.
fn requested(handles: HandleTypes) -> c_uint {
    let types = [HandleType::FileDescriptor, HandleType::Fabric];
    let types = types.into_iter().filter(|&each| handles.contains(each));
    types.fold(0, |set, each| set | ipc::number(each))
}

impl AccessDescription {
    /// Reading and writing for one device.
    pub(super) fn full(ordinal: i32) -> AccessDescription {
        let location = Location { kind: ON_DEVICE, ordinal };
        AccessDescription { location, flags: READ_AND_WRITE }
    }
}

/// The grain of physical memory that the driver demands or recommends.
pub(super) fn driver_granularity(
    driver: &Driver,
    ordinal: i32,
    which: Granularity,
) -> Option<Bytes> {
    let mut bytes = 0;
    let properties = Placement::PLAIN.properties(ordinal);
    // SAFETY: reads one structure of the driver's layout, and writes one integer.
    let code =
        unsafe { (driver.mem_granularity)(&raw mut bytes, &raw const properties, which as c_uint) };
    (code.check().is_ok() && bytes.is_power_of_two()).then_some(bytes as Bytes)
}

/// The grain of physical memory: that of the driver, or the larger one of the address map.
pub(super) fn granularity(driver: &Driver, ordinal: i32) -> Option<Bytes> {
    let minimum = Granularity::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    Some(driver_granularity(driver, ordinal, minimum)?.max(GRANULE))
}

/// Makes physical memory, if the driver can.
fn make(
    driver: &Driver,
    ordinal: i32,
    bytes: Bytes,
    placement: Placement,
) -> Result<HandleId, Code> {
    let mut handle = 0;
    let properties = placement.properties(ordinal);
    // SAFETY: reads one structure of the driver's layout, and writes one integer.
    let code =
        unsafe { (driver.mem_create)(&raw mut handle, bytes as usize, &raw const properties, 0) };
    code.check().map(|()| HandleId(handle))
}

/// Whether the driver makes this kind of memory, which its attributes do not always tell truly.
pub(super) fn try_placement(device: &CudaDevice, placement: Placement) -> DeviceResult<()> {
    let bytes = device.granularity.unwrap_or(GRANULE);
    device.call(DriverCall::Create, |driver| {
        match make(driver, device.ordinal, bytes, placement) {
            Ok(handle) => {
                // SAFETY: this is the handle made just now, which nobody else has.
                unsafe { (driver.mem_release)(handle.0) }
            }
            Err(code) => code,
        }
    })
}

/// What kind of memory the device makes, for network cards or not: of what it claims to be able to
/// do, the first that works.
pub(super) fn placement(device: &CudaDevice, rdma: bool) -> Option<Placement> {
    let known = &device.placements[usize::from(rdma)];
    if let Some(placement) = known.get() {
        return *placement;
    }
    let mut learnt = true;
    for candidate in Placement::candidates(device.driver, device.ordinal, rdma) {
        match try_placement(device, candidate) {
            Ok(()) => return *known.get_or_init(|| Some(candidate)),
            // Nothing was learnt about what works, so the claim stands, and is tried again next
            // time.
            Err(error) if error.kind == DeviceErrorKind::OutOfMemory => return Some(candidate),
            Err(error) => learnt &= error.kind != DeviceErrorKind::Lost,
        }
    }
    let last = (!rdma).then_some(Placement::PLAIN);
    if learnt { *known.get_or_init(|| last) } else { last }
}

fn require(device: &CudaDevice, call: DriverCall) -> DeviceResult<Bytes> {
    device.granularity.ok_or_else(|| no_virtual_memory(device, call))
}

/// The error of a device that has no virtual memory management.
pub(super) fn no_virtual_memory(device: &CudaDevice, call: DriverCall) -> DeviceError {
    let detail = "this device has no virtual memory management";
    device.error(call, DeviceErrorKind::Unsupported, detail)
}

pub(super) fn reserve(device: &CudaDevice, bytes: Bytes) -> DeviceResult<Address> {
    let alignment = require(device, DriverCall::Reserve)? as usize;
    let mut address = 0;
    device.call(DriverCall::Reserve, |driver| {
        // SAFETY: writes one address.
        unsafe { (driver.mem_reserve)(&raw mut address, bytes as usize, alignment, 0, 0) }
    })?;
    Ok(address)
}

pub(super) fn free_address(
    device: &CudaDevice,
    address: Address,
    bytes: Bytes,
) -> DeviceResult<()> {
    require(device, DriverCall::FreeAddress)?;
    device.peers.refuse_in_use(device, address, bytes)?;
    device.call(DriverCall::FreeAddress, |driver| {
        // SAFETY: the driver checks that this is a reservation.
        unsafe { (driver.mem_address_free)(address, bytes as usize) }
    })
}

pub(super) fn create(device: &CudaDevice, bytes: Bytes, rdma: bool) -> DeviceResult<HandleId> {
    require(device, DriverCall::Create)?;
    let Some(placement) = placement(device, rdma) else {
        let detail =
            "network cards do not reach this device's mapped memory (see `plugalloc doctor`)";
        return Err(device.error(DriverCall::Create, DeviceErrorKind::Unsupported, detail));
    };
    let mut made = HandleId(0);
    device.call(DriverCall::Create, |driver| {
        match make(driver, device.ordinal, bytes, placement) {
            Ok(handle) => {
                made = handle;
                Code(0)
            }
            Err(code) => code,
        }
    })?;
    device.live.handles().add(made.0);
    Ok(made)
}

pub(super) fn release(device: &CudaDevice, handle: HandleId) -> DeviceResult<()> {
    let mut handles = live::handles_with(device, DriverCall::Release, handle)?;
    device.call(DriverCall::Release, |driver| {
        // SAFETY: the handle is alive while the lock is held; the driver keeps the memory while it
        // is mapped.
        unsafe { (driver.mem_release)(handle.0) }
    })?;
    handles.remove(handle.0);
    Ok(())
}

pub(super) fn map(
    device: &CudaDevice,
    address: Address,
    bytes: Bytes,
    handle: HandleId,
) -> DeviceResult<()> {
    let _alive = live::handles_with(device, DriverCall::Map, handle)?;
    let mut bank = device.peers.bank(device.ordinal);
    device.call(DriverCall::Map, |driver| {
        // SAFETY: the handle is alive while the lock is held; the driver checks that the addresses
        // are reserved and unused.
        unsafe { (driver.mem_map)(address, bytes as usize, 0, handle.0, 0) }
    })?;
    bank.mapped(address, bytes);
    Ok(())
}

pub(super) fn set_access(device: &CudaDevice, address: Address, bytes: Bytes) -> DeviceResult<()> {
    // Held for the call, so that a peer that is enabled meanwhile sees these mappings or is seen
    // here.
    let mut bank = device.peers.bank(device.ordinal);
    let users = bank.users(device.ordinal);
    peers::grant(device, DriverCall::SetAccess, (address, bytes), &users)?;
    bank.opened(address, bytes);
    Ok(())
}

pub(super) fn unmap(device: &CudaDevice, address: Address, bytes: Bytes) -> DeviceResult<()> {
    let mut bank = device.peers.bank(device.ordinal);
    device.call(DriverCall::Unmap, |driver| {
        // SAFETY: the driver checks that these are whole mappings; that no queued work uses them
        // any more is the caller's contract.
        unsafe { (driver.mem_unmap)(address, bytes as usize) }
    })?;
    bank.unmapped(address, bytes);
    Ok(())
}
