//! A CUDA memory allocator.

pub mod allocator;
pub mod config;
pub mod device;
mod engine;
pub mod error;
mod heap;
pub mod observe;
mod pages;
mod streams;
pub mod units;

pub use allocator::{Allocator, BlockInfo};
pub use config::Config;
pub use error::{Error, Result};
pub use observe::DeviceStatistics;
pub use units::{Address, Bytes, DeviceId, PoolId, StreamId};
