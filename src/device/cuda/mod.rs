//! The GPUs of this machine, through the CUDA driver.
//!
//! - Nothing of CUDA is needed to build, and no GPU to run: the driver is looked for when devices
//!   are [opened](open_all), and what is missing is an error of the kind
//!   [`NoDevice`](crate::error::DeviceErrorKind::NoDevice) that says what was looked for.
//! - Work goes to the primary context of each device, which the CUDA runtime and everything built
//!   on it use as well, and which is made at the first use of the device; or to the context that
//!   is current in the thread that opens the devices, where that is another one of the program. A
//!   call changes the calling thread's current context only while it runs.
//! - When the context ends, because the program destroys it or resets the device, what was
//!   allocated there is gone, and every call that follows is an error of the kind
//!   [`Lost`](crate::error::DeviceErrorKind::Lost). Devices that are opened after that start anew.
//! - A stream is the value of its `cudaStream_t`: 0 and 1 are the legacy default stream, 2 that of
//!   the calling thread. A stream that belongs to another context is refused by the driver.
//! - No call here disturbs a capture of the program around it: what CUDA forbids in every thread
//!   while one thread captures is called in the relaxed mode, which is meant for calls that concern
//!   no captured work.
//! - In a process that was forked from one which had opened devices, every call is an error,
//!   because CUDA does not work there.
//!
//! The parts have the names that they have in [`sim`](super::sim): `device` is the contract,
//! `machine` finds the devices, and each kind of call has a file of its own.

mod attributes;
mod context;
mod device;
mod driver;
mod events;
mod fork;
mod graphs;
mod ipc;
mod live;
mod machine;
mod memory;
mod peers;
mod refusal;
pub mod report;
mod streams;
mod vmm;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

pub use machine::{CudaMachine, open_all};

use crate::device::DeviceResult;
use crate::error::{DeviceError, DeviceErrorKind, DriverCall};
use crate::units::Bytes;
use context::{Context, Relaxed};
use driver::{Code, Driver};
use graphs::Graphs;
use live::Live;
use peers::Peers;
use vmm::Placement;

/// One GPU of a [`CudaMachine`].
pub struct CudaDevice {
    /// Its number for the driver, and for users.
    ordinal: i32,
    name: String,
    driver: &'static Driver,
    /// The context, from the first use on. The primary one is never given back, as in the CUDA
    /// runtime: memory that is still in use would end with it.
    context: OnceLock<Context>,
    /// Whether that is the device's primary context, not one of the program.
    is_primary: bool,
    /// The context was found to have ended.
    ended: AtomicBool,
    /// The grain of physical memory, where there is virtual memory management.
    granularity: Option<Bytes>,
    /// What kind of physical memory is made, once that has been tried; the second one is that which
    /// network cards reach.
    placements: [OnceLock<Option<Placement>>; 2],
    graphs: Mutex<Graphs>,
    live: Live,
    peers: Arc<Peers>,
    /// What knows the other devices.
    machine: Weak<CudaMachine>,
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaDevice")
            .field("ordinal", &self.ordinal)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What is told where the context has ended.
const ENDED: &str = "the context in which this device was opened was destroyed, or the device was \
    reset: what was allocated there is gone; open the devices again";

/// Whether the primary context is looked at before this call: before all that concern memory, not
/// before the short ones that follow each other quickly, which the driver refuses by itself. It
/// need not do so for a context of the program, which is looked at before every call.
fn is_checked(call: DriverCall) -> bool {
    !matches!(
        call,
        DriverCall::EventRecord
            | DriverCall::EventQuery
            | DriverCall::StreamWaitEvent
            | DriverCall::CaptureStatus
            | DriverCall::HasStream
            | DriverCall::Copy
            | DriverCall::Fill
            | DriverCall::HostFunction
            | DriverCall::GraphLaunch
    )
}

impl CudaDevice {
    /// Makes one call of the driver, with this device's context current in this thread meanwhile.
    fn call(&self, call: DriverCall, body: impl FnOnce(&Driver) -> Code) -> DeviceResult<()> {
        let context = self.context(call)?;
        let entered = context.enter(self.driver);
        let _current = entered.map_err(|code| self.refused(call, code))?;
        body(self.driver).check().map_err(|code| self.refused(call, code))
    }

    /// Makes one call that is forbidden in all threads while one of them captures, though it
    /// concerns no captured work.
    fn relaxed_call(
        &self,
        call: DriverCall,
        body: impl FnOnce(&Driver) -> Code,
    ) -> DeviceResult<()> {
        self.call(call, |driver| match Relaxed::enter(driver) {
            Ok(_relaxed) => body(driver),
            Err(code) => code,
        })
    }

    /// The context to which this device's work goes, made if need be.
    fn context(&self, call: DriverCall) -> DeviceResult<Context> {
        if fork::is_child() {
            return Err(self.error(call, DeviceErrorKind::Lost, fork::REFUSAL));
        }
        if let Some(context) = self.context.get() {
            let checked = is_checked(call) || !self.is_primary;
            if self.has_ended() || checked && !self.find_alive(*context) {
                return Err(self.error(call, DeviceErrorKind::Lost, ENDED));
            }
            return Ok(*context);
        }
        let made = Context::retain(self.driver, self.ordinal);
        let made = made.map_err(|code| self.refused(call, code))?;
        if self.context.set(made).is_err() {
            // Another thread was faster. The context is the same, and was counted twice.
            Context::release(self.driver, self.ordinal);
        }
        Ok(made)
    }

    /// Whether the device was used, in a context that has ended.
    fn is_over(&self) -> bool {
        let used = self.context.get();
        used.is_some_and(|context| self.has_ended() || !self.find_alive(*context))
    }

    /// Whether the context was found to have ended.
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether the context still is what it was. Once it is not, it never is again, though another
    /// one may take its place.
    fn find_alive(&self, context: Context) -> bool {
        let alive = context.is_alive(self.driver);
        if !alive {
            self.ended.store(true, Ordering::Relaxed);
        }
        alive
    }

    /// The error for what the driver answered.
    fn refused(&self, call: DriverCall, code: Code) -> DeviceError {
        self.error(call, code.kind(), self.driver.describe(code))
    }

    /// The error for a call that breaks its contract.
    fn misuse(&self, call: DriverCall, detail: impl Into<String>) -> DeviceError {
        self.error(call, DeviceErrorKind::Misuse, detail)
    }

    fn error(
        &self,
        call: DriverCall,
        kind: DeviceErrorKind,
        detail: impl Into<String>,
    ) -> DeviceError {
        DeviceError { call, device: self.ordinal, kind, detail: detail.into() }
    }
}
