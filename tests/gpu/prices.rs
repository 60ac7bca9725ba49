//! What the calls cost here, for comparison with the simulator's price list. Nothing is asserted:
//! times are the machine's.

use std::time::Instant;

use cudarc::driver::sys;
use plugalloc::device::Device;
use plugalloc::units::{Bytes, MIB, StreamId};
use sys::CUmemAllocationHandleType as HandleType;
use sys::CUresult::CUDA_SUCCESS;

use crate::contexts::with_primary_context;
use crate::{GPU, gpu};

/// The calls of one handle's life, in their order.
const CALLS: &str = "reserve, create, map, set access, unmap, release, free address";

/// The times of some calls, round by round.
#[derive(Default)]
struct Times {
    columns: Vec<Vec<f64>>,
    next: usize,
}

impl Times {
    fn take<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        let taken = start.elapsed().as_secs_f64() * 1e6;
        if self.columns.len() == self.next {
            self.columns.push(Vec::new());
        }
        self.columns[self.next].push(taken);
        self.next += 1;
        result
    }

    fn end_round(&mut self) {
        self.next = 0;
    }

    fn medians(mut self) -> String {
        let median = |column: &mut Vec<f64>| {
            column.sort_by(f64::total_cmp);
            format!("{:.1}", column[column.len() / 2])
        };
        self.columns.iter_mut().map(median).collect::<Vec<_>>().join(", ")
    }
}

fn through_the_device(device: &dyn Device, bytes: Bytes) -> String {
    let mut times = Times::default();
    for _ in 0..31 {
        let at = times.take(|| device.reserve(bytes)).unwrap();
        let handle = times.take(|| device.create(bytes)).unwrap();
        times.take(|| device.map(at, bytes, handle)).unwrap();
        times.take(|| device.set_access(at, bytes)).unwrap();
        times.take(|| device.unmap(at, bytes)).unwrap();
        times.take(|| device.release(handle)).unwrap();
        times.take(|| device.free_address(at, bytes)).unwrap();
        times.end_round();
    }
    times.medians()
}

/// The same calls with nothing in between, for a kind of handle.
fn by_the_driver(bytes: usize, handles: HandleType, rdma: u8) -> String {
    // SAFETY: zeros are the neutral value of every field.
    let mut made: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    made.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    made.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    made.requestedHandleTypes = handles;
    made.allocFlags.gpuDirectRDMACapable = rdma;
    let access = sys::CUmemAccessDesc {
        location: made.location,
        flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    let mut times = Times::default();
    let (mut at, mut handle) = (0, 0);
    for _ in 0..31 {
        let (at_place, handle_place) = (&raw mut at, &raw mut handle);
        // SAFETY: writes one address.
        let code = times.take(|| unsafe { sys::cuMemAddressReserve(at_place, bytes, 0, 0, 0) });
        assert_eq!(code, CUDA_SUCCESS);
        // SAFETY: reads the properties, and writes one handle.
        let code = times.take(|| unsafe { sys::cuMemCreate(handle_place, bytes, &made, 0) });
        assert_eq!(code, CUDA_SUCCESS);
        // SAFETY: the range and the handle were made above, and are as long.
        let code = times.take(|| unsafe { sys::cuMemMap(at, bytes, 0, handle, 0) });
        assert_eq!(code, CUDA_SUCCESS);
        // SAFETY: the range was mapped above; reads one descriptor.
        let code = times.take(|| unsafe { sys::cuMemSetAccess(at, bytes, &access, 1) });
        assert_eq!(code, CUDA_SUCCESS);
        // SAFETY: nobody uses the memory.
        let code = times.take(|| unsafe { sys::cuMemUnmap(at, bytes) });
        assert_eq!(code, CUDA_SUCCESS);
        // SAFETY: the handle was made above, and is given back once.
        let code = times.take(|| unsafe { sys::cuMemRelease(handle) });
        assert_eq!(code, CUDA_SUCCESS);
        // SAFETY: nothing is mapped in the range any more.
        let code = times.take(|| unsafe { sys::cuMemAddressFree(at, bytes) });
        assert_eq!(code, CUDA_SUCCESS);
        times.end_round();
    }
    times.medians()
}

#[test]
fn prices_of_handles_are_printed() {
    let Some(gpu) = gpu() else { return };
    let posix = HandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    let kinds = [
        ("plain", HandleType::CU_MEM_HANDLE_TYPE_NONE, 0),
        ("RDMA", HandleType::CU_MEM_HANDLE_TYPE_NONE, 1),
        ("descriptor", posix, 0),
        ("descriptor and RDMA", posix, 1),
    ];
    println!("us: {CALLS}");
    with_primary_context(|| {
        for bytes in [2 * MIB, 16 * MIB, 64 * MIB, 256 * MIB] {
            let size = bytes / MIB;
            for (name, handles, rdma) in kinds {
                println!("{size} MiB, {name}: {}", by_the_driver(bytes as usize, handles, rdma));
            }
            println!("{size} MiB, the device: {}", through_the_device(&*gpu.device, bytes));
        }
    });
    let outside = through_the_device(&*gpu.device, 2 * MIB);
    println!("2 MiB, the device, no context current: {outside}");
}

#[test]
fn prices_of_small_calls_are_printed() {
    let Some(gpu) = gpu() else { return };
    println!("no context current:");
    print_small_prices(&*gpu.device);
    println!("primary context current:");
    with_primary_context(|| print_small_prices(&*gpu.device));
}

fn print_small_prices(device: &dyn Device) {
    let stream = device.stream_create().unwrap();
    let event = device.event_create().unwrap();
    price("capture status", || assert!(device.capture_status(stream).unwrap().is_none()));
    price("event record", || device.event_record(event, stream).unwrap());
    device.stream_synchronize(stream).unwrap();
    price("event query", || assert!(device.event_query(event).unwrap()));
    price("stream wait", || device.stream_wait_event(stream, event).unwrap());
    price("memory info", || assert!(device.memory_info().unwrap().free > 0));
    device.stream_synchronize(stream).unwrap();
    device.event_destroy(event).unwrap();
    device.stream_destroy(stream).unwrap();
}

fn price(name: &str, call: impl Fn()) {
    const ROUNDS: u32 = 2000;
    (0..ROUNDS / 10).for_each(|_| call());
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| call());
    let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS);
    println!("{name}: {each:.0} ns");
}

#[test]
fn the_price_of_a_hot_pair_is_printed() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    for bytes in [512, 64 << 10, MIB, 32 * MIB] {
        println!("malloc and free of {bytes} bytes:");
        price("pair", || {
            let at = allocator.allocate(GPU, bytes, StreamId::DEFAULT).unwrap();
            allocator.free(at).unwrap();
        });
    }
}
