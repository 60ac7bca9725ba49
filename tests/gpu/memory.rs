//! Memory of the device, beyond the cases for every device.

use plugalloc::device::Device;
use plugalloc::device::cuda::CudaMachine;
use plugalloc::device::cuda::report::report;
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{MIB, StreamId};

use crate::gpu;

#[test]
fn the_report_agrees_with_the_device() {
    let Some(gpu) = gpu() else { return };
    let report = report().unwrap();
    println!("{report:#?}");
    let found = &report.devices[0];
    assert_eq!(found.name, gpu.device.name());
    assert_eq!(found.used.virtual_memory, gpu.device.capabilities().virtual_memory);
    assert!(*found.free.as_ref().unwrap() <= found.total);
    assert!(report.driver_version >= (11, 4));
}

#[test]
fn a_machine_opened_twice_is_the_same() {
    let Some(gpu) = gpu() else { return };
    let again = CudaMachine::open().unwrap();
    assert!(std::sync::Arc::ptr_eq(&gpu.device, &again.devices()[0]));
}

#[test]
fn fills_and_copies_of_nothing_are_done_at_once() {
    let Some(gpu) = gpu() else { return };
    gpu.device.fill_async(0, 1, 0, StreamId::DEFAULT).unwrap();
    gpu.device.copy_async(0, 0, 0, StreamId::DEFAULT).unwrap();
}

#[test]
fn every_kind_of_stream_runs_work() {
    let Some(gpu) = gpu() else { return };
    let memory = gpu.device.malloc(MIB).unwrap();
    let created = gpu.device.stream_create().unwrap();
    for (value, stream) in [(3, StreamId(0)), (4, StreamId(1)), (5, StreamId(2)), (6, created)] {
        assert_eq!(gpu.device.capture_status(stream).unwrap(), None);
        gpu.device.fill_async(memory, value, MIB, stream).unwrap();
        gpu.assert_filled(memory, MIB, value, stream);
    }
    gpu.device.stream_destroy(created).unwrap();
    gpu.device.free(memory).unwrap();
}

#[test]
fn misuse_is_named_as_the_driver_names_it() {
    let Some(gpu) = gpu() else { return };
    let error = gpu.device.free(4096).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::Misuse, "{error}");
    assert!(error.detail.contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
}

#[test]
fn a_panic_in_a_function_of_the_host_stays_there() {
    let Some(gpu) = gpu() else { return };
    let stream = gpu.device.stream_create().unwrap();
    gpu.device.host_function(stream, Box::new(|| panic!("on purpose"))).unwrap();
    gpu.device.stream_synchronize(stream).unwrap();
    gpu.device.stream_destroy(stream).unwrap();
}
