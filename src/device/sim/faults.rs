//! Failures on request.

use super::refusal::{Outcome, Refusal};
use crate::error::{DeviceErrorKind, DriverCall};

/// One standing order to fail.
#[derive(Debug)]
struct Fault {
    call: DriverCall,
    kind: DeviceErrorKind,
    when: When,
}

#[derive(Debug, PartialEq, Eq)]
enum When {
    /// After so many further calls that pass.
    After(u64),
    /// At every call.
    Always,
    /// It has failed its call.
    Done,
}

/// The standing orders of one device.
#[derive(Debug, Default)]
pub(super) struct Faults {
    orders: Vec<Fault>,
}

impl Faults {
    /// Lets the `nth` call from now fail, counted from 1, and no other.
    pub(super) fn fail_nth(&mut self, call: DriverCall, nth: u64, kind: DeviceErrorKind) {
        let when = When::After(nth.saturating_sub(1));
        self.orders.push(Fault { call, kind, when });
    }

    /// Lets every call from now fail.
    pub(super) fn fail_every(&mut self, call: DriverCall, kind: DeviceErrorKind) {
        self.orders.push(Fault { call, kind, when: When::Always });
    }

    pub(super) fn clear(&mut self) {
        self.orders.clear();
    }

    /// Asked before a call does anything.
    #[inline]
    pub(super) fn admit(&mut self, call: DriverCall) -> Outcome<()> {
        if self.orders.is_empty() {
            return Ok(());
        }
        self.follow(call)
    }

    #[cold]
    fn follow(&mut self, call: DriverCall) -> Outcome<()> {
        let mut hit = None;
        for fault in self.orders.iter_mut().filter(|fault| fault.call == call) {
            match &mut fault.when {
                When::After(0) => fault.when = When::Done,
                When::After(passing) => {
                    *passing -= 1;
                    continue;
                }
                When::Always => {}
                When::Done => continue,
            }
            hit = hit.or(Some(fault.kind));
        }
        self.orders.retain(|fault| fault.when != When::Done);
        match hit {
            None => Ok(()),
            Some(kind) => Err(Refusal { kind, detail: "failed on request".to_owned() }),
        }
    }
}

/// How a call fails on request where nothing else is said: calls that make memory lack it.
pub(super) fn usual_kind(call: DriverCall) -> DeviceErrorKind {
    match call {
        DriverCall::Create | DriverCall::Malloc => DeviceErrorKind::OutOfMemory,
        _ => DeviceErrorKind::Other,
    }
}
