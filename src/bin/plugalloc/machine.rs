//! The devices that a trace can be replayed on, with what they count.

use std::sync::Arc;

use plugalloc::device::Device;
use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::units::GIB;
use plugalloc::{Bytes, DeviceId, Error, StreamId};

use crate::arguments::DeviceChoice;
use crate::metered::Metered;

/// The memory of the simulated device where nothing else is asked for.
const SIM_CAPACITY: Bytes = 200 * GIB;

/// What a device has counted since it was asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// The memory that is given out, and the most that was.
    pub(crate) used: Bytes,
    pub(crate) used_peak: Bytes,
    /// The calls of the driver.
    pub(crate) calls: u64,
    /// The time in them: on the simulated device by its price list, else by the clock.
    pub(crate) microseconds: f64,
}

/// One device.
pub(crate) enum Machine {
    Sim(Arc<SimDevice>),
    Cuda(Arc<Metered>),
}

impl Machine {
    /// A fresh simulated device, or the GPU that was chosen, with no more memory than `capacity`.
    ///
    /// # Errors
    /// Where there is no such device.
    pub(crate) fn open(choice: DeviceChoice, capacity: Option<Bytes>) -> Result<Self, Error> {
        match choice {
            DeviceChoice::Sim => {
                let capacity = capacity.unwrap_or(SIM_CAPACITY);
                // A replay touches no memory, and is to measure the allocator's time.
                let options =
                    SimOptions { devices: 1, capacity, backed: false, ..SimOptions::default() };
                Ok(Machine::Sim(SimMachine::new(options)?.device(0)))
            }
            DeviceChoice::Cuda(index) => {
                let device = open_cuda(index)?;
                let capacity = capacity.unwrap_or(Bytes::MAX);
                Ok(Machine::Cuda(Arc::new(Metered::new(device, capacity))))
            }
        }
    }

    /// The devices for an allocator: one.
    pub(crate) fn devices(&self) -> Vec<Arc<dyn Device>> {
        vec![match self {
            Machine::Sim(device) => Arc::clone(device) as Arc<dyn Device>,
            Machine::Cuda(device) => Arc::clone(device) as Arc<dyn Device>,
        }]
    }

    /// The memory that the device has, or that it was limited to.
    ///
    /// # Errors
    /// Where the device is lost.
    pub(crate) fn total(&self) -> Result<Bytes, Error> {
        Ok(self.devices().swap_remove(0).memory_info()?.total)
    }

    /// Streams for those that a trace numbers so; number 0 is the default stream.
    ///
    /// # Errors
    /// Where the device makes no more streams.
    pub(crate) fn streams(&self, numbers: &[u64]) -> Result<Vec<StreamId>, Error> {
        let device = self.devices().swap_remove(0);
        let stream = |number: &u64| match number {
            0 => Ok(StreamId::DEFAULT),
            _ => device.stream_create().map_err(Error::from),
        };
        numbers.iter().map(stream).collect()
    }

    /// Gives streams of [`streams`](Machine::streams) back.
    ///
    /// # Errors
    /// Where the device is lost.
    pub(crate) fn destroy_streams(&self, streams: &[StreamId]) -> Result<(), Error> {
        let device = self.devices().swap_remove(0);
        let made = streams.iter().filter(|stream| **stream != StreamId::DEFAULT);
        for stream in made {
            device.stream_destroy(*stream)?;
        }
        Ok(())
    }

    /// What was counted.
    pub(crate) fn usage(&self) -> Usage {
        match self {
            Machine::Sim(device) => {
                let ledger = device.ledger();
                Usage {
                    used: ledger.used,
                    used_peak: ledger.used_peak,
                    calls: ledger.total_calls,
                    microseconds: ledger.microseconds,
                }
            }
            Machine::Cuda(device) => device.usage(),
        }
    }

    /// Counts from here on.
    pub(crate) fn reset_usage(&self) {
        match self {
            Machine::Sim(device) => device.reset_ledger(),
            Machine::Cuda(device) => device.reset(),
        }
    }
}

fn open_cuda(index: i32) -> Result<Arc<dyn Device>, Error> {
    let mut devices = plugalloc::device::cuda::open_all()?;
    let count = devices.len();
    match usize::try_from(index) {
        Ok(place) if place < count => Ok(devices.swap_remove(place)),
        _ => Err(Error::InvalidDevice { device: DeviceId(index), count }),
    }
}
