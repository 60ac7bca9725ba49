//! A CUDA memory allocator.

pub mod allocator;
pub mod config;
pub mod device;
pub mod error;
pub mod observe;
pub mod units;

pub use allocator::{Allocator, BlockInfo};
pub use config::Config;
pub use error::{Error, Result};
pub use observe::DeviceStatistics;
pub use units::{Address, Bytes, DeviceId, PoolId, StreamId};
