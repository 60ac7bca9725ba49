//! Building an allocator step by step.

use std::sync::Arc;

use crate::allocator::Allocator;
use crate::config::Config;
use crate::device::Device;
use crate::error::Result;
use crate::open::{SimSize, open_devices};
use crate::units::Bytes;

/// What an [`Allocator`] is made of. Everything has a default: the GPUs of the machine, or one
/// simulated device of 80 GiB where there is none, and the options of the environment
/// (`PLUGALLOC_CONF`).
///
/// ```
/// use plugalloc::{Allocator, DeviceId, StreamId};
///
/// let allocator = Allocator::builder()
///     .device("sim")
///     .sim_capacity(1 << 30)
///     .conf("garbage_collection_threshold:0.8")
///     .build()?;
/// let error = allocator.allocate(DeviceId(0), 2 << 30, StreamId::DEFAULT).unwrap_err();
/// assert!(error.is_out_of_memory());
/// # Ok::<(), plugalloc::Error>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "call build()"]
pub struct AllocatorBuilder {
    name: Option<String>,
    devices: Option<Vec<Arc<dyn Device>>>,
    config: Option<Config>,
    conf: Option<String>,
    sim: SimSize,
}

impl std::fmt::Debug for AllocatorBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllocatorBuilder")
            .field("device", &self.name)
            .field("config", &self.config)
            .field("conf", &self.conf)
            .field("sim", &self.sim)
            .finish_non_exhaustive()
    }
}

impl Allocator {
    /// Starts to build an allocator.
    pub fn builder() -> AllocatorBuilder {
        AllocatorBuilder::default()
    }
}

impl AllocatorBuilder {
    /// Which devices: `"cuda"`, `"sim"`, or `"auto"`, the default: CUDA where there is a driver and
    /// a GPU, else the simulator.
    pub fn device(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// These devices, instead of opening any.
    pub fn devices(mut self, devices: Vec<Arc<dyn Device>>) -> Self {
        self.devices = Some(devices);
        self
    }

    /// These options, instead of the environment's.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Options in their text form, on top of the others; checked by
    /// [`build`](AllocatorBuilder::build).
    pub fn conf(mut self, text: &str) -> Self {
        self.conf = Some(text.to_owned());
        self
    }

    /// Bytes of each simulated device.
    pub fn sim_capacity(mut self, bytes: Bytes) -> Self {
        self.sim.capacity = bytes;
        self
    }

    /// How many simulated devices.
    pub fn sim_devices(mut self, count: i32) -> Self {
        self.sim.devices = count;
        self
    }

    /// Builds the allocator.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) with the position in the text;
    /// [`Error::Device`](crate::Error::Device) where no device can be opened;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an unknown device name.
    pub fn build(self) -> Result<Arc<Allocator>> {
        let mut config = match self.config {
            Some(config) => config,
            None => Config::from_environment()?,
        };
        if let Some(text) = &self.conf {
            config.apply(text)?;
        }
        let devices = match self.devices {
            Some(devices) => devices,
            None => open_devices(self.name.as_deref().unwrap_or("auto"), self.sim)?,
        };
        Ok(Arc::new(Allocator::new(devices, config)?))
    }
}
