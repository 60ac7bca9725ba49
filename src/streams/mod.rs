//! Which streams used a block, and frees that wait for them.
//!
//! A block that only its own stream used is free at once: whatever is queued there later runs later. A
//! block that other streams used waits until what they had queued when it was freed has run. One event a
//! stream serves all frees of one epoch: they collect until the next look, when one event is recorded for
//! all of them. Recording later than the free is safe, since the event then covers more work, not less.

#![forbid(unsafe_code)]

mod deferred;

pub(crate) use deferred::{Deferred, Ticket};
