//! The ledger: calls counted, priced by the handle, and memory in use.

use std::sync::Arc;

use plugalloc::device::sim::{SimDevice, SimOptions};
use plugalloc::device::{Device, DeviceResult, HandleId};
use plugalloc::error::{DeviceErrorKind, DriverCall, Error};
use plugalloc::units::{GRANULE, MIB};
use plugalloc::{Allocator, Config, DeviceId};

use super::{STREAM, assert_refused, device, device_with, mapped};

/// Asserts that two sums of microseconds agree to the nanosecond.
#[track_caller]
fn assert_microseconds(found: f64, expected: f64) {
    assert!((found - expected).abs() < 0.0005, "{found} instead of {expected}");
}

#[test]
fn calls_are_counted_and_priced() {
    let device = device();
    let (at, handle) = mapped(&device, GRANULE);
    let ledger = device.ledger();
    for call in [DriverCall::Reserve, DriverCall::Create, DriverCall::Map, DriverCall::SetAccess] {
        assert_eq!(ledger.calls(call), 1);
    }
    assert_eq!(ledger.total_calls, 4);
    assert_microseconds(ledger.microseconds, 0.9 + 13.6 + 1.2 + 28.1);
    device.unmap(at, GRANULE).unwrap();
    device.release(handle).unwrap();
    device.free_address(at, GRANULE).unwrap();
    let after = device.ledger();
    assert_microseconds(after.microseconds - ledger.microseconds, 18.4 + 13.2 + 0.7);
}

#[test]
fn opening_and_unmapping_cost_by_the_handle() {
    let device = device();
    let bytes = 20 * MIB;
    let at = device.reserve(4 * bytes).unwrap();
    for place in 0..4 {
        let handle = device.create(bytes).unwrap();
        device.map(at + place * bytes, bytes, handle).unwrap();
    }
    device.reset_ledger();
    device.set_access(at, 4 * bytes).unwrap();
    assert_microseconds(device.ledger().microseconds, 4.0 * 28.1);
    device.unmap(at, 4 * bytes).unwrap();
    assert_microseconds(device.ledger().microseconds, 4.0 * (28.1 + 19.0));
    assert_eq!(device.ledger().total_calls, 2);
}

#[test]
fn events_and_memory_info_are_priced() {
    let device = device();
    let event = device.event_create().unwrap();
    device.hold(STREAM).unwrap();
    device.event_record(event, STREAM).unwrap();
    device.stream_wait_event(STREAM, event).unwrap();
    assert!(!device.event_query(event).unwrap());
    device.resume(STREAM).unwrap();
    assert!(device.event_query(event).unwrap());
    device.memory_info().unwrap();
    let expected = 0.3 + 0.15 + 0.14 + 1.3 + 0.42 + 6.1;
    assert_microseconds(device.ledger().microseconds, expected);
}

#[test]
fn failed_calls_are_counted_and_cost_nothing() {
    let device = device();
    device.fail_nth(DriverCall::Create, 1);
    assert!(device.create(GRANULE).is_err());
    assert!(device.create(1).is_err());
    let ledger = device.ledger();
    assert_eq!((ledger.calls(DriverCall::Create), ledger.total_calls), (2, 2));
    assert_microseconds(ledger.microseconds, 0.0);
}

#[test]
fn memory_in_use_counts_until_it_is_neither_owned_nor_mapped() {
    let device = device();
    let (at, handle) = mapped(&device, 4 * GRANULE);
    let small = device.malloc(512).unwrap();
    assert_eq!(device.ledger().used, 5 * GRANULE);
    device.release(handle).unwrap();
    assert_eq!(device.ledger().used, 5 * GRANULE);
    device.unmap(at, 4 * GRANULE).unwrap();
    assert_eq!(device.ledger().used, GRANULE);
    device.free(small).unwrap();
    assert_eq!(device.ledger().used, 0);
    device.create(GRANULE).unwrap();
    assert_eq!(device.ledger().used_peak, 5 * GRANULE);
}

#[test]
fn a_second_mapping_uses_no_memory() {
    let device = device();
    let (_, handle) = mapped(&device, GRANULE);
    let alias = device.reserve(GRANULE).unwrap();
    device.map(alias, GRANULE, handle).unwrap();
    assert_eq!(device.ledger().used, GRANULE);
    device.release(handle).unwrap();
    device.unmap(alias, GRANULE).unwrap();
    assert_eq!(device.ledger().used, GRANULE);
}

#[test]
fn a_reset_starts_the_peak_from_what_is_in_use() {
    let device = device();
    let (first, second) = (device.create(GRANULE).unwrap(), device.create(GRANULE).unwrap());
    device.release(second).unwrap();
    device.reset_ledger();
    let ledger = device.ledger();
    assert_eq!((ledger.used, ledger.used_peak), (GRANULE, GRANULE));
    assert_eq!((ledger.total_calls, ledger.calls(DriverCall::Create)), (0, 0));
    device.release(first).unwrap();
}

#[test]
fn memory_that_network_cards_reach_is_dearer_to_map() {
    let cost = |made: fn(&SimDevice) -> DeviceResult<HandleId>| {
        let device = device();
        let (at, handle) = (device.reserve(GRANULE).unwrap(), made(&device).unwrap());
        device.map(at, GRANULE, handle).unwrap();
        device.unmap(at, GRANULE).unwrap();
        device.ledger().microseconds
    };
    let (plain, rdma) =
        (cost(|device| device.create(GRANULE)), cost(|device| device.create_for_rdma(GRANULE)));
    assert_microseconds(rdma - plain, 2.0 * 5.6);
    let device = device_with(SimOptions { rdma: false, ..SimOptions::default() });
    let refused = device.create_for_rdma(GRANULE);
    assert_refused(refused, DeviceErrorKind::Unsupported, "no network card");
}

#[test]
fn an_allocator_asks_for_network_cards_only_where_it_was_told_to() {
    let cost = |conf: &str| {
        let device = device();
        let config = Config::parse(conf).unwrap();
        let allocator = Allocator::new(vec![device.clone() as Arc<dyn Device>], config).unwrap();
        let at = allocator.allocate(DeviceId(0), 64 << 20, STREAM).unwrap();
        allocator.free(at).unwrap();
        allocator.is_quiescent().unwrap();
        device.ledger().microseconds
    };
    assert_eq!(cost(""), cost("gpu_direct_rdma:False"));
    assert!(cost("gpu_direct_rdma:True") > cost("") + 5.0);

    let unable = device_with(SimOptions { rdma: false, ..SimOptions::default() });
    let open = |conf: &str| {
        let devices = vec![Arc::clone(&unable) as Arc<dyn Device>];
        Allocator::new(devices, Config::parse(conf).unwrap())
    };
    let error = open("gpu_direct_rdma:True").unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("gpu_direct_rdma"), "{error}");
    open("gpu_direct_rdma:True,expandable_segments:False").unwrap().is_quiescent().unwrap();
}
