//! What is still in use where nothing should be.

use crate::units::{Bytes, DeviceId, format_bytes};

/// What of a device is in use, for a program that expected nothing to be
/// ([`Allocator::is_quiescent`](crate::Allocator::is_quiescent)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InUse {
    /// The device.
    pub device: DeviceId,
    /// How many allocations are live.
    pub allocations: u64,
    /// How many bytes they take, as served.
    pub allocated: Bytes,
    /// How many of them other streams were recorded for.
    pub recorded: usize,
    /// How many freed blocks wait for other streams.
    pub waiting: usize,
    /// How many pins there are; what is shared with other processes is pinned.
    pub pins: usize,
}

impl InUse {
    pub(crate) fn is_anything(&self) -> bool {
        self.allocations > 0 || self.recorded + self.waiting + self.pins > 0
    }
}

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.allocations > 0 {
            let bytes = format_bytes(self.allocated);
            parts.push(format!("{} allocation(s) of {bytes} live", self.allocations));
        }
        if self.recorded > 0 {
            parts.push(format!("{} live block(s) recorded for other streams", self.recorded));
        }
        if self.waiting > 0 {
            parts.push(format!("{} freed block(s) waiting for other streams", self.waiting));
        }
        if self.pins > 0 {
            parts.push(format!("{} pinned", self.pins));
        }
        write!(f, "device {} is in use: {}", self.device.0, parts.join(", "))
    }
}

impl std::error::Error for InUse {}
