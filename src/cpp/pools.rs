//! Private pools, through the virtual methods.

use cxx::SharedPtr;

use super::{CudaAllocator, check};
use crate::error::Result;
use crate::ffi::bridge::ffi;
use crate::ffi::pools::RustFilter;
use crate::units::{PoolId, StreamId};

impl CudaAllocator {
    /// `beginAllocateToPool`.
    pub fn begin_allocate_to_pool(
        &self,
        device: i32,
        pool: PoolId,
        filter: impl Fn(StreamId) -> bool + Send + Sync + 'static,
    ) -> Result<()> {
        let filter = Box::new(RustFilter(Box::new(filter)));
        check(ffi::begin_pool(self.object(), device, pool.into(), filter))
    }

    /// `endAllocateToPool`.
    pub fn end_allocate_to_pool(&self, device: i32, pool: PoolId) -> Result<()> {
        check(ffi::end_pool(self.object(), device, pool.into()))
    }

    /// `releasePool`.
    pub fn release_pool(&self, device: i32, pool: PoolId) -> Result<()> {
        check(ffi::release_pool(self.object(), device, pool.into()))
    }

    /// `getPoolUseCount`.
    pub fn pool_use_count(&self, device: i32, pool: PoolId) -> Result<i32> {
        let mut count = 0;
        check(ffi::pool_use_count(self.object(), device, pool.into(), &mut count))?;
        Ok(count)
    }

    /// `createOrIncrefPool`, with an allocator from which a new pool takes its segments.
    pub fn create_or_incref_pool(
        &self,
        device: i32,
        pool: PoolId,
        source: Option<&CudaAllocator>,
    ) -> Result<()> {
        let source = source.map_or_else(SharedPtr::null, |source| source.shared.clone());
        check(ffi::create_pool(self.object(), device, pool.into(), source))
    }

    /// `setUseOnOOM`.
    pub fn set_use_on_oom(&self, device: i32, pool: PoolId, use_on_oom: bool) -> Result<()> {
        check(ffi::set_use_on_oom(self.object(), device, pool.into(), use_on_oom))
    }

    /// `setNoSplit`.
    pub fn set_no_split(&self, device: i32, pool: PoolId) -> Result<()> {
        check(ffi::set_no_split(self.object(), device, pool.into()))
    }

    /// `checkPoolLiveAllocations`.
    pub fn pool_holds_exactly(&self, device: i32, pool: PoolId, expected: &[u64]) -> Result<bool> {
        let mut same = false;
        check(ffi::pool_holds_exactly(self.object(), device, pool.into(), expected, &mut same))?;
        Ok(same)
    }

    /// `emptyCache` of one pool.
    pub fn empty_pool(&self, pool: PoolId) -> Result<()> {
        check(ffi::empty_pool(self.object(), pool.into()))
    }

    /// `markCaptureBegin`.
    pub fn mark_capture_begin(&self, device: i32) -> Result<()> {
        check(ffi::mark_capture(self.object(), device, true))
    }

    /// `markCaptureEnd`.
    pub fn mark_capture_end(&self, device: i32) -> Result<()> {
        check(ffi::mark_capture(self.object(), device, false))
    }
}
