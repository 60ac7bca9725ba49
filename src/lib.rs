//! A CUDA memory allocator.

pub mod allocator;
pub mod config;
pub mod cpp;
pub mod device;
mod engine;
pub mod error;
mod ffi;
mod heap;
pub mod observe;
pub mod open;
mod pages;
pub mod pluggable;
mod streams;
pub mod units;

pub use allocator::{Allocator, BlockInfo};
pub use config::Config;
pub use error::{Error, Result};
pub use observe::DeviceStatistics;
pub use pluggable::PluggableAllocator;
pub use units::{Address, Bytes, DeviceId, PoolId, StreamId};
