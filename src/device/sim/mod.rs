//! A GPU in host memory: what a machine without a GPU runs, what tests run on, and where faults are
//! injected.
//!
//! - Memory is real. Physical handles can be mapped at any reserved address, at several at once,
//!   and keep their bytes when they move; only what is touched occupies memory of the host.
//! - Streams are queues. A test can [hold](SimDevice::hold) a stream's work back and
//!   [resume](SimDevice::resume) it, so that "used before the event" is something that can be seen.
//! - Misuse is an error that names it: whatever a real device would answer with a fault, with lost
//!   data or not at all, such as unmapping memory that queued work still uses.
//! - Calls fail [on request](SimDevice::fail_nth), and a failed call has changed nothing; the one
//!   exception is a call that is forbidden during a capture, which also invalidates the capture.
//! - A [ledger](SimDevice::ledger) counts the calls, and prices them by what an H100 takes for
//!   them.
//!
//! # Captures
//!
//! Copies and fills queued on a capturing stream are recorded, a graph launched on it becomes a
//! part of the capture, and all spans are checked when they are recorded and again at each launch:
//! a graph whose memory was unmapped is refused whole. What CUDA forbids fails with `NotPermitted`
//! and invalidates the capture:
//!
//! - `event_record` and `stream_synchronize` on the capturing stream, `stream_wait_event` on it for
//!   an event that was ever recorded (which can only have been outside the capture), and
//!   `synchronize` on its device;
//! - with [`SimOptions::global_capture`], also `malloc`, `free`, `event_query` and
//!   `event_synchronize` on any stream or device of the machine.
//!
//! After that, whatever is queued on the stream fails, and so does `capture_end`, which brings the
//! stream out of the capture. `host_function` on a capturing stream and a capture of the default
//! stream are `Unsupported`, and harm no capture. The calls on addresses and handles are always
//! allowed.
//!
//! # Other processes
//!
//! Memory is shared with other processes for real, and their simulated devices see the same bytes.
//! What is exported counts as used until everybody has let it go; what is imported counts nothing.
//! A handle that was imported cannot be exported again.
//!
//! # Differences
//!
//! What is simpler than on a real device: no stream synchronises with the default stream by itself,
//! functions of the host cannot be captured, and work runs in the thread of a caller, not beside
//! it.

mod device;
mod events;
mod faults;
mod graphs;
mod handles;
mod ipc;
mod ledger;
mod machine;
mod memory;
mod os;
mod pages;
mod queue;
mod refusal;
mod regions;
mod streams;
mod vmm;

use std::sync::Arc;

pub use ledger::Ledger;
pub use machine::{SimMachine, SimOptions};

use crate::device::DeviceResult;
use crate::error::{DeviceError, DeviceErrorKind, DriverCall};
use crate::units::{Address, Bytes, StreamId};
use machine::{Shared, State};
use parking_lot::MutexGuard;
use refusal::Outcome;

/// One simulated device of a [`SimMachine`].
///
/// ```
/// use plugalloc::StreamId;
/// use plugalloc::device::Device;
/// use plugalloc::device::sim::{SimMachine, SimOptions};
/// use plugalloc::error::{DeviceErrorKind, DriverCall};
///
/// let device = SimMachine::new(SimOptions::default())?.device(0);
/// let (stream, memory) = (StreamId(8), device.malloc(4096)?);
///
/// // Work that is held back has not happened.
/// let event = device.event_create()?;
/// device.hold(stream)?;
/// device.fill_async(memory, 7, 4096, stream)?;
/// device.event_record(event, stream)?;
/// assert!(!device.event_query(event)?);
/// device.resume(stream)?;
/// assert!(device.event_query(event)?);
///
/// // A call fails on request, and the ledger knows of all of them.
/// device.fail_nth(DriverCall::Malloc, 1);
/// let error = device.malloc(4096).unwrap_err();
/// assert_eq!(error.kind, DeviceErrorKind::OutOfMemory);
/// assert_eq!(device.ledger().calls(DriverCall::Malloc), 2);
/// # Ok::<(), plugalloc::error::DeviceError>(())
/// ```
pub struct SimDevice {
    index: usize,
    shared: Arc<Shared>,
}

impl SimDevice {
    fn new(index: usize, shared: Arc<Shared>) -> SimDevice {
        SimDevice { index, shared }
    }

    /// Makes one call of the device.
    fn call<T>(
        &self,
        call: DriverCall,
        body: impl FnOnce(&mut MutexGuard<'_, State>) -> Outcome<T>,
    ) -> DeviceResult<T> {
        self.report(call, self.shared.call(self.index, call, body))
    }

    /// Adds to a refusal which call it was.
    fn report<T>(&self, call: DriverCall, outcome: Outcome<T>) -> DeviceResult<T> {
        outcome.map_err(|refusal| DeviceError {
            call,
            device: self.index as i32,
            kind: refusal.kind,
            detail: refusal.detail,
        })
    }

    /// Holds a stream: until it is [resumed](SimDevice::resume), nothing that is or will be queued
    /// on it runs, and no event recorded on it from now completes.
    ///
    /// # Errors
    ///
    /// The stream does not exist; the error says so as of a call to make it wait.
    pub fn hold(&self, stream: StreamId) -> DeviceResult<()> {
        let mut state = self.shared.state.lock();
        let outcome = state.work.set_held(self.index, stream, true);
        self.report(DriverCall::StreamWaitEvent, outcome)
    }

    /// Lets a held stream go on, and runs what has become runnable by that, on all streams. Works
    /// for a stream, too, that was destroyed while it was held.
    ///
    /// # Errors
    ///
    /// The stream does not exist.
    pub fn resume(&self, stream: StreamId) -> DeviceResult<()> {
        let mut state = self.shared.state.lock();
        let outcome = state.work.set_held(self.index, stream, false);
        self.report(DriverCall::StreamWaitEvent, outcome)?;
        self.shared.drain(&mut state);
        self.shared.announce();
        Ok(())
    }

    /// Lets the `nth` call of this kind fail, counted from now and from 1, and only that one: as
    /// out of memory where the call makes memory, otherwise as an unnamed failure of the driver.
    pub fn fail_nth(&self, call: DriverCall, nth: u64) {
        self.fail_nth_with(call, nth, faults::usual_kind(call));
    }

    /// As [`fail_nth`](SimDevice::fail_nth), with a failure of one's choice.
    pub fn fail_nth_with(&self, call: DriverCall, nth: u64, kind: DeviceErrorKind) {
        self.shared.state.lock().books[self.index].faults.fail_nth(call, nth, kind);
    }

    /// Lets every call of this kind fail, until [`clear_faults`](SimDevice::clear_faults).
    pub fn fail_every(&self, call: DriverCall) {
        self.fail_every_with(call, faults::usual_kind(call));
    }

    /// As [`fail_every`](SimDevice::fail_every), with a failure of one's choice.
    pub fn fail_every_with(&self, call: DriverCall, kind: DeviceErrorKind) {
        self.shared.state.lock().books[self.index].faults.fail_every(call, kind);
    }

    /// Lets every call succeed again that can.
    pub fn clear_faults(&self) {
        self.shared.state.lock().books[self.index].faults.clear();
    }

    /// Gives the device more or less memory. What exists already stays, even where it is more.
    pub fn set_capacity(&self, capacity: Bytes) {
        self.shared.state.lock().memory.banks[self.index].set_capacity(capacity);
    }

    /// What is in memory that the device may access, now, whatever is queued.
    ///
    /// # Errors
    ///
    /// It is no memory of a device, or not this one's to access; the error says so as of a copy.
    pub fn read(&self, at: Address, bytes: Bytes) -> DeviceResult<Vec<u8>> {
        let state = self.shared.state.lock();
        let outcome = state.memory.check_own(self.index, at, bytes).map(|()| {
            let mut found = vec![0; bytes as usize];
            os::copy(found.as_mut_ptr() as Address, at, bytes);
            found
        });
        self.report(DriverCall::Copy, outcome)
    }

    /// What was asked of the device, and what it would have cost.
    pub fn ledger(&self) -> Ledger {
        let mut state = self.shared.state.lock();
        let bank = &mut state.memory.banks[self.index];
        bank.settle();
        let (used, used_peak) = (bank.used(), bank.used_peak());
        let of_no_stream = state.work.calls_of_no_stream[self.index];
        state.books[self.index].counters.read(used, used_peak, of_no_stream)
    }

    /// Starts the ledger anew. Its peak starts from what is in use.
    pub fn reset_ledger(&self) {
        let mut state = self.shared.state.lock();
        state.books[self.index].counters = ledger::Counters::new();
        state.work.calls_of_no_stream[self.index] = 0;
        state.memory.banks[self.index].forget_peak();
    }
}

impl std::fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDevice").field("index", &self.index).finish_non_exhaustive()
    }
}
