//! All memory at one moment, segment by segment and block by block, as PyTorch shows it.

use std::fmt;

use super::events::{Annotation, Context, TraceEntry};
use crate::config::Config;
use crate::units::{Address, Bytes, DeviceId, PoolId, StreamId};

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// In use.
    ActiveAllocated,
    /// Freed by the program, while other streams may still use it.
    ActivePendingFree,
    /// Free.
    Inactive,
}

impl BlockState {
    /// The name that PyTorch's snapshots use.
    pub fn name(self) -> &'static str {
        match self {
            BlockState::ActiveAllocated => "active_allocated",
            BlockState::ActivePendingFree => "active_pending_free",
            BlockState::Inactive => "inactive",
        }
    }
}

/// One block of a segment.
#[derive(Clone)]
#[non_exhaustive]
pub struct SnapshotBlock {
    /// Where it starts.
    pub address: Address,
    /// How long it is, as served.
    pub bytes: Bytes,
    /// How many bytes were asked for; 0 for a free block.
    pub requested: Bytes,
    /// What it is.
    pub state: BlockState,
    /// Where in the program it was allocated, if that was gathered.
    pub context: Option<Context>,
}

impl fmt::Debug for SnapshotBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SnapshotBlock { address, bytes, requested, state, .. } = self;
        write!(f, "{address:#x}+{bytes} ({requested}) {}", state.name())
    }
}

/// A whole segment of the device, or memory that lies together at its addresses. Memory that is
/// kept and serves no stream is one too, with one free block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SnapshotSegment {
    /// The device.
    pub device: DeviceId,
    /// Where it starts.
    pub address: Address,
    /// How long it is.
    pub total: Bytes,
    /// Bytes in use.
    pub allocated: Bytes,
    /// Bytes in use, or freed while streams may still use them.
    pub active: Bytes,
    /// Bytes asked for, of what is active.
    pub requested: Bytes,
    /// The stream that it serves.
    pub stream: StreamId,
    /// Whether it serves requests above 1 MiB.
    pub is_large: bool,
    /// Whether it is virtual memory, which grows and shrinks.
    pub is_expandable: bool,
    /// Its pool.
    pub pool: PoolId,
    /// Numbers the segments of a device by the age of their oldest memory.
    pub registration_counter: u64,
    /// Its blocks by address; together they are the segment.
    pub blocks: Vec<SnapshotBlock>,
}

impl SnapshotSegment {
    /// A segment of these blocks, which follow each other.
    pub(crate) fn new(device: DeviceId, pool: PoolId, blocks: Vec<SnapshotBlock>) -> Self {
        let sum = |of: fn(&SnapshotBlock) -> Bytes| blocks.iter().map(of).sum();
        let is = |block: &SnapshotBlock, state| if block.state == state { block.bytes } else { 0 };
        let allocated = blocks.iter().map(|block| is(block, BlockState::ActiveAllocated)).sum();
        let pending: Bytes =
            blocks.iter().map(|block| is(block, BlockState::ActivePendingFree)).sum();
        SnapshotSegment {
            device,
            address: blocks.first().map_or(0, |block| block.address),
            total: sum(|block| block.bytes),
            allocated,
            active: allocated + pending,
            requested: sum(|block| block.requested),
            stream: StreamId::DEFAULT,
            is_large: false,
            is_expandable: false,
            pool,
            registration_counter: 0,
            blocks,
        }
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// All segments, by device and address.
    pub segments: Vec<SnapshotSegment>,
    /// What was recorded of each device, the oldest first.
    pub device_traces: Vec<Vec<TraceEntry>>,
    /// The marks that the program set, by time.
    pub annotations: Vec<Annotation>,
    /// The options in force.
    pub config: Config,
}
