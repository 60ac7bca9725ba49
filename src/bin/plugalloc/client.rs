//! The faces of the allocator through which a trace can be replayed.

use std::sync::Arc;

use plugalloc::{Address, Allocator, Bytes, DeviceId, Result, StreamId};

/// What a replay calls.
pub(crate) trait Client {
    /// Allocates for use on a stream; zero bytes give address 0.
    fn allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address>;
    /// Frees an allocation.
    fn free(&self, address: Address) -> Result<()>;
}

/// The Rust methods.
pub(crate) struct RustClient(pub(crate) Arc<Allocator>);

impl Client for RustClient {
    #[inline]
    fn allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        self.0.allocate(DeviceId(0), bytes, stream)
    }

    #[inline]
    fn free(&self, address: Address) -> Result<()> {
        self.0.free(address)
    }
}
