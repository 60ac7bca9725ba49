//! Checkpoints of private pools, through the virtual methods.

use cxx::{SharedPtr, UniquePtr};

use super::{CudaAllocator, DataPtr, check};
use crate::error::Result;
use crate::ffi::bridge::ffi;
use crate::units::PoolId;

/// The C++ `AllocatorState`; null by default.
#[derive(Clone, Default)]
pub struct AllocatorState {
    shared: Option<SharedPtr<ffi::AllocatorState>>,
}

impl std::fmt::Debug for AllocatorState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllocatorState").field("is_some", &self.shared.is_some()).finish()
    }
}

/// The C++ `CheckpointDelta`.
#[derive(Debug)]
pub struct CheckpointDelta {
    /// `ptrs_freed`.
    pub ptrs_freed: Vec<u64>,
    /// `dataptrs_allocd`.
    pub dataptrs_allocd: Vec<DataPtr>,
}

impl CudaAllocator {
    /// `getCheckpointState`.
    pub fn checkpoint_state(&self, device: i32, pool: PoolId) -> Result<AllocatorState> {
        let mut shared = SharedPtr::null();
        check(ffi::get_checkpoint(self.object(), device, pool.into(), &mut shared))?;
        Ok(AllocatorState { shared: Some(shared) })
    }

    /// `setCheckpointPoolState`.
    pub fn set_checkpoint_pool_state(
        &self,
        device: i32,
        state: &AllocatorState,
    ) -> Result<CheckpointDelta> {
        let state = state.shared.clone().unwrap_or_else(SharedPtr::null);
        let mut delta = UniquePtr::null();
        check(ffi::set_checkpoint(self.object(), device, state, &mut delta))?;
        let ptrs_freed = delta.as_ref().map_or_else(Vec::new, ffi::delta_freed);
        let mut dataptrs_allocd = Vec::new();
        while let Some(delta) = delta.as_mut() {
            let data = ffi::delta_take(delta);
            if data.is_null() {
                break;
            }
            dataptrs_allocd.push(DataPtr { data });
        }
        Ok(CheckpointDelta { ptrs_freed, dataptrs_allocd })
    }
}
