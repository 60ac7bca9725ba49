//! What C++ may hold and call: the one bridge, and conversions of a few lines. Nothing is decided
//! here, and only [`crate::cpp`] uses it.
//!
//! Exported functions never return a `Result` on a hot path, since cxx turns one into text and an
//! exception: they return a status, and the error waits in the thread for
//! [`take_last_error`](error::take_last_error). None of them lets a panic out.

pub(crate) mod bridge;
pub(crate) mod caching;
pub(crate) mod checkpoints;
pub(crate) mod error;
pub(crate) mod history;
pub(crate) mod places;
pub(crate) mod pluggable;
pub(crate) mod pools;
pub(crate) mod records;
pub(crate) mod statistics;
pub(crate) mod stream;
