//! Why a pool cannot be brought back to a checkpoint.

use crate::units::{Address, Bytes, DeviceId, PoolId};

/// What is wrong with a checkpoint, or stands in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointFault {
    /// It was taken of a pool of another allocator.
    OtherAllocator,
    /// It was taken on another device than the one that was named.
    OtherDevice,
    /// Its pool has no uses any more. A pool that was made later under the same id is another one.
    PoolEnded,
    /// Where one of its allocations was, there is no memory of the pool any more.
    MemoryGone,
    /// Where one of its allocations was, there is one that other streams were recorded for: live,
    /// or freed and waiting for them.
    InUseByStreams,
    /// An allocation that would end is pinned.
    Pinned,
    /// An allocation that would end is shared with other processes.
    Exported,
}

/// A pool that cannot be brought back to a checkpoint. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointError {
    /// The device that the checkpoint was taken on.
    pub device: DeviceId,
    /// Its pool.
    pub pool: PoolId,
    /// What is wrong.
    pub fault: CheckpointFault,
    /// The allocation in question: one of the checkpoint for
    /// [`MemoryGone`](CheckpointFault::MemoryGone), else the one that is in the way. 0 where the
    /// fault is not about one.
    pub address: Address,
    /// How long that is, as it was served.
    pub bytes: Bytes,
}

impl std::fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CheckpointError { device, pool: PoolId(first, second), address, bytes, .. } = self;
        write!(f, "cannot go back to a checkpoint of pool ({first}, {second}) of {device}: ")?;
        match self.fault {
            CheckpointFault::OtherAllocator => f.write_str("it belongs to another allocator"),
            CheckpointFault::OtherDevice => f.write_str("another device was named"),
            CheckpointFault::PoolEnded => {
                f.write_str("that pool was released, and has no uses any more")
            }
            CheckpointFault::MemoryGone => write!(
                f,
                "the {bytes} bytes at {address:#x} that were allocated then are no longer memory \
                 of the pool"
            ),
            CheckpointFault::InUseByStreams => write!(
                f,
                "in the way is the block of {bytes} bytes at {address:#x}, which other streams \
                 were recorded for; free it, and wait for them, first"
            ),
            CheckpointFault::Pinned => write!(
                f,
                "the allocation of {bytes} bytes at {address:#x} would end, and is pinned"
            ),
            CheckpointFault::Exported => write!(
                f,
                "the allocation of {bytes} bytes at {address:#x} would end, and is shared with \
                 other processes"
            ),
        }
    }
}

impl std::error::Error for CheckpointError {}
