//! A caching allocator for CUDA device memory, which C++ frameworks swap in as a subclass and Rust
//! programs use directly. On a machine without a GPU a simulated device stands in, with memory,
//! streams, events and a driver that fails on request, so that everything here can be tried, tested
//! and measured there.
//!
//! ```
//! use plugalloc::{Allocator, DeviceId, Stream};
//!
//! let allocator = Allocator::builder().device("sim").build()?;
//! let stream = Stream::new(&allocator, DeviceId(0))?;
//! let weights = allocator.alloc(DeviceId(0), 64 << 20, stream.id())?;
//! stream.fill(weights.address(), 0, weights.bytes())?;
//! drop(weights); // in the order of the stream: nothing waits
//! let statistics = allocator.statistics(DeviceId(0))?;
//! assert_eq!(statistics.allocated_bytes.all.peak, 64 << 20);
//! # Ok::<(), plugalloc::Error>(())
//! ```
//!
//! Start with [`Allocator`] and [`Allocator::builder`]. Options are in [`Config`], errors in
//! [`Error`], devices in [`device`]. `docs/ARCHITECTURE.md` walks through the rooms, which are
//! listed here in the order in which they build on each other.

pub mod units;
mod sync;
pub mod error;
mod stat;
pub mod config;
pub mod device;
mod lock;
mod page_map;
pub mod nvtx;
mod heap;
mod pages;
mod streams;
pub mod observe;
mod engine;
pub mod allocator;
pub mod open;
pub mod builder;
pub mod allocation;
pub mod interop;
pub mod pluggable;
mod ffi;
pub mod cpp;

pub use allocation::{Allocation, Stream};
pub use allocator::{
    Allocator, BlockInfo, Checkpoint, CheckpointDelta, ImportedMemory, ObserverId, Pin,
    SharedMemory,
};
pub use builder::AllocatorBuilder;
pub use config::Config;
pub use engine::{MappingChange, MappingEvent, OutOfMemoryEvent, SegmentSource};
pub use error::{Error, Result};
pub use observe::DeviceStatistics;
pub use pluggable::PluggableAllocator;
pub use units::{Address, Bytes, DeviceId, PoolId, StreamId};
