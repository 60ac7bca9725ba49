//! What this machine's driver and devices offer, and what of it is used: for people who wonder why.

use cudarc::driver::sys::CUmemAllocationGranularity_flags as Granularity;

use super::attributes::Attribute;
use super::vmm::{self, Placement};
use super::{CudaDevice, CudaMachine, ipc};
use crate::device::{Device, DeviceResult, HandleType, HandleTypes};
use crate::units::{Bytes, DeviceId};

/// The CUDA driver and its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The latest version of CUDA that the driver serves: major and minor number.
    pub driver_version: (u32, u32),
    /// The devices, by number.
    pub devices: Vec<DeviceReport>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Its number.
    pub device: DeviceId,
    /// Its name.
    pub name: String,
    /// Where it sits on the PCI bus, as `domain:bus:device.0` in hexadecimal digits.
    pub pci: String,
    /// Its compute capability: major and minor number.
    pub compute_capability: (u32, u32),
    /// Its whole memory, as its driver states it.
    pub total: Bytes,
    /// What of it is in use by nobody; or why that could not be found out.
    pub free: Result<Bytes, String>,
    /// Whether it shares its addresses with the host and other devices.
    pub unified_addressing: bool,
    /// Whether it has virtual memory management.
    pub virtual_memory: bool,
    /// The grain of physical memory that the driver demands.
    pub granularity_minimum: Option<Bytes>,
    /// The grain of physical memory that the driver recommends.
    pub granularity_recommended: Option<Bytes>,
    /// Handles by file descriptor.
    pub file_descriptors: Ability,
    /// Fabric handles.
    pub fabric: Ability,
    /// Memory that network cards reach, where it was asked for (`gpu_direct_rdma`).
    pub rdma: Ability,
    /// Whether plain memory can be shared by the legacy handles of CUDA IPC.
    pub legacy_ipc: bool,
    /// The devices whose memory it can reach.
    pub peers: Vec<DeviceId>,
    /// What plugalloc uses.
    pub used: Used,
}

/// Something that a device may be able to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ability {
    /// It was tried, and works.
    Works,
    /// The device does not claim it.
    Missing,
    /// The device claims it, and it failed when it was tried.
    Refused(String),
}

impl Ability {
    /// Whether it works.
    pub fn works(&self) -> bool {
        *self == Ability::Works
    }
}

/// How plugalloc takes memory from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Used {
    /// The grain of physical memory that is mapped where it is needed; `None`: whole segments of
    /// `cuMemAlloc`.
    pub virtual_memory: Option<Bytes>,
    /// What physical memory can be exported as.
    pub handles: HandleTypes,
    /// Whether it works in the device's primary context, as the CUDA runtime does, rather than in
    /// one of the program.
    pub primary_context: bool,
}

/// Looks at this machine. Takes a little memory of each device, for its context, as any use of it
/// does.
///
/// # Errors
///
/// As [`CudaMachine::open`]. What is wrong with a single device stands in its report.
pub fn report() -> DeviceResult<Report> {
    let machine = CudaMachine::open()?;
    let driver_version = machine.driver_version()?;
    let devices = machine.devices().iter().map(|device| look_at(&machine, device)).collect();
    Ok(Report { driver_version, devices })
}

fn look_at(machine: &CudaMachine, device: &CudaDevice) -> DeviceReport {
    let (driver, ordinal) = (machine.driver(), device.ordinal);
    let number = |attribute| driver.attribute(ordinal, attribute).unsigned_abs();
    let has = |attribute| driver.has(ordinal, attribute);
    let unified_addressing = has(Attribute::UNIFIED_ADDRESSING);
    let grain = |which| vmm::driver_granularity(driver, ordinal, which);
    let (domain, bus) = (number(Attribute::PCI_DOMAIN), number(Attribute::PCI_BUS));
    let rdma = Placement { rdma: true, ..Placement::PLAIN };
    let rdma_claimed = vmm::claims_rdma(driver, ordinal);
    // Ordinary memory first, so that `free` is what there is once the context exists.
    let used = used_by(device);
    DeviceReport {
        device: device.id(),
        name: device.name(),
        pci: format!("{domain:04x}:{bus:02x}:{:02x}.0", number(Attribute::PCI_DEVICE)),
        compute_capability: (
            number(Attribute::CAPABILITY_MAJOR),
            number(Attribute::CAPABILITY_MINOR),
        ),
        total: driver.total(ordinal).unwrap_or(0),
        free: device.memory_info().map(|info| info.free).map_err(|error| error.to_string()),
        unified_addressing,
        virtual_memory: has(Attribute::VIRTUAL_MEMORY),
        granularity_minimum: grain(Granularity::CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        granularity_recommended: grain(Granularity::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
        file_descriptors: try_sharing(
            device,
            has(Attribute::POSIX_HANDLES),
            HandleType::FileDescriptor,
        ),
        fabric: try_sharing(device, has(Attribute::FABRIC_HANDLES), HandleType::Fabric),
        rdma: try_ability(device, rdma_claimed, rdma),
        legacy_ipc: ipc::has_legacy_ipc(driver, ordinal),
        peers: reachable(machine, device),
        used,
    }
}

fn used_by(device: &CudaDevice) -> Used {
    let virtual_memory = device.granularity;
    let placement = virtual_memory.and_then(|_| vmm::placement(device, false));
    let handles = placement.map_or(HandleTypes::NONE, |placement| placement.handles);
    Used { virtual_memory, handles, primary_context: device.is_primary }
}

fn try_ability(device: &CudaDevice, claimed: bool, placement: Placement) -> Ability {
    if !claimed || device.granularity.is_none() {
        return Ability::Missing;
    }
    match vmm::try_placement(device, placement) {
        Ok(()) => Ability::Works,
        Err(error) => Ability::Refused(error.detail),
    }
}

/// Makes memory that can be exported as this type, exports it, and imports it again.
fn try_sharing(device: &CudaDevice, claimed: bool, handle_type: HandleType) -> Ability {
    let handles = HandleTypes {
        file_descriptor: handle_type == HandleType::FileDescriptor,
        fabric: handle_type == HandleType::Fabric,
    };
    let made = try_ability(device, claimed, Placement { handles, rdma: false });
    let Some(granularity) = device.granularity.filter(|_| made.works()) else {
        return made;
    };
    let share = || {
        let handle = device.create(granularity)?;
        let shared = device.export_handle(handle, handle_type);
        let imported = shared.and_then(|shared| device.import_handle(&shared));
        let imported = imported.and_then(|imported| device.release(imported));
        device.release(handle).and(imported)
    };
    match share() {
        Ok(()) => Ability::Works,
        Err(error) => Ability::Refused(error.detail),
    }
}

fn reachable(machine: &CudaMachine, device: &CudaDevice) -> Vec<DeviceId> {
    let others = machine.devices().iter().map(|other| other.id());
    others.filter(|&peer| device.can_access_peer(peer).unwrap_or(false)).collect()
}
