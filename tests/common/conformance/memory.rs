//! Cases about memory: what exists, where it is mapped, and that it keeps its bytes.

use plugalloc::device::{Device, HandleId};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, Bytes, MIB};

use super::{Mapped, granularity, read, write};

pub(crate) fn memory_in_use_is_missing_from_the_free_memory(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let bytes = 32 * granularity;
    let before = device.memory_info().unwrap();
    assert!(before.free <= before.total, "{before:?}");
    let handle = device.create(bytes).unwrap();
    let during = device.memory_info().unwrap();
    assert_eq!(during.total, before.total);
    assert!(during.free + bytes <= before.free, "{during:?} after {before:?}");
    device.release(handle).unwrap();
    assert!(device.memory_info().unwrap().free >= during.free + bytes);
}

pub(crate) fn reservations_are_aligned_and_apart(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let bytes = 3 * granularity;
    let mut starts: Vec<Address> = (0..8).map(|_| device.reserve(bytes).unwrap()).collect();
    starts.sort_unstable();
    for pair in starts.windows(2) {
        assert!(pair[0] + bytes <= pair[1], "{starts:x?}");
    }
    for start in starts {
        assert_eq!(start % granularity, 0);
        device.free_address(start, bytes).unwrap();
    }
}

pub(crate) fn mapped_memory_keeps_what_is_written(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, 2 * granularity);
    let last = mapped.at + mapped.bytes - 4;
    write(device, mapped.at, &[1, 2, 3, 4]);
    write(device, last, &[5, 6, 7, 8]);
    assert_eq!(read(device, mapped.at, 4), [1, 2, 3, 4]);
    assert_eq!(read(device, last, 4), [5, 6, 7, 8]);
    mapped.end(device);
}

pub(crate) fn a_handle_shows_the_same_bytes_at_two_addresses(device: &dyn Device) {
    let Some(bytes) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, bytes);
    let alias = device.reserve(bytes).unwrap();
    device.map(alias, bytes, mapped.handle).unwrap();
    device.set_access(alias, bytes).unwrap();
    write(device, mapped.at + 100, b"through the first");
    assert_eq!(read(device, alias + 100, 17), b"through the first");
    write(device, alias + 100, b"by way of another");
    assert_eq!(read(device, mapped.at + 100, 17), b"by way of another");
    device.unmap(alias, bytes).unwrap();
    assert_eq!(read(device, mapped.at + 100, 17), b"by way of another");
    device.free_address(alias, bytes).unwrap();
    mapped.end(device);
}

pub(crate) fn a_handle_keeps_its_bytes_when_it_moves(device: &dyn Device) {
    let Some(bytes) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, bytes);
    write(device, mapped.at, b"moving");
    device.unmap(mapped.at, bytes).unwrap();
    let other = Mapped::new(device, bytes);
    write(device, other.at, b"in its place");
    let elsewhere = device.reserve(bytes).unwrap();
    device.map(elsewhere, bytes, mapped.handle).unwrap();
    device.set_access(elsewhere, bytes).unwrap();
    assert_eq!(read(device, elsewhere, 6), b"moving");
    device.unmap(elsewhere, bytes).unwrap();
    device.free_address(elsewhere, bytes).unwrap();
    device.free_address(mapped.at, bytes).unwrap();
    device.release(mapped.handle).unwrap();
    other.end(device);
}

pub(crate) fn neighbouring_mappings_are_one_span(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let sizes = [granularity, 3 * granularity, granularity];
    let whole: Bytes = sizes.iter().sum();
    let at = device.reserve(whole).unwrap();
    let handles: Vec<HandleId> = sizes.iter().map(|&size| device.create(size).unwrap()).collect();
    let mut next = at;
    for (&handle, &size) in handles.iter().zip(&sizes) {
        device.map(next, size, handle).unwrap();
        next += size;
    }
    device.set_access(at, whole).unwrap();
    write(device, at + granularity - 3, b"across");
    assert_eq!(read(device, at + granularity - 3, 6), b"across");
    device.unmap(at, whole).unwrap();
    device.free_address(at, whole).unwrap();
    for handle in handles {
        device.release(handle).unwrap();
    }
}

pub(crate) fn released_memory_lives_on_while_it_is_mapped(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, 32 * granularity);
    write(device, mapped.at, b"alive");
    device.release(mapped.handle).unwrap();
    let during = device.memory_info().unwrap();
    assert_eq!(read(device, mapped.at, 5), b"alive");
    device.unmap(mapped.at, mapped.bytes).unwrap();
    let after = device.memory_info().unwrap();
    assert!(after.free >= during.free + mapped.bytes, "{after:?} after {during:?}");
    device.free_address(mapped.at, mapped.bytes).unwrap();
}

pub(crate) fn a_handle_is_mapped_whole_or_not_at_all(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let bytes = 2 * granularity;
    let at = device.reserve(bytes).unwrap();
    let handle = device.create(bytes).unwrap();
    assert!(device.map(at, granularity, handle).is_err());
    // The failed call has changed nothing.
    device.map(at, bytes, handle).unwrap();
    device.set_access(at, bytes).unwrap();
    Mapped { handle, at, bytes }.end(device);
}

pub(crate) fn nothing_is_mapped_over_a_mapping(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let at = device.reserve(2 * granularity).unwrap();
    let low = device.create(granularity).unwrap();
    let wide = device.create(2 * granularity).unwrap();
    device.map(at + granularity, granularity, low).unwrap();
    device.set_access(at + granularity, granularity).unwrap();
    write(device, at + granularity, b"first");
    assert!(device.map(at + granularity, granularity, low).is_err());
    assert!(device.map(at, 2 * granularity, wide).is_err());
    assert_eq!(read(device, at + granularity, 5), b"first");
    device.unmap(at + granularity, granularity).unwrap();
    device.free_address(at, 2 * granularity).unwrap();
    device.release(low).unwrap();
    device.release(wide).unwrap();
}

pub(crate) fn a_mapping_is_unmapped_whole_or_not_at_all(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, 2 * granularity);
    write(device, mapped.at, b"whole");
    assert!(device.unmap(mapped.at, granularity).is_err());
    assert!(device.unmap(mapped.at + granularity, granularity).is_err());
    assert_eq!(read(device, mapped.at, 5), b"whole");
    mapped.end(device);
}

pub(crate) fn a_reservation_in_use_is_not_freed(device: &dyn Device) {
    let Some(bytes) = granularity(device) else {
        return;
    };
    let mapped = Mapped::new(device, bytes);
    assert!(device.free_address(mapped.at, bytes).is_err());
    write(device, mapped.at, b"kept");
    assert_eq!(read(device, mapped.at, 4), b"kept");
    mapped.end(device);
}

pub(crate) fn a_handle_larger_than_the_device_is_out_of_memory(device: &dyn Device) {
    let Some(granularity) = granularity(device) else {
        return;
    };
    let total = device.memory_info().unwrap().total;
    let bytes = (total / granularity + 1) * granularity;
    let error = device.create(bytes).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::OutOfMemory, "{error}");
    assert_eq!(device.id().0, error.device);
}

pub(crate) fn malloc_gives_aligned_memory_that_keeps_its_bytes(device: &dyn Device) {
    let first = device.malloc(1000).unwrap();
    let second = device.malloc(5 * MIB).unwrap();
    assert_eq!(first % 512, 0);
    assert_eq!(second % 512, 0);
    assert!(first + 1000 <= second || second + 5 * MIB <= first);
    write(device, first, b"small");
    write(device, second + 5 * MIB - 5, b"large");
    assert_eq!(read(device, first, 5), b"small");
    assert_eq!(read(device, second + 5 * MIB - 5, 5), b"large");
    device.free(first).unwrap();
    device.free(second).unwrap();
}

pub(crate) fn malloc_of_more_than_the_device_is_out_of_memory(device: &dyn Device) {
    let total = device.memory_info().unwrap().total;
    let error = device.malloc(total + MIB).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::OutOfMemory, "{error}");
}
