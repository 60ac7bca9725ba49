//! What a device has made and not yet given back. The driver need not check what stands for these:
//! it reads through a handle of physical memory that was released, and crashes. So nothing reaches
//! it that is not known here.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use super::CudaDevice;
use crate::device::{DeviceResult, HandleId};
use crate::error::DriverCall;
use crate::units::Address;

/// Things by the number that stands for them, and how often each was given out.
#[derive(Debug, Default)]
pub(super) struct Counted(HashMap<u64, u32>);

impl Counted {
    pub(super) fn add(&mut self, number: u64) {
        *self.0.entry(number).or_insert(0) += 1;
    }

    /// Takes one [`add`](Counted::add) back.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(count) = self.0.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&number);
            }
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.0.contains_key(&number)
    }
}

/// What is alive of a device. Each lock is held over the call of the driver that uses what it
/// knows, so that no other thread ends that meanwhile.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Physical handles.
    handles: Mutex<Counted>,
    /// Addresses of memory that other processes have sent legacy handles of.
    opened: Mutex<Counted>,
}

impl Live {
    pub(super) fn handles(&self) -> MutexGuard<'_, Counted> {
        self.handles.lock()
    }

    pub(super) fn opened(&self) -> MutexGuard<'_, Counted> {
        self.opened.lock()
    }
}

/// The live handles, or `Misuse` where this one is not among them.
pub(super) fn handles_with(
    device: &CudaDevice,
    call: DriverCall,
    handle: HandleId,
) -> DeviceResult<MutexGuard<'_, Counted>> {
    let handles = device.live.handles();
    if handles.contains(handle.0) {
        return Ok(handles);
    }
    // A lost device has no handle any more, and tells that first.
    device.context(call)?;
    let number = handle.0;
    let detail = format!("handle {number:#x} is none of this device, or was released before");
    Err(device.misuse(call, detail))
}

/// The addresses that are open, or `Misuse` where this one is not among them.
pub(super) fn opened_with(
    device: &CudaDevice,
    call: DriverCall,
    address: Address,
) -> DeviceResult<MutexGuard<'_, Counted>> {
    let opened = device.live.opened();
    if opened.contains(address) {
        return Ok(opened);
    }
    device.context(call)?;
    let detail =
        format!("no legacy handle was opened at {address:#x}, or it was closed as often before");
    Err(device.misuse(call, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_twice_is_given_back_twice() {
        let mut counted = Counted::default();
        counted.add(7);
        counted.add(7);
        counted.remove(7);
        assert!(counted.contains(7));
        counted.remove(7);
        counted.remove(7);
        assert!(!counted.contains(7) && !counted.contains(0));
    }
}
