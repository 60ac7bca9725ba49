//! Which streams used a block, and frees that wait for them.
//!
//! A block that only its own stream used is free at once: whatever is queued there later runs
//! later. A block that other streams used waits until what they had queued when it was freed has
//! run. One event a stream serves all frees of one epoch: a free moves the event on to the end of
//! the stream's work, until somebody has looked at it. An event that is moved on covers more work,
//! not less.

#![forbid(unsafe_code)]

mod captures;
mod deferred;

pub(crate) use captures::Captures;
pub(crate) use deferred::{Deferred, Guest, Ticket};
