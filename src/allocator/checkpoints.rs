//! Checkpoints of private pools.

use crate::allocator::{Allocator, BlockInfo};
use crate::engine::SavedPool;
use crate::error::Result;
use crate::heap::BlockView;
use crate::units::{Address, DeviceId, PoolId, StreamId};

/// What was live in a private pool at one moment, from [`Allocator::checkpoint_pool`]. It holds
/// addresses and sizes alone: neither memory nor its contents, and it keeps nothing alive.
#[derive(Clone, Debug)]
pub struct Checkpoint(SavedPool);

/// What bringing a pool back to a [`Checkpoint`] has changed. Neither list is in a certain order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointDelta {
    /// Where everything started that was live in the pool before. The caller's claims to it have
    /// ended: none of it may be freed by whoever had it.
    pub freed: Vec<Address>,
    /// Everything that is live in the pool now: the checkpoint's allocations. The caller owns them.
    /// What was live before as well is in both lists.
    pub allocated: Vec<BlockInfo>,
}

fn info(device: DeviceId, (block, stream): (BlockView, StreamId)) -> BlockInfo {
    let BlockView { start: address, bytes, requested, .. } = block;
    BlockInfo { address, bytes, requested, device, stream }
}

impl Checkpoint {
    /// The device that it was taken on.
    pub fn device(&self) -> DeviceId {
        self.0.device
    }

    /// The pool that it was taken of.
    pub fn pool(&self) -> PoolId {
        self.0.id
    }

    /// What was live then. Sizes are in bytes.
    pub fn blocks(&self) -> impl Iterator<Item = BlockInfo> + '_ {
        self.0.blocks().map(|block| info(self.0.device, block))
    }
}

/// # Checkpoints
///
/// Programs that capture one graph after another into a pool go back to what was live at the end of
/// an earlier one, and go on from there another way. A checkpoint is what was live in the pool;
/// restoring it frees all that is live there now, and makes exactly the checkpoint's allocations
/// live again, at their addresses, with their sizes and on their streams. Other pools, and the
/// memory that the pool has, stay as they are. A pool in use keeps its memory in any case.
///
/// An allocation that is live before and afterwards at the same address with the same served size
/// keeps its contents, and the streams, pins and exports that it has. Others end, as by
/// [`free`](Allocator::free): those that other streams were recorded for wait for these. Of what is
/// allocated again the contents are whatever is in the memory; the streams of its device that were
/// recorded for it by the time of the checkpoint are recorded again. What the pool has served of
/// requests from outside ([`set_use_on_oom`](Allocator::set_use_on_oom)) is the pool's.
///
/// **Streams.** Nothing is waited for, on any stream, and nothing is ordered: the caller guarantees
/// that no work which is queued, and no graph which is launched later, needs what is freed.
/// **Threads.** Both methods may be called from any thread. They see and change the pool as of one
/// moment. Who else allocates or frees in the pool meanwhile does so before or after that, and has
/// to know what became of his allocations.
///
/// Statistics count every free and every allocation, also those of what is live before and
/// afterwards; peaks do not see both at once. A history records them as events, all frees first.
///
/// ```
/// use plugalloc::{Allocator, DeviceId, PoolId, Stream};
///
/// let (gpu, pool) = (DeviceId(0), PoolId(1, 0));
/// let allocator = Allocator::builder().device("sim").build()?;
/// let stream = Stream::new(&allocator, gpu)?;
/// let id = stream.id();
/// allocator.begin_allocate_to_pool(gpu, pool, move |on| on == id)?;
///
/// let kept = allocator.allocate(gpu, 3 << 20, id)?;
/// let result = allocator.allocate(gpu, 1000, id)?;
/// let checkpoint = allocator.checkpoint_pool(gpu, pool)?;
///
/// allocator.free(result)?;
/// let other = allocator.allocate(gpu, 5 << 20, id)?;
/// let delta = allocator.restore_pool(gpu, &checkpoint)?;
/// assert!(delta.freed.contains(&kept) && delta.freed.contains(&other));
/// assert_eq!(allocator.block(result)?.requested, 1000);
/// assert!(allocator.block(other).is_err());
///
/// allocator.end_allocate_to_pool(gpu, pool)?;
/// for block in delta.allocated {
///     allocator.free(block.address)?;
/// }
/// allocator.release_pool(gpu, pool)?;
/// assert!(allocator.restore_pool(gpu, &checkpoint).is_err(), "the pool has ended");
/// # Ok::<(), plugalloc::Error>(())
/// ```
impl Allocator {
    /// Notes what is live in a private pool that is in use. What was freed and waits for other
    /// streams is not.
    ///
    /// # Errors
    /// [`InvalidDevice`](crate::Error::InvalidDevice);
    /// [`InvalidArgument`](crate::Error::InvalidArgument) where there is no such pool, or it has
    /// been released.
    pub fn checkpoint_pool(&self, device: DeviceId, pool: PoolId) -> Result<Checkpoint> {
        Ok(Checkpoint(self.enter(device)?.save_pool(pool)?))
    }

    /// Brings the checkpoint's pool back to what was live then. Every claim to an allocation of the
    /// pool ends: who has one as an [`Allocation`](crate::Allocation) takes the address out first,
    /// by [`into_raw`](crate::Allocation::into_raw), and may make one anew by
    /// [`adopt`](Allocator::adopt). With an error nothing has changed, and no claim has ended.
    ///
    /// # Errors
    /// [`InvalidDevice`](crate::Error::InvalidDevice);
    /// [`Device`](crate::Error::Device) where an event cannot be asked; and
    /// [`Checkpoint`](crate::Error::Checkpoint), whose
    /// [`fault`](crate::error::CheckpointError::fault) tells
    /// - that it was taken of a pool of another allocator or on another device,
    /// - that its pool was released since, whether there is another of that id or not,
    /// - which of its allocations has lost its memory,
    /// - which block is in the way that other streams were recorded for, freed or not: when they
    ///   have passed, it no longer is once it is free,
    /// - which allocation would end that is pinned, or shared with other processes.
    pub fn restore_pool(
        &self,
        device: DeviceId,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointDelta> {
        let restored = self.enter(device)?.restore_pool(&checkpoint.0)?;
        let allocated = restored.allocated.into_iter().map(|block| info(device, block)).collect();
        Ok(CheckpointDelta { freed: restored.freed, allocated })
    }
}
