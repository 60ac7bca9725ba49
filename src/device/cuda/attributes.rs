//! What the driver tells about a device without using it.

use std::ffi::{c_char, c_int};

use super::driver::{Code, Driver};
use crate::units::Bytes;

/// A question about a device: its number in `CUdevice_attribute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attribute(u32);

impl Attribute {
    pub(super) const PCI_BUS: Attribute = Attribute(33);
    pub(super) const PCI_DEVICE: Attribute = Attribute(34);
    pub(super) const UNIFIED_ADDRESSING: Attribute = Attribute(41);
    pub(super) const PCI_DOMAIN: Attribute = Attribute(50);
    pub(super) const CAPABILITY_MAJOR: Attribute = Attribute(75);
    pub(super) const CAPABILITY_MINOR: Attribute = Attribute(76);
    pub(super) const VIRTUAL_MEMORY: Attribute = Attribute(102);
    pub(super) const POSIX_HANDLES: Attribute = Attribute(103);
    pub(super) const RDMA_WITH_VIRTUAL_MEMORY: Attribute = Attribute(110);
    pub(super) const RDMA: Attribute = Attribute(116);
    pub(super) const IPC: Attribute = Attribute(125);
    pub(super) const FABRIC_HANDLES: Attribute = Attribute(128);
}

impl Driver {
    /// An attribute of a device; 0 where the driver does not know the question.
    pub(super) fn attribute(&self, ordinal: i32, attribute: Attribute) -> i32 {
        let mut value = 0;
        // SAFETY: writes one integer; the driver checks the attribute and the ordinal.
        let code = unsafe { (self.device_attribute)(&raw mut value, attribute.0, ordinal) };
        if code.check().is_ok() { value } else { 0 }
    }

    /// Whether a device has an ability.
    pub(super) fn has(&self, ordinal: i32, attribute: Attribute) -> bool {
        self.attribute(ordinal, attribute) != 0
    }

    /// The name of a device.
    pub(super) fn name(&self, ordinal: i32) -> Result<String, Code> {
        let mut name = [0u8; 256];
        let (start, length) = (name.as_mut_ptr().cast::<c_char>(), name.len() as c_int);
        // SAFETY: writes a text of at most `length` bytes, its zero included.
        unsafe { (self.device_name)(start, length, ordinal) }.check()?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// The whole memory of a device.
    pub(super) fn total(&self, ordinal: i32) -> Result<Bytes, Code> {
        let mut bytes = 0;
        // SAFETY: writes one integer.
        unsafe { (self.device_total)(&raw mut bytes, ordinal) }.check()?;
        Ok(bytes as Bytes)
    }

    /// How many devices there are.
    pub(super) fn count(&self) -> Result<i32, Code> {
        let mut count = 0;
        // SAFETY: writes one integer.
        unsafe { (self.device_count)(&raw mut count) }.check()?;
        Ok(count)
    }

    /// The latest CUDA that the driver serves, as 1000 times the major and 10 times the minor
    /// number.
    pub(super) fn version(&self) -> Result<i32, Code> {
        let mut version = 0;
        // SAFETY: writes one integer.
        unsafe { (self.driver_version)(&raw mut version) }.check()?;
        Ok(version)
    }

    /// Whether one device can reach the memory of another.
    pub(super) fn reaches(&self, ordinal: i32, peer: i32) -> Result<bool, Code> {
        let mut able = 0;
        // SAFETY: writes one integer; the driver checks the ordinals.
        unsafe { (self.can_access_peer)(&raw mut able, ordinal, peer) }.check()?;
        Ok(able != 0)
    }
}
