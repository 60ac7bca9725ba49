//! The simulated device where the kernel refuses further mappings. A test program of its own,
//! because nothing else in the process can map memory meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

use plugalloc::device::Device;
use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, GRANULE, StreamId};

#[test]
fn running_out_of_mappings_is_told_and_cured_by_unmapping() {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let limit: u64 = limit.trim().parse().unwrap();
    if limit > 200_000 {
        println!("skipped: vm.max_map_count is {limit}, and this would take long");
        return;
    }
    let device = SimMachine::new(SimOptions::default()).unwrap().device(0);
    let handle = device.create(GRANULE).unwrap();
    let at = device.reserve(2 * limit * GRANULE).unwrap();
    let mut mapped = 0;
    // One granule mapped, one not: the kernel can join none of them.
    let place = |index: u64| -> Address { at + 2 * index * GRANULE };
    let error = loop {
        match device.map(place(mapped), GRANULE, handle) {
            Ok(()) => mapped += 1,
            Err(error) => break error,
        }
    };
    assert!(mapped < limit, "{mapped} mappings of {limit}");
    assert_eq!(error.kind, DeviceErrorKind::Other, "the device itself has memory: {error}");
    assert!(error.to_string().contains("vm.max_map_count"), "{error}");
    for index in 0..8 {
        device.unmap(place(index), GRANULE).unwrap();
    }
    device.map(place(mapped), GRANULE, handle).unwrap();
    device.set_access(place(mapped), GRANULE).unwrap();
    device.fill_async(place(mapped), 1, GRANULE, StreamId::DEFAULT).unwrap();
}
