//! Memory of the device, beyond the cases for every device.

use std::sync::Arc;

use plugalloc::device::Device;
use plugalloc::device::cuda::CudaMachine;
use plugalloc::device::cuda::report::report;
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{MIB, StreamId};
use plugalloc::{Allocator, Config};

use crate::{GPU, gpu};

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
fn memory_for_network_cards_is_made_where_the_device_can() {
    let Some(gpu) = gpu() else { return };
    let able = gpu.device.capabilities().rdma;
    let config = Config::parse("gpu_direct_rdma:True").unwrap();
    let device = Arc::clone(&gpu.device) as Arc<dyn Device>;
    let allocator = match Allocator::new(vec![device], config) {
        Ok(allocator) => allocator,
        Err(error) => {
            assert!(!able, "{error}");
            println!("{error}");
            return;
        }
    };
    assert!(able);
    let at = allocator.allocate(GPU, 20 * MIB, StreamId::DEFAULT).unwrap();
    gpu.device.fill_async(at, 3, 20 * MIB, StreamId::DEFAULT).unwrap();
    gpu.assert_filled(at, 20 * MIB, 3, StreamId::DEFAULT);
    allocator.free(at).unwrap();
    allocator.is_quiescent().unwrap();
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
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { gpu.device.copy_async(0, 0, 0, StreamId::DEFAULT) }.unwrap();
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
