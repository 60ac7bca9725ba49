//! Memory given to child processes.

use crate::{conformance, gpu};

#[test]
fn a_child_sees_exported_memory() {
    let Some(gpu) = gpu() else { return };
    conformance::a_child_sees_exported_memory(&*gpu.device, "ipc::a_child_sees_exported_memory");
}

#[test]
fn a_child_opens_a_legacy_handle() {
    let Some(gpu) = gpu() else { return };
    conformance::a_child_opens_a_legacy_handle(&*gpu.device, "ipc::a_child_opens_a_legacy_handle");
}
