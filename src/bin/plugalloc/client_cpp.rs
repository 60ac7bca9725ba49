//! The C++ class as a client of the replay: each call crosses its virtual function.

use std::sync::Arc;

use plugalloc::cpp::CachingAllocator;
use plugalloc::{Address, Allocator, Bytes, Error, Result, StreamId};

use crate::client::Client;

/// The C++ object over an allocator.
pub(crate) struct CppClient(CachingAllocator);

impl CppClient {
    /// Wraps an allocator, which stays usable from Rust.
    pub(crate) fn new(allocator: Arc<Allocator>) -> Result<CppClient> {
        Ok(CppClient(CachingAllocator::new(allocator)?))
    }
}

impl Client for CppClient {
    #[inline]
    fn allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        // Only a machine of 32 bits could not pass the size on.
        let Ok(bytes) = usize::try_from(bytes) else {
            return Err(Error::SizeTooLarge { bytes, max: usize::MAX as Bytes });
        };
        self.0.raw_alloc_with_stream(bytes, stream.0)
    }

    #[inline]
    fn free(&self, address: Address) -> Result<()> {
        self.0.raw_delete(address)
    }
}
