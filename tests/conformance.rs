//! The contract of `Device`, applied to every device that this machine has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

#[path = "common/blocked.rs"]
mod blocked;
#[path = "common/conformance/mod.rs"]
mod conformance;

use std::thread;
use std::time::{Duration, Instant};

use conformance::conformance_cases;
use plugalloc::device::Device;
use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::error::{DeviceErrorKind, DriverCall};
use plugalloc::units::{DeviceId, GIB, StreamId};
use plugalloc::{Allocator, Config};

fn options() -> SimOptions {
    SimOptions { devices: 2, capacity: GIB, ..SimOptions::default() }
}

/// Fails if memory is in use. A process that another test is about to start has copies of all
/// descriptors for a moment, those of shared memory too, so that the answer may come late.
fn assert_all_given_back(device: &SimDevice) {
    let start = Instant::now();
    while device.ledger().used > 0 && start.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(device.ledger().used, 0, "bytes were left behind");
}

macro_rules! on_a_simulated_device {
    ($($case:ident,)*) => {
        mod simulated {
            $(
                #[test]
                fn $case() {
                    let machine = super::SimMachine::new(super::options()).unwrap();
                    super::conformance::$case(&*machine.device(0));
                    super::assert_all_given_back(&machine.device(0));
                }
            )*
        }

        mod simulated_without_virtual_memory {
            $(
                #[test]
                fn $case() {
                    let plain = super::SimOptions { virtual_memory: false, ..super::options() };
                    let machine = super::SimMachine::new(plain).unwrap();
                    super::conformance::$case(&*machine.device(0));
                }
            )*
        }
    };
}
conformance_cases!(on_a_simulated_device);

#[test]
fn simulated_peers_copy_between_each_other() {
    let machine = SimMachine::new(options()).unwrap();
    conformance::peers_copy_between_each_other(&*machine.device(0), &*machine.device(1));
}

#[test]
fn a_child_of_this_process_sees_exported_memory() {
    let machine = SimMachine::new(options()).unwrap();
    let device = machine.device(0);
    conformance::a_child_sees_exported_memory(
        &*device,
        "a_child_of_this_process_sees_exported_memory",
    );
    assert_all_given_back(&device);
}

#[test]
fn a_child_of_this_process_opens_a_legacy_handle() {
    for virtual_memory in [true, false] {
        let machine = SimMachine::new(SimOptions { virtual_memory, ..options() }).unwrap();
        let device = machine.device(0);
        conformance::a_child_opens_a_legacy_handle(
            &*device,
            "a_child_of_this_process_opens_a_legacy_handle",
        );
        assert_all_given_back(&device);
    }
}

#[test]
fn without_memory_behind_it_a_device_keeps_the_same_books() {
    let ledgers = [true, false].map(|backed| {
        let options = SimOptions { backed, capacity: GIB, ..SimOptions::default() };
        let machine = SimMachine::new(options).unwrap();
        let device = machine.device(0);
        let allocator = Allocator::new(machine.as_devices(), Config::default()).unwrap();
        let mut live = Vec::new();
        for step in 0..200_u64 {
            // The policy follows time, which is to be the same both times.
            allocator.clock().set_us(step * 500);
            let bytes = (step * 7 % 40 + 1) << 20;
            live.push(allocator.allocate(DeviceId(0), bytes, StreamId(step % 3)).unwrap());
            if live.len() > 15 {
                allocator.free(live.swap_remove(step as usize * 5 % 15)).unwrap();
            }
        }
        let filled = device.fill_async(live[0], 1, 512, StreamId::DEFAULT);
        let kind = filled.map_err(|error| error.kind);
        assert_eq!(kind, if backed { Ok(()) } else { Err(DeviceErrorKind::Unsupported) });
        let plain = device.malloc(1 << 20).unwrap();
        device.free(plain).unwrap();
        live.into_iter().for_each(|address| allocator.free(address).unwrap());
        allocator.is_quiescent().unwrap();
        allocator.empty_cache().unwrap();
        allocator.is_valid().unwrap();
        let ledger = device.ledger();
        (
            ledger.calls(DriverCall::Map),
            ledger.calls(DriverCall::Create),
            ledger.used,
            ledger.used_peak,
        )
    });
    assert_eq!(ledgers[0], ledgers[1]);
    assert!(ledgers[0].0 > 0);
}
