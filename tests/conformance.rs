//! The contract of `Device`, applied to every device that this machine has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

#[path = "common/conformance/mod.rs"]
mod conformance;

use conformance::conformance_cases;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::GIB;

fn options() -> SimOptions {
    SimOptions { devices: 2, capacity: GIB, ..SimOptions::default() }
}

macro_rules! on_a_simulated_device {
    ($($case:ident,)*) => {
        mod simulated {
            $(
                #[test]
                fn $case() {
                    let machine = super::SimMachine::new(super::options()).unwrap();
                    super::conformance::$case(&*machine.device(0));
                    let left = machine.device(0).ledger().used;
                    assert_eq!(left, 0, "the case left {left} bytes behind");
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
