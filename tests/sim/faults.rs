//! Failures on request, and the capacity.

use plugalloc::device::{Device, HandleId, HandleType, IpcHandle, ShareableHandle};
use plugalloc::error::{DeviceErrorKind, DriverCall};
use plugalloc::units::{GIB, GRANULE};

use super::{STREAM, assert_refused, assert_untouched, byte, device, mapped};

#[test]
fn the_nth_call_fails_and_only_that() {
    let device = device();
    device.fail_nth(DriverCall::Create, 2);
    let first = device.create(GRANULE).unwrap();
    device.reserve(GRANULE).unwrap();
    let failed = device.create(GRANULE);
    assert_refused(failed, DeviceErrorKind::OutOfMemory, "Create failed on device 0");
    let third = device.create(GRANULE).unwrap();
    device.release(first).unwrap();
    device.release(third).unwrap();
    assert_untouched(&device);
}

#[test]
fn every_call_fails_until_the_faults_are_cleared() {
    let device = device();
    device.fail_every(DriverCall::Malloc);
    device.fail_every_with(DriverCall::Reserve, DeviceErrorKind::Lost);
    for _ in 0..3 {
        assert_refused(device.malloc(1), DeviceErrorKind::OutOfMemory, "on request");
        assert_refused(device.reserve(GRANULE), DeviceErrorKind::Lost, "on request");
    }
    device.clear_faults();
    device.malloc(1).unwrap();
    device.reserve(GRANULE).unwrap();
}

#[test]
fn orders_for_one_call_count_side_by_side() {
    let device = device();
    device.fail_nth(DriverCall::EventCreate, 1);
    device.fail_nth_with(DriverCall::EventCreate, 3, DeviceErrorKind::Lost);
    assert_refused(device.event_create(), DeviceErrorKind::Other, "on request");
    device.event_create().unwrap();
    assert_refused(device.event_create(), DeviceErrorKind::Lost, "on request");
    device.event_create().unwrap();
}

#[test]
fn a_failed_call_has_changed_nothing() {
    let device = device();
    let (at, handle) = mapped(&device, GRANULE);
    device.fill_async(at, 7, 1, STREAM).unwrap();
    for call in [DriverCall::Unmap, DriverCall::Release, DriverCall::FreeAddress, DriverCall::Fill]
    {
        device.fail_nth(call, 1);
    }
    assert!(device.fill_async(at, 8, 1, STREAM).is_err());
    assert!(device.unmap(at, GRANULE).is_err());
    assert!(device.release(handle).is_err());
    assert_eq!(byte(&device, at), 7);
    device.unmap(at, GRANULE).unwrap();
    assert!(device.free_address(at, GRANULE).is_err());
    device.fail_nth(DriverCall::Map, 1);
    assert!(device.map(at, GRANULE, handle).is_err());
    device.map(at, GRANULE, handle).unwrap();
    device.fail_nth(DriverCall::SetAccess, 1);
    assert!(device.set_access(at, GRANULE).is_err());
    assert!(device.fill_async(at, 1, 1, STREAM).is_err());
    device.unmap(at, GRANULE).unwrap();
    device.release(handle).unwrap();
    device.free_address(at, GRANULE).unwrap();
    assert_untouched(&device);
}

#[test]
fn every_kind_of_call_can_fail() {
    let device = device();
    for call in DriverCall::ALL {
        device.fail_every(call);
    }
    let at = 1 << 40;
    let (stream, event) = (STREAM, plugalloc::device::EventId(0));
    let graph = plugalloc::device::CaptureId(1);
    let on_request = |what: Result<(), plugalloc::error::DeviceError>, call| {
        let error = what.unwrap_err();
        assert_eq!((error.call, error.detail.as_str()), (call, "failed on request"));
    };
    on_request(device.memory_info().map(drop), DriverCall::MemoryInfo);
    on_request(device.map(at, 1, HandleId(0)), DriverCall::Map);
    on_request(device.set_access(at, 1), DriverCall::SetAccess);
    on_request(device.free(at), DriverCall::Free);
    on_request(device.stream_create().map(drop), DriverCall::StreamCreate);
    on_request(device.stream_destroy(stream), DriverCall::StreamDestroy);
    on_request(device.stream_synchronize(stream), DriverCall::StreamSynchronize);
    on_request(device.stream_wait_event(stream, event), DriverCall::StreamWaitEvent);
    on_request(device.synchronize(), DriverCall::DeviceSynchronize);
    on_request(device.event_destroy(event), DriverCall::EventDestroy);
    on_request(device.event_record(event, stream), DriverCall::EventRecord);
    on_request(device.event_query(event).map(drop), DriverCall::EventQuery);
    on_request(device.event_synchronize(event), DriverCall::EventSynchronize);
    on_request(device.capture_begin(stream).map(drop), DriverCall::CaptureBegin);
    on_request(device.capture_end(stream).map(drop), DriverCall::CaptureEnd);
    on_request(device.capture_status(stream).map(drop), DriverCall::CaptureStatus);
    on_request(device.graph_launch(graph, stream), DriverCall::GraphLaunch);
    on_request(device.graph_destroy(graph), DriverCall::GraphDestroy);
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    on_request(unsafe { device.copy_async(at, at, 1, stream) }, DriverCall::Copy);
    on_request(device.host_function(stream, Box::new(|| ())), DriverCall::HostFunction);
    on_request(device.enable_peer_access(device.id()), DriverCall::EnablePeer);
    let (handle, file) = (HandleId(0), HandleType::FileDescriptor);
    on_request(device.export_handle(handle, file).map(drop), DriverCall::ExportHandle);
    let shared = ShareableHandle::Fabric([0; 64]);
    on_request(device.import_handle(&shared).map(drop), DriverCall::ImportHandle);
    on_request(device.ipc_get_handle(at).map(drop), DriverCall::IpcGetHandle);
    let legacy = IpcHandle([0; 64]);
    on_request(device.ipc_open_handle(legacy).map(drop), DriverCall::IpcOpenHandle);
    on_request(device.ipc_close_handle(at), DriverCall::IpcCloseHandle);
}

#[test]
fn memory_runs_out_at_the_capacity() {
    let device = device();
    let handle = device.create(GIB - GRANULE).unwrap();
    let refused = device.create(2 * GRANULE);
    assert_refused(refused, DeviceErrorKind::OutOfMemory, "4194304 bytes asked for, 2097152 of");
    let last = device.malloc(1).unwrap();
    assert_eq!(device.memory_info().unwrap().free, 0);
    assert_refused(device.malloc(1), DeviceErrorKind::OutOfMemory, "0 of");
    device.free(last).unwrap();
    device.release(handle).unwrap();
    assert_untouched(&device);
}

#[test]
fn malloc_takes_whole_granules_of_the_capacity() {
    let device = device();
    device.set_capacity(2 * GRANULE - 1);
    let first = device.malloc(1).unwrap();
    assert_refused(device.malloc(1), DeviceErrorKind::OutOfMemory, "of 4194303 free");
    device.free(first).unwrap();
    device.malloc(GRANULE).unwrap();
}

#[test]
fn the_capacity_can_shrink_below_what_is_in_use_and_grow_again() {
    let device = device();
    let handle = device.create(8 * GRANULE).unwrap();
    device.set_capacity(4 * GRANULE);
    let info = device.memory_info().unwrap();
    assert_eq!((info.free, info.total), (0, 4 * GRANULE));
    assert!(device.create(GRANULE).is_err());
    device.set_capacity(9 * GRANULE);
    let more = device.create(GRANULE).unwrap();
    assert!(device.create(GRANULE).is_err());
    device.release(handle).unwrap();
    device.release(more).unwrap();
    assert_untouched(&device);
}
