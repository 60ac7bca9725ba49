//! Finding the devices.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::attributes::Attribute;
use super::driver::{Code, Driver};
use super::graphs::Graphs;
use super::peers::Peers;
use super::{CudaDevice, fork, vmm};
use crate::device::{Device, DeviceResult};
use crate::error::{DeviceError, DeviceErrorKind, DriverCall, Result};

/// The GPUs of this machine.
#[derive(Debug)]
pub struct CudaMachine {
    driver: &'static Driver,
    devices: Vec<Arc<CudaDevice>>,
}

/// The machine, from the first time on that it could be opened: all allocators of a process share
/// its contexts, and which peers are enabled.
static MACHINE: Mutex<Option<Arc<CudaMachine>>> = Mutex::new(None);

impl CudaMachine {
    /// Finds the driver and its devices. Memory of a device is taken only when the device is used.
    ///
    /// # Errors
    ///
    /// [`NoDevice`](DeviceErrorKind::NoDevice) where there is no driver, one that is too old, or no
    /// device; the text says what was looked for.
    /// [`Lost`](DeviceErrorKind::Lost) in a process forked from one that had opened its devices.
    pub fn open() -> DeviceResult<Arc<CudaMachine>> {
        if fork::is_child() {
            return Err(failure(DeviceErrorKind::Lost, fork::REFUSAL));
        }
        let mut machine = MACHINE.lock();
        if let Some(machine) = &*machine {
            return Ok(Arc::clone(machine));
        }
        let opened = Arc::new(CudaMachine::find()?);
        *machine = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn find() -> DeviceResult<CudaMachine> {
        let driver =
            Driver::find().map_err(|missing| failure(DeviceErrorKind::NoDevice, missing))?;
        // The children of a process that has not used CUDA yet may use it.
        fork::watch();
        // SAFETY: zero is the only argument that it takes, and it may be called repeatedly.
        let code = unsafe { (driver.init)(0) };
        code.check().map_err(|code| refused(driver, "cuInit", code))?;
        let count = driver.count().map_err(|code| refused(driver, "cuDeviceGetCount", code))?;
        if count < 1 {
            let detail = "the CUDA driver finds no device (CUDA_VISIBLE_DEVICES may hide them)";
            return Err(failure(DeviceErrorKind::NoDevice, detail));
        }
        let peers = Arc::new(Peers::new(count));
        let open = |ordinal| CudaDevice::open(driver, ordinal, &peers);
        let devices = (0..count).map(open).collect::<std::result::Result<_, _>>();
        let devices = devices.map_err(|code| refused(driver, "cuDeviceGetName", code))?;
        Ok(CudaMachine { driver, devices })
    }

    /// The devices, by number.
    pub fn devices(&self) -> &[Arc<CudaDevice>] {
        &self.devices
    }

    /// The devices as an allocator takes them.
    pub fn as_devices(&self) -> Vec<Arc<dyn Device>> {
        let devices = self.devices.iter();
        devices.map(|device| Arc::clone(device) as Arc<dyn Device>).collect()
    }

    /// The latest version of CUDA that the driver serves: major and minor number.
    ///
    /// # Errors
    ///
    /// The driver does not tell.
    pub fn driver_version(&self) -> DeviceResult<(u32, u32)> {
        let version = self.driver.version();
        let version = version.map_err(|code| refused(self.driver, "cuDriverGetVersion", code))?;
        let version = version.unsigned_abs();
        Ok((version / 1000, version % 1000 / 10))
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }
}

impl CudaDevice {
    fn open(
        driver: &'static Driver,
        ordinal: i32,
        peers: &Arc<Peers>,
    ) -> std::result::Result<Arc<CudaDevice>, Code> {
        let virtual_memory = driver.has(ordinal, Attribute::VIRTUAL_MEMORY);
        let granularity = virtual_memory.then(|| vmm::granularity(driver, ordinal)).flatten();
        Ok(Arc::new(CudaDevice {
            ordinal,
            name: driver.name(ordinal)?,
            driver,
            context: OnceLock::new(),
            granularity,
            placement: OnceLock::new(),
            graphs: Mutex::new(Graphs::default()),
            peers: Arc::clone(peers),
        }))
    }
}

/// All GPUs of this machine, for an [`Allocator`](crate::Allocator).
///
/// # Errors
///
/// [`Error::Device`](crate::Error::Device), as [`CudaMachine::open`].
pub fn open_all() -> Result<Vec<Arc<dyn Device>>> {
    Ok(CudaMachine::open()?.as_devices())
}

/// The error for what the driver answered before there was a device.
fn refused(driver: &Driver, function: &str, code: Code) -> DeviceError {
    failure(code.kind(), format!("{function} answered {}", driver.describe(code)))
}

fn failure(kind: DeviceErrorKind, detail: impl Into<String>) -> DeviceError {
    DeviceError { call: DriverCall::Open, device: 0, kind, detail: detail.into() }
}
