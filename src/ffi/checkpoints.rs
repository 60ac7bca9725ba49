//! Checkpoints over the bridge.

use super::bridge::ffi::PoolKey;
use super::caching::CachingCore;
use super::error::guarded;
use crate::allocator::Checkpoint;
use crate::error::Error;
use crate::units::DeviceId;

/// A checkpoint as a C++ object holds it; none before it was taken.
pub(crate) struct SavedCheckpoint(Option<Checkpoint>);

pub(crate) fn no_checkpoint() -> Box<SavedCheckpoint> {
    Box::new(SavedCheckpoint(None))
}

impl CachingCore {
    pub(crate) fn checkpoint_pool(
        &self,
        device: i32,
        pool: PoolKey,
        out: &mut SavedCheckpoint,
    ) -> u32 {
        guarded(|| {
            out.0 = Some(self.0.checkpoint_pool(DeviceId(device), pool.into())?);
            Ok(())
        })
    }

    /// Adds the addresses of what was live to `freed`, of what is live now to `allocated`.
    pub(crate) fn restore_pool(
        &self,
        device: i32,
        checkpoint: &SavedCheckpoint,
        freed: &mut Vec<u64>,
        allocated: &mut Vec<u64>,
    ) -> u32 {
        guarded(|| {
            let checkpoint = checkpoint.0.as_ref().ok_or_else(|| Error::Internal {
                check: "a checkpoint is taken before it is used".to_owned(),
                detail: "it is empty".to_owned(),
            })?;
            let mut delta = self.0.restore_pool(DeviceId(device), checkpoint)?;
            freed.append(&mut delta.freed);
            allocated.extend(delta.allocated.iter().map(|block| block.address));
            Ok(())
        })
    }
}
