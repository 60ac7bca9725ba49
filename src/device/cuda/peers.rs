//! Which device reaches the memory of which, and what is mapped on each: memory that exists when a
//! peer is enabled has to be opened for it as well.

use std::collections::BTreeMap;

use cudarc::driver::sys::CUresult;
use parking_lot::{Mutex, MutexGuard};

use super::CudaDevice;
use super::vmm::AccessDescription;
use crate::device::DeviceResult;
use crate::error::{DeviceErrorKind, DriverCall};
use crate::units::{Address, Bytes, DeviceId};

/// The memory of all devices of a machine.
#[derive(Debug)]
pub(super) struct Peers {
    banks: Vec<Mutex<Bank>>,
}

/// What is known of one device's memory.
#[derive(Debug, Default)]
pub(super) struct Bank {
    /// The other devices that may reach it.
    guests: Vec<i32>,
    /// What is mapped, by address.
    mappings: BTreeMap<Address, Mapping>,
}

#[derive(Debug)]
struct Mapping {
    bytes: Bytes,
    /// `set_access` was called for it.
    open: bool,
}

impl Bank {
    /// The device itself and its guests.
    pub(super) fn users(&self, ordinal: i32) -> Vec<AccessDescription> {
        let users = [ordinal].into_iter().chain(self.guests.iter().copied());
        users.map(AccessDescription::full).collect()
    }

    pub(super) fn mapped(&mut self, address: Address, bytes: Bytes) {
        self.mappings.insert(address, Mapping { bytes, open: false });
    }

    /// Whether something is mapped at an address.
    pub(super) fn is_mapped(&self, address: Address) -> bool {
        let before = self.mappings.range(..=address).next_back();
        before.is_some_and(|(start, mapping)| address - start < mapping.bytes)
    }

    pub(super) fn opened(&mut self, address: Address, bytes: Bytes) {
        for (_, mapping) in self.mappings.range_mut(address..address.saturating_add(bytes)) {
            mapping.open = true;
        }
    }

    pub(super) fn unmapped(&mut self, address: Address, bytes: Bytes) {
        let end = address.saturating_add(bytes);
        while let Some((&start, _)) = self.mappings.range(address..end).next() {
            self.mappings.remove(&start);
        }
    }
}

impl Peers {
    pub(super) fn new(count: i32) -> Peers {
        Peers { banks: (0..count).map(|_| Mutex::new(Bank::default())).collect() }
    }

    /// What is known of a device's memory. The ordinal is one of the machine's.
    pub(super) fn bank(&self, ordinal: i32) -> MutexGuard<'_, Bank> {
        self.banks[ordinal as usize].lock()
    }

    /// Fails where something is mapped in a range, which the driver would free all the same.
    pub(super) fn refuse_in_use(
        &self,
        device: &CudaDevice,
        address: Address,
        bytes: Bytes,
    ) -> DeviceResult<()> {
        let bank = self.bank(device.ordinal);
        let end = address.saturating_add(bytes);
        match bank.mappings.range(address..end).next() {
            None => Ok(()),
            Some((mapped, _)) => Err(device.misuse(
                DriverCall::FreeAddress,
                format!(
                    "the reservation at {address:#x} is still in use: something is mapped at \
                     {mapped:#x}"
                ),
            )),
        }
    }
}

/// Opens a span of whole mappings for some devices.
pub(super) fn grant(
    device: &CudaDevice,
    call: DriverCall,
    (address, bytes): (Address, Bytes),
    users: &[AccessDescription],
) -> DeviceResult<()> {
    device.call(call, |driver| {
        // SAFETY: reads as many descriptions as are told; the driver checks the span.
        unsafe { (driver.mem_set_access)(address, bytes as usize, users.as_ptr(), users.len()) }
    })
}

/// Whether `device` can reach the memory of `peer`.
pub(super) fn can_access(device: &CudaDevice, peer: DeviceId) -> DeviceResult<bool> {
    let peer = find(device, peer)?;
    if peer == device.ordinal {
        return Ok(false);
    }
    let able = device.driver.reaches(device.ordinal, peer);
    able.map_err(|code| device.refused(DriverCall::EnablePeer, code))
}

/// Lets `device` reach the memory of `peer`.
pub(super) fn enable(device: &CudaDevice, peer: DeviceId) -> DeviceResult<()> {
    let ordinal = find(device, peer)?;
    if ordinal == device.ordinal {
        return Err(device.misuse(DriverCall::EnablePeer, "a device is no peer of itself"));
    }
    let Some(machine) = device.machine.upgrade() else {
        // Only where its context has ended is a machine forgotten.
        return Err(device.error(DriverCall::EnablePeer, DeviceErrorKind::Lost, super::ENDED));
    };
    let peer = &machine.devices()[ordinal as usize];
    // Memory of `malloc` is opened by the contexts, mapped memory by the mappings.
    let context = peer.context(DriverCall::EnablePeer)?;
    device.relaxed_call(DriverCall::EnablePeer, |driver| {
        // SAFETY: the context is the primary one, which is kept, or one that was just found alive.
        let code = unsafe { (driver.enable_peer)(context.raw(), 0) };
        let enabled = code.is(CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        if enabled { super::Code(0) } else { code }
    })?;
    let mut bank = device.peers.bank(ordinal);
    if bank.guests.contains(&device.ordinal) {
        return Ok(());
    }
    let user = [AccessDescription::full(device.ordinal)];
    for (&address, mapping) in bank.mappings.iter().filter(|(_, mapping)| mapping.open) {
        grant(peer, DriverCall::EnablePeer, (address, mapping.bytes), &user)?;
    }
    bank.guests.push(device.ordinal);
    Ok(())
}

/// The number of a device of this machine.
fn find(device: &CudaDevice, peer: DeviceId) -> DeviceResult<i32> {
    match peer.index() {
        Some(index) if index < device.peers.banks.len() => Ok(peer.0),
        _ => Err(device.misuse(DriverCall::EnablePeer, format!("there is no {peer}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_forgotten_by_span() {
        let mut bank = Bank::default();
        for address in [10, 20, 30] {
            bank.mapped(address, 10);
        }
        bank.opened(10, 20);
        assert!(bank.is_mapped(10) && bank.is_mapped(39) && !bank.is_mapped(9));
        assert!(!bank.is_mapped(40));
        let open = |bank: &Bank| bank.mappings.values().filter(|mapping| mapping.open).count();
        assert_eq!(open(&bank), 2);
        bank.unmapped(20, 20);
        assert_eq!(bank.mappings.keys().copied().collect::<Vec<_>>(), [10]);
    }
}
