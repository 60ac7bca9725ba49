//! What an allocator does on every device, on the simulated one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

#[path = "common/blocked.rs"]
mod blocked;
#[path = "common/scenarios/mod.rs"]
mod scenarios;

use std::sync::Arc;

use plugalloc::device::Device;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{Address, Bytes, GIB, StreamId};
use scenarios::graphs::graph_scenarios;
use scenarios::peers::peer_scenarios;
use scenarios::sharing::sharing_scenarios;
use scenarios::{Brush, Kind, Place, Site};

/// Paints by filling.
struct Fills(Arc<dyn Device>);

impl Brush for Fills {
    fn paint(&self, at: Address, bytes: Bytes, value: u8, stream: StreamId) {
        self.0.fill_async(at, value, bytes, stream).unwrap();
    }
}

/// The two devices of a machine.
fn places() -> [Place; 2] {
    let options = SimOptions { devices: 2, capacity: GIB, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    [0, 1].map(|index| {
        let device = machine.device(index) as Arc<dyn Device>;
        Place { brush: Arc::new(Fills(Arc::clone(&device))), device }
    })
}

fn place() -> Place {
    places()[0].clone()
}

macro_rules! of_graphs {
    ($($scenario:ident,)*) => {
        mod graphs_in_handles {
            $(
                #[test]
                fn $scenario() {
                    crate::scenarios::graphs::$scenario(&crate::site(crate::Kind::Handles));
                }
            )*
        }

        mod graphs_in_segments {
            $(
                #[test]
                fn $scenario() {
                    crate::scenarios::graphs::$scenario(&crate::site(crate::Kind::Segments));
                }
            )*
        }
    };
}
graph_scenarios!(of_graphs);

macro_rules! of_peers {
    ($($scenario:ident,)*) => {
        mod peers_in_handles {
            $(
                #[test]
                fn $scenario() {
                    crate::scenarios::peers::$scenario(&crate::places(), crate::Kind::Handles);
                }
            )*
        }

        mod peers_in_segments {
            $(
                #[test]
                fn $scenario() {
                    crate::scenarios::peers::$scenario(&crate::places(), crate::Kind::Segments);
                }
            )*
        }
    };
}
peer_scenarios!(of_peers);

macro_rules! of_sharing {
    ($($scenario:ident,)*) => {
        mod handles_between_processes {
            $(
                #[test]
                fn $scenario() {
                    let test = crate::path(module_path!(), stringify!($scenario));
                    let kind = crate::Kind::Handles;
                    crate::scenarios::sharing::$scenario(&crate::place(), kind, &test);
                }
            )*
        }

        mod segments_between_processes {
            $(
                #[test]
                fn $scenario() {
                    let test = crate::path(module_path!(), stringify!($scenario));
                    let kind = crate::Kind::Segments;
                    crate::scenarios::sharing::$scenario(&crate::place(), kind, &test);
                }
            )*
        }
    };
}
sharing_scenarios!(of_sharing);

fn site(kind: Kind) -> Site {
    Site::new(&place(), kind)
}

/// The path of a test within this executable.
fn path(module: &str, name: &str) -> String {
    let (_, module) = module.split_once("::").unwrap();
    format!("{module}::{name}")
}

#[test]
fn memory_given_back_by_its_owner_lives_on_where_it_is_open() {
    let test = "memory_given_back_by_its_owner_lives_on_where_it_is_open";
    scenarios::sharing::memory_given_back_by_its_owner_lives_on_where_it_is_open(&place(), test);
}

#[test]
fn a_process_opens_its_own_handles_but_no_legacy_ones() {
    for kind in [Kind::Handles, Kind::Segments] {
        scenarios::sharing::a_process_opens_its_own_handles_but_no_legacy_ones(&place(), kind);
    }
}

#[test]
fn events_lead_to_every_snapshot() {
    for kind in [Kind::Handles, Kind::Segments] {
        scenarios::history::events_lead_to_every_snapshot(&site(kind));
    }
}
