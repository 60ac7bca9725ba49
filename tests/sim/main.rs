//! What the simulated device does beyond the contract of `Device`: it tells misuse, holds work
//! back, fails on request, and keeps a ledger.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod captures;
mod faults;
mod held;
mod host;
mod ipc;
mod ledger;
mod misuse;
mod streams;

use std::sync::Arc;

use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::device::{Device, DeviceResult, HandleId};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, Bytes, GIB, GRANULE, StreamId};

/// A stream that nobody created.
const STREAM: StreamId = StreamId(8);
/// Another one.
const OTHER: StreamId = StreamId(16);

/// One device of 1 GiB.
fn device() -> Arc<SimDevice> {
    device_with(SimOptions::default())
}

/// One device of 1 GiB with further options.
fn device_with(options: SimOptions) -> Arc<SimDevice> {
    SimMachine::new(SimOptions { capacity: GIB, ..options }).unwrap().device(0)
}

/// A reservation with a handle mapped and accessible at its start.
fn mapped(device: &SimDevice, bytes: Bytes) -> (Address, HandleId) {
    let (at, handle) = (device.reserve(bytes).unwrap(), device.create(bytes).unwrap());
    device.map(at, bytes, handle).unwrap();
    device.set_access(at, bytes).unwrap();
    (at, handle)
}

/// The byte at an address, read by a stream of its own.
fn byte(device: &SimDevice, at: Address) -> u8 {
    let mut value = 0u8;
    let reader = StreamId(0xb17e);
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(&raw mut value as Address, at, 1, reader) }.unwrap();
    device.stream_synchronize(reader).unwrap();
    value
}

/// Asserts that a call was refused as a misuse whose text holds `words`.
#[track_caller]
fn assert_misuse<T: std::fmt::Debug>(result: DeviceResult<T>, words: &str) {
    assert_refused(result, DeviceErrorKind::Misuse, words);
}

/// Asserts that a call was refused with a text that holds `words`.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: DeviceResult<T>, kind: DeviceErrorKind, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.to_string().contains(words), "'{words}' is not in '{error}'");
}

/// Asserts that nothing can be told from a fresh device.
#[track_caller]
fn assert_untouched(device: &SimDevice) {
    let info = device.memory_info().unwrap();
    assert_eq!(info.free, info.total, "memory is in use");
    let (at, handle) = mapped(device, GRANULE);
    device.unmap(at, GRANULE).unwrap();
    device.release(handle).unwrap();
    device.free_address(at, GRANULE).unwrap();
    device.synchronize().unwrap();
}
