//! Private pools over the bridge.

use std::collections::HashSet;
use std::sync::Arc;

use cxx::{SharedPtr, UniquePtr};

use super::bridge::ffi;
use super::caching::CachingCore;
use super::error::{guarded, guarded_callback};
use super::records::ffi::ErrorKind;
use crate::engine::SegmentSource;
use crate::error::Result;
use crate::units::{Address, Bytes, DeviceId, PoolId, StreamId};

impl From<ffi::PoolKey> for PoolId {
    fn from(key: ffi::PoolKey) -> PoolId {
        PoolId(key.first, key.second)
    }
}

impl From<PoolId> for ffi::PoolKey {
    fn from(pool: PoolId) -> ffi::PoolKey {
        ffi::PoolKey { first: pool.0, second: pool.1 }
    }
}

/// A filter of a Rust test, as C++ calls it.
pub(crate) struct RustFilter(pub(crate) Box<dyn Fn(StreamId) -> bool + Send + Sync>);

impl RustFilter {
    pub(crate) fn matches(&self, stream: u64, out: &mut bool) -> u32 {
        guarded_callback("pool filter", out, || Ok((self.0)(StreamId(stream))))
    }
}

/// A C++ allocator from which a pool takes its segments.
struct AllocatorSource(SharedPtr<ffi::CUDAAllocator>);

impl SegmentSource for AllocatorSource {
    fn allocate(&self, device: DeviceId, bytes: Bytes, stream: StreamId) -> Result<Address> {
        let result = ffi::segment_alloc(&self.0, device.0, bytes as usize, stream.0);
        told(result.status, "allocator of a pool").map(|()| result.address)
    }

    fn free(&self, device: DeviceId, address: Address, _: Bytes) -> Result<()> {
        told(ffi::segment_free(&self.0, device.0, address), "allocator of a pool")
    }
}

/// The exception of a call of a function of the program with this status.
fn told(status: u32, callback: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let mut record = ffi::take_driven_error();
    if record.kind == ErrorKind::Foreign {
        record.subject = callback.to_owned();
    }
    Err(record.into())
}

impl CachingCore {
    pub(crate) fn empty_pool(&self, pool: ffi::PoolKey) -> u32 {
        guarded(|| self.0.empty_pool(pool.into()))
    }

    pub(crate) fn begin_pool(
        &self,
        device: i32,
        pool: ffi::PoolKey,
        filter: UniquePtr<ffi::StreamFilter>,
    ) -> u32 {
        let matches = move |stream: StreamId| {
            let mut found = false;
            told(ffi::filter_matches(&filter, stream.0, &mut found), "pool filter")?;
            Ok(found)
        };
        guarded(|| self.0.begin_pool(DeviceId(device), pool.into(), Box::new(matches)))
    }

    pub(crate) fn end_pool(&self, device: i32, pool: ffi::PoolKey) -> u32 {
        guarded(|| self.0.end_allocate_to_pool(DeviceId(device), pool.into()))
    }

    pub(crate) fn release_pool(&self, device: i32, pool: ffi::PoolKey) -> u32 {
        guarded(|| self.0.release_pool(DeviceId(device), pool.into()))
    }

    pub(crate) fn pool_use_count(&self, device: i32, pool: ffi::PoolKey, out: &mut i32) -> u32 {
        guarded(|| {
            *out = self.0.pool_use_count(DeviceId(device), pool.into())? as i32;
            Ok(())
        })
    }

    pub(crate) fn create_pool(
        &self,
        device: i32,
        pool: ffi::PoolKey,
        source: SharedPtr<ffi::CUDAAllocator>,
    ) -> u32 {
        guarded(|| {
            let pool = pool.into();
            let source = (!source.is_null()).then(|| {
                self.note_borrower(pool);
                Arc::new(AllocatorSource(source)) as Arc<dyn SegmentSource>
            });
            self.0.create_or_incref_pool(DeviceId(device), pool, source)
        })
    }

    pub(crate) fn set_use_on_oom(&self, device: i32, pool: ffi::PoolKey, on: bool) -> u32 {
        guarded(|| self.0.set_use_on_oom(DeviceId(device), pool.into(), on))
    }

    pub(crate) fn set_no_split(&self, device: i32, pool: ffi::PoolKey) -> u32 {
        guarded(|| self.0.set_no_split(DeviceId(device), pool.into()))
    }

    pub(crate) fn pool_holds_exactly(
        &self,
        device: i32,
        pool: ffi::PoolKey,
        expected: &[u64],
        out: &mut bool,
    ) -> u32 {
        guarded(|| {
            let expected: HashSet<u64> = expected.iter().copied().collect();
            *out = self.0.pool_holds_exactly(DeviceId(device), pool.into(), &expected)?;
            Ok(())
        })
    }

    pub(crate) fn mark_capture(&self, device: i32, begin: bool) -> u32 {
        guarded(|| match begin {
            true => self.0.mark_capture_begin(DeviceId(device)),
            false => self.0.mark_capture_end(DeviceId(device)),
        })
    }
}
