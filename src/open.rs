//! Which devices an allocator stands on, by name.

use std::sync::Arc;

use crate::allocator::{Allocator, MAX_DEVICES};
use crate::config::Config;
use crate::device::sim::{SimMachine, SimOptions};
use crate::device::{Device, cuda};
use crate::error::{DeviceErrorKind, Error, Result};
use crate::units::{Bytes, GIB, MAX_REQUEST};

/// How large a simulated machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimSize {
    /// Bytes of each device; 0: 80 GiB.
    pub capacity: Bytes,
    /// How many devices; 0: one.
    pub devices: i32,
}

impl SimSize {
    /// The same with the defaults filled in: capacity and number of devices.
    fn settled(self) -> Result<(Bytes, usize)> {
        let capacity = if self.capacity == 0 { 80 * GIB } else { self.capacity };
        if capacity > MAX_REQUEST {
            return Err(Error::InvalidArgument {
                argument: "sim_capacity",
                value: capacity.to_string(),
                expected: format!("at most {MAX_REQUEST} bytes (1 EiB), or 0 for 80 GiB"),
            });
        }
        match usize::try_from(self.devices) {
            Ok(0) => Ok((capacity, 1)),
            Ok(devices) if devices <= MAX_DEVICES => Ok((capacity, devices)),
            _ => Err(Error::InvalidArgument {
                argument: "sim_devices",
                value: self.devices.to_string(),
                expected: format!("a number of devices up to {MAX_DEVICES}, or 0 for one"),
            }),
        }
    }
}

/// Opens devices: `"cuda"` those of this machine, `"sim"` simulated ones, `"auto"` the former where
/// there is a driver and a GPU, else the latter.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for another name, [`Error::Device`] with
/// [`NoDevice`](DeviceErrorKind::NoDevice) for `"cuda"` without a driver or GPU.
pub fn open_devices(name: &str, sim: SimSize) -> Result<Vec<Arc<dyn Device>>> {
    match name {
        "cuda" => cuda::open_all(),
        "sim" => open_sim(sim),
        "auto" => match cuda::open_all() {
            Err(Error::Device(error)) if error.kind == DeviceErrorKind::NoDevice => open_sim(sim),
            opened => opened,
        },
        other => Err(Error::InvalidArgument {
            argument: "device",
            value: format!("'{other}'"),
            expected: "\"auto\", \"cuda\" or \"sim\"".to_owned(),
        }),
    }
}

/// An allocator over devices opened by name, with options from a text (see [`Config`]); an empty
/// text means the environment.
///
/// # Errors
///
/// As [`open_devices`], and [`Error::Config`] for a text that cannot be read.
pub fn open_allocator(device: &str, conf: &str, sim: SimSize) -> Result<Allocator> {
    let config = if conf.is_empty() { Config::from_environment() } else { Config::parse(conf) }?;
    Allocator::new(open_devices(device, sim)?, config)
}

fn open_sim(size: SimSize) -> Result<Vec<Arc<dyn Device>>> {
    let (capacity, devices) = size.settled()?;
    let options = SimOptions { devices, capacity, ..SimOptions::default() };
    Ok(SimMachine::new(options)?.as_devices())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{DeviceId, MIB, StreamId};

    #[test]
    fn auto_is_the_simulator_where_there_is_no_gpu() {
        let size = SimSize { capacity: 64 * MIB, devices: 2 };
        match open_devices("cuda", size) {
            Err(Error::Device(error)) => {
                assert_eq!(error.kind, DeviceErrorKind::NoDevice);
                let devices = open_devices("auto", size).unwrap();
                assert_eq!(devices.len(), 2);
                assert_eq!(devices[0].memory_info().unwrap().total, 64 * MIB);
            }
            Err(other) => panic!("{other}"),
            Ok(devices) => assert_eq!(open_devices("auto", size).unwrap().len(), devices.len()),
        }
    }

    #[test]
    fn simulated_machines_have_defaults_and_limits() {
        let devices = open_devices("sim", SimSize::default()).unwrap();
        assert_eq!((devices.len(), devices[0].memory_info().unwrap().total), (1, 80 * GIB));
        for devices in [-1, 256, i32::MAX] {
            let refused = open_devices("sim", SimSize { capacity: 0, devices }).err();
            assert!(matches!(refused, Some(Error::InvalidArgument { .. })), "{refused:?}");
        }
        for capacity in [MAX_REQUEST + 1, 1 << 63, u64::MAX] {
            let refused = open_devices("sim", SimSize { capacity, devices: 1 }).err();
            assert!(
                matches!(refused, Some(Error::InvalidArgument { argument: "sim_capacity", .. })),
                "{refused:?}"
            );
        }
        let most = SimSize { capacity: MAX_REQUEST, devices: 1 };
        let allocator = open_allocator("sim", "steal:True", most).unwrap();
        allocator.allocate(DeviceId(0), 100 * MIB, StreamId(0)).unwrap();
        assert!(open_devices("abacus", SimSize::default()).is_err());
    }
}
