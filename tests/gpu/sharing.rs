//! An allocator's memory in two processes.

use crate::apart::{on_one, path};
use crate::scenarios::sharing::sharing_scenarios;
use crate::scenarios::{Kind, sharing};

macro_rules! on_the_gpu {
    ($($scenario:ident,)*) => {
        mod handles {
            $(
                #[test]
                fn $scenario() {
                    let (module, name) = (module_path!(), stringify!($scenario));
                    let test = format!("{}::{name}", super::path(module));
                    super::on_one(module, name, |place| {
                        super::sharing::$scenario(place, super::Kind::Handles, &test);
                    });
                }
            )*
        }

        mod segments {
            $(
                #[test]
                fn $scenario() {
                    let (module, name) = (module_path!(), stringify!($scenario));
                    let test = format!("{}::{name}", super::path(module));
                    super::on_one(module, name, |place| {
                        super::sharing::$scenario(place, super::Kind::Segments, &test);
                    });
                }
            )*
        }
    };
}
sharing_scenarios!(on_the_gpu);

#[test]
fn memory_given_back_by_its_owner_lives_on_where_it_is_open() {
    let name = "memory_given_back_by_its_owner_lives_on_where_it_is_open";
    let test = format!("{}::{name}", path(module_path!()));
    on_one(module_path!(), name, |place| {
        sharing::memory_given_back_by_its_owner_lives_on_where_it_is_open(place, &test);
    });
}

#[test]
fn a_process_opens_its_own_handles_but_no_legacy_ones() {
    on_one(module_path!(), "a_process_opens_its_own_handles_but_no_legacy_ones", |place| {
        for kind in [Kind::Handles, Kind::Segments] {
            sharing::a_process_opens_its_own_handles_but_no_legacy_ones(place, kind);
        }
    });
}
