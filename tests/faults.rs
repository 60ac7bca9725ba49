//! Every call of the driver fails once, at every place where it is made, and then always: the
//! allocator answers with an error or a success, and loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{A, B, C, Rig, config};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{DeviceErrorKind, DriverCall, Error, Result};
use plugalloc::units::{Address, Bytes, KIB, MIB, StreamId};

/// A workload that goes on whatever fails, and knows what it has.
struct Workload {
    rig: Rig,
    live: Vec<(Address, Bytes)>,
    failures: u32,
}

impl Workload {
    fn new(virtual_memory: bool, caching: bool) -> Workload {
        let options = SimOptions { capacity: 48 * MIB, virtual_memory, ..SimOptions::default() };
        let rig = Rig::new(options, config(|c| c.caching = caching));
        Workload { rig, live: Vec::new(), failures: 0 }
    }

    /// Notes a failure; one that says that the allocator misused the device is a bug.
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::Device(error)) if error.kind == DeviceErrorKind::Misuse => {
                // A program of one thread cannot wait for what it holds back itself.
                assert!(error.detail.contains("would wait for ever"), "misuse: {error}");
                self.failures += 1;
                None
            }
            Err(Error::OutOfMemory(_) | Error::Device(_)) => {
                self.failures += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn allocate(&mut self, bytes: Bytes, stream: StreamId) {
        let result = self.rig.try_allocate(bytes, stream);
        if let Some(address) = self.note(result) {
            self.live.push((address, bytes));
        }
    }

    /// Frees the oldest blocks, some of them with another user.
    fn free(&mut self, count: usize, user: Option<StreamId>) {
        for _ in 0..count.min(self.live.len()) {
            let (address, _) = self.live.remove(0);
            if let Some(user) = user {
                self.rig.allocator.record_stream(address, user).unwrap();
            }
            let freed = self.rig.allocator.free(address);
            if self.note(freed).is_none() {
                self.live.push((address, 0));
            }
        }
    }

    fn run(&mut self) {
        for round in 0..3u64 {
            for (k, stream) in [A, B, C, A].into_iter().enumerate() {
                self.allocate((k as u64 + 1) * 3 * MIB + round * MIB, stream);
                self.allocate(40 * KIB, stream);
                self.allocate(MIB, stream);
            }
            self.free(5, Some(B));
            let polled = self.rig.allocator.process_events();
            self.note(polled);
            // Whoever takes what A had must wait for A.
            self.free(self.live.len(), None);
            self.allocate(24 * MIB, A);
            self.rig.device().hold(A).unwrap();
            self.free(1, None);
            self.allocate(32 * MIB, C);
            self.rig.device().resume(A).unwrap();
            self.allocate(3 * MIB, A);
            self.free(2, Some(C));
            self.allocate(40 * MIB, B);
            let emptied = self.rig.allocator.empty_cache();
            self.note(emptied);
            self.free(1, None);
            self.allocate(9 * MIB, A);
        }
        self.rig.allocator.is_valid().unwrap();
    }

    /// With no faults any more, everything is found again.
    fn finish(mut self) {
        self.rig.device().clear_faults();
        let all = self.live.len();
        self.free(all, None);
        assert!(self.live.is_empty());
        self.rig.allocator.process_events().unwrap();
        self.rig.allocator.empty_cache().unwrap();
        let whole = self.rig.allocate(40 * MIB, C);
        self.rig.free(whole);
        self.rig.finish();
    }
}

/// How often the workload makes a call when nothing fails.
fn calls_without_faults(virtual_memory: bool, caching: bool) -> plugalloc::device::sim::Ledger {
    let mut workload = Workload::new(virtual_memory, caching);
    workload.run();
    let ledger = workload.rig.ledger();
    workload.finish();
    ledger
}

/// Runs the workload with a fault; a panic says with which.
fn run_with(virtual_memory: bool, caching: bool, name: &str, order: impl Fn(&Rig)) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut workload = Workload::new(virtual_memory, caching);
        order(&workload.rig);
        workload.run();
        let failures = workload.failures;
        workload.finish();
        failures
    }));
    match outcome {
        Ok(failures) => failures,
        Err(_) => panic!("virtual memory {virtual_memory}, caching {caching}: {name}"),
    }
}

fn each_call_fails_once(virtual_memory: bool, caching: bool) {
    let usual = calls_without_faults(virtual_memory, caching);
    let mut failures = 0;
    for call in DriverCall::ALL {
        // Beyond the last call there is nothing to fail.
        for nth in 1..=usual.calls(call).min(50) {
            let name = format!("{call} number {nth} fails");
            failures += run_with(virtual_memory, caching, &name, |rig| {
                rig.device().fail_nth(call, nth);
            });
        }
    }
    assert!(failures > 0, "no fault was seen");
}

#[test]
fn each_call_fails_once_with_virtual_memory() {
    each_call_fails_once(true, true);
}

#[test]
fn each_call_fails_once_with_segments() {
    each_call_fails_once(false, true);
}

#[test]
fn each_call_fails_once_without_caching() {
    each_call_fails_once(true, false);
}

#[test]
fn the_workload_makes_every_call_that_an_allocator_needs() {
    let moved = calls_without_faults(true, true);
    for call in [
        DriverCall::Reserve,
        DriverCall::Create,
        DriverCall::Release,
        DriverCall::Map,
        DriverCall::SetAccess,
        DriverCall::Unmap,
        DriverCall::MemoryInfo,
        DriverCall::StreamWaitEvent,
        DriverCall::EventCreate,
        DriverCall::EventRecord,
        DriverCall::EventQuery,
        DriverCall::EventSynchronize,
        DriverCall::CaptureStatus,
    ] {
        assert!(moved.calls(call) > 0, "{call} is never made");
    }
    let segments = calls_without_faults(false, true);
    assert!(segments.calls(DriverCall::Malloc) > 0 && segments.calls(DriverCall::Free) > 0);
}

#[test]
fn every_call_of_a_kind_fails() {
    for (virtual_memory, caching) in [(true, true), (false, true), (true, false)] {
        for call in DriverCall::ALL {
            let name = format!("every {call} fails");
            run_with(virtual_memory, caching, &name, |rig| rig.device().fail_every(call));
        }
    }
}

#[test]
fn calls_that_make_memory_fail_for_other_reasons_than_memory() {
    for kind in [DeviceErrorKind::Other, DeviceErrorKind::Lost, DeviceErrorKind::NotPermitted] {
        for (virtual_memory, call) in [(true, DriverCall::Create), (false, DriverCall::Malloc)] {
            for nth in 1..=10 {
                let name = format!("{call} number {nth} fails with {kind:?}");
                run_with(virtual_memory, true, &name, |rig| {
                    rig.device().fail_nth_with(call, nth, kind);
                });
            }
        }
    }
}

#[test]
fn two_calls_fail_in_one_step() {
    let pairs = [
        (DriverCall::SetAccess, DriverCall::Unmap),
        (DriverCall::Map, DriverCall::Release),
        (DriverCall::Unmap, DriverCall::EventSynchronize),
        (DriverCall::EventRecord, DriverCall::EventCreate),
    ];
    for (first, second) in pairs {
        for nth in 1..=12 {
            for other in 1..=4 {
                let name = format!("{first} number {nth} and {second} number {other} fail");
                run_with(true, true, &name, |rig| {
                    rig.device().fail_nth(first, nth);
                    rig.device().fail_nth(second, other);
                });
            }
        }
    }
}

#[test]
fn an_error_of_the_driver_is_handed_on_with_its_numbers() {
    let rig = Rig::new(SimOptions::default(), Config::default());
    rig.device().fail_nth(DriverCall::Map, 1);
    match rig.try_allocate(MIB, A) {
        Err(Error::Device(error)) => {
            assert_eq!((error.call, error.device), (DriverCall::Map, 0));
            assert_eq!(error.to_string(), "Map failed on device 0: failed on request");
        }
        other => panic!("{other:?}"),
    }
    let block = rig.allocate(MIB, A);
    rig.free(block);
    rig.finish();
}
