//! Physical memory: which handles there are, where each is mapped, and what is mapped at an
//! address.
//!
//! A handle is in use at one place at most, its *active* view. It may still be mapped at others,
//! its dormant views: making one of those active again costs no driver call, and nothing has to
//! wait for the moment at which unmapping would be safe. A handle with no active view is *spare*.

#![forbid(unsafe_code)]

mod moving;
mod policy;
mod store;

pub(crate) use moving::MovingTime;
pub(crate) use policy::Policy;
pub(crate) use store::{Place, Store};
