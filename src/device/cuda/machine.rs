//! Finding the devices.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::attributes::Attribute;
use super::context::Context;
use super::driver::{Code, Driver};
use super::graphs::Graphs;
use super::live::Live;
use super::peers::Peers;
use super::{CudaDevice, fork, vmm};
use crate::device::{Device, DeviceResult};
use crate::error::{DeviceError, DeviceErrorKind, DriverCall, Result};

/// The GPUs of this machine.
#[derive(Debug)]
pub struct CudaMachine {
    driver: &'static Driver,
    devices: Vec<Arc<CudaDevice>>,
    /// The program's context in which it was opened, and its device.
    own: Option<(i32, Context)>,
}

/// The machines that were opened, one for each context: all allocators of a process share the
/// contexts, and which peers are enabled.
static MACHINES: Mutex<Vec<Arc<CudaMachine>>> = Mutex::new(Vec::new());

impl CudaMachine {
    /// Finds the driver and its devices. Memory of a device is taken only when the device is used.
    ///
    /// A device works in its primary context, which is that of the CUDA runtime. Where the calling
    /// thread has another context current, the device of that context works in it, for as long as
    /// the program keeps it; the streams used must be of that context then.
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
        let driver = start()?;
        let own = Context::of_program(driver);
        let own = own.map_err(|code| refused(driver, "cuCtxGetCurrent", code))?;
        let mut machines = MACHINES.lock();
        // What was opened in a context that has ended stays refused; the next one starts anew.
        machines.retain(|machine| !machine.devices.iter().any(|device| device.is_over()));
        if let Some(machine) = machines.iter().find(|machine| machine.own == own) {
            return Ok(Arc::clone(machine));
        }
        let opened = CudaMachine::find(driver, own)?;
        machines.push(Arc::clone(&opened));
        Ok(opened)
    }

    fn find(
        driver: &'static Driver,
        own: Option<(i32, Context)>,
    ) -> DeviceResult<Arc<CudaMachine>> {
        let count = driver.count().map_err(|code| refused(driver, "cuDeviceGetCount", code))?;
        if count < 1 {
            let detail = "the CUDA driver finds no device (CUDA_VISIBLE_DEVICES may hide them)";
            return Err(failure(DeviceErrorKind::NoDevice, detail));
        }
        let names = (0..count).map(|ordinal| driver.name(ordinal));
        let names: std::result::Result<Vec<_>, _> = names.collect();
        let names = names.map_err(|code| refused(driver, "cuDeviceGetName", code))?;
        let peers = Arc::new(Peers::new(count));
        Ok(Arc::new_cyclic(|machine: &Weak<CudaMachine>| {
            let open = |(ordinal, name)| {
                let context = own.filter(|(device, _)| *device == ordinal);
                let context = context.map(|(_, context)| context);
                CudaDevice::open((driver, ordinal, name), context, (&peers, machine))
            };
            let devices = (0..count).zip(names).map(open).collect();
            CudaMachine { driver, devices, own }
        }))
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

/// Starts the driver, once for the process.
fn start() -> DeviceResult<&'static Driver> {
    let driver = Driver::find().map_err(|missing| failure(DeviceErrorKind::NoDevice, missing))?;
    // The children of a process that has not used CUDA yet may use it.
    fork::watch();
    // SAFETY: zero is the only argument that it takes, and it may be called repeatedly.
    let code = unsafe { (driver.init)(0) };
    code.check().map_err(|code| refused(driver, "cuInit", code))?;
    Ok(driver)
}

impl CudaDevice {
    fn open(
        (driver, ordinal, name): (&'static Driver, i32, String),
        own: Option<Context>,
        (peers, machine): (&Arc<Peers>, &Weak<CudaMachine>),
    ) -> Arc<CudaDevice> {
        let virtual_memory = driver.has(ordinal, Attribute::VIRTUAL_MEMORY);
        let granularity = virtual_memory.then(|| vmm::granularity(driver, ordinal)).flatten();
        Arc::new(CudaDevice {
            ordinal,
            name,
            driver,
            context: own.map_or_else(OnceLock::new, OnceLock::from),
            is_primary: own.is_none(),
            ended: AtomicBool::new(false),
            granularity,
            placements: [OnceLock::new(), OnceLock::new()],
            graphs: Mutex::new(Graphs::default()),
            live: Live::default(),
            peers: Arc::clone(peers),
            machine: Weak::clone(machine),
        })
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
