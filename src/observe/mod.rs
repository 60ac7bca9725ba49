//! What can be seen of the allocator from outside. This room reads the others and changes none of
//! them.

#![forbid(unsafe_code)]

pub mod statistics;

pub use statistics::{DeviceStatistics, Stat, StatArray};
