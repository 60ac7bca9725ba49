//! Scenarios in processes of their own, so that a fault of the device in one leaves all other tests
//! alone, and a hang ends.

use std::sync::Arc;

use crate::brush::place;
use crate::gpu;
use crate::peers::pair;
use crate::processes::{is_child, print_of, run_child};
use crate::scenarios::processes::limit_life;
use crate::scenarios::{Place, skip};

/// The path of a module within this executable.
pub(crate) fn path(module: &str) -> &str {
    module.split_once("::").unwrap().1
}

/// Runs `body` in a child, which is this executable with the same test.
pub(crate) fn apart(module: &str, test: &str, body: impl FnOnce()) {
    if is_child(test) {
        limit_life();
        body();
        println!("the scenario ended well");
        return;
    }
    let output = run_child(path(module), test);
    let printed = print_of(&output);
    // Of what a test that passes prints, only this is of interest.
    for line in printed.lines() {
        if let Some(why) = line.strip_prefix("skipped: ") {
            skip(&format!("{test}: {why}"));
        }
    }
    assert!(output.status.success(), "{}", output.status);
    assert!(printed.contains("the scenario ended well"));
}

/// On the first GPU.
pub(crate) fn on_one(module: &str, test: &str, body: impl FnOnce(&Place)) {
    let Some(gpu) = gpu() else { return };
    apart(module, test, || body(&place(&gpu.device)));
}

/// On two GPUs that reach each other.
pub(crate) fn on_two(module: &str, test: &str, body: impl FnOnce(&[Place; 2])) {
    let Some((gpu, peer)) = pair() else { return };
    apart(module, test, || body(&[place(&Arc::clone(&gpu.device)), place(&peer)]));
}
