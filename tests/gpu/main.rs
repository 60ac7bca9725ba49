//! The CUDA device, and the allocator over it, on a real GPU.
//!
//! Where there is none, every test passes at once, and why they are skipped is printed. The tests
//! take turns, because they look at the free memory of the device, and each expects to find it as
//! it left it. The executable needs nothing of the machine that built it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "../common/blocked.rs"]
mod blocked;
#[path = "../common/conformance/mod.rs"]
mod conformance;
#[path = "../common/scenarios/mod.rs"]
mod scenarios;

mod apart;
mod brush;
mod captures;
mod contexts;
mod devices;
mod engine;
mod history;
mod interop;
mod ipc;
mod kernels;
mod memory;
mod peers;
mod pools;
mod prices;
mod processes;
mod sanitizer;
mod sharing;
mod threads;
mod work;

use std::io::Write;
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use conformance::conformance_cases;
use parking_lot::{Mutex, MutexGuard};
use plugalloc::config::Config;
use plugalloc::device::cuda::{CudaDevice, CudaMachine};
use plugalloc::device::{Device, DeviceResult};
use plugalloc::units::{Address, Bytes, MIB, StreamId};
use plugalloc::{Allocator, DeviceId};

/// The device that the tests use.
pub(crate) const GPU: DeviceId = DeviceId(0);

/// A GPU that nobody else uses meanwhile.
pub(crate) struct Gpu {
    pub(crate) device: Arc<CudaDevice>,
    _turn: MutexGuard<'static, ()>,
}

/// The first GPU, or `None` with a printed reason.
pub(crate) fn gpu() -> Option<Gpu> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock();
    match CudaMachine::open() {
        Ok(machine) => Some(Gpu { device: Arc::clone(&machine.devices()[0]), _turn: turn }),
        Err(error) => {
            static TOLD: Once = Once::new();
            // Past the capture of what passing tests print, and once for all of them.
            TOLD.call_once(|| drop(writeln!(std::io::stderr(), "skipped, all of it: {error}")));
            None
        }
    }
}

impl Gpu {
    /// An allocator over this device alone, with the configuration of the environment.
    pub(crate) fn allocator(&self) -> Allocator {
        let device = Arc::clone(&self.device) as Arc<dyn Device>;
        Allocator::new(vec![device], Config::from_environment().unwrap()).unwrap()
    }

    /// The device's free memory.
    pub(crate) fn free_memory(&self) -> Bytes {
        self.device.memory_info().unwrap().free
    }

    /// Queues a function of the host that keeps the stream busy for a while.
    pub(crate) fn keep_busy(&self, stream: StreamId, milliseconds: u64) {
        let sleep = move || thread::sleep(Duration::from_millis(milliseconds));
        self.device.host_function(stream, Box::new(sleep)).unwrap();
    }

    /// Whether everything queued on the stream has run.
    pub(crate) fn is_idle(&self, stream: StreamId) -> bool {
        let event = self.device.event_create().unwrap();
        self.device.event_record(event, stream).unwrap();
        let idle = self.device.event_query(event).unwrap();
        self.device.event_destroy(event).unwrap();
        idle
    }

    /// Asserts that every byte of a span is `value`, once `stream` has run.
    pub(crate) fn assert_filled(&self, at: Address, bytes: Bytes, value: u8, stream: StreamId) {
        let found = read_on(&*self.device, at, bytes, stream).unwrap();
        let wrong = found.iter().position(|&byte| byte != value);
        if let Some(offset) = wrong {
            panic!("byte {offset} of {bytes} at {at:#x} is {}, not {value}", found[offset]);
        }
    }
}

/// Reads a span after what is queued on `stream`.
pub(crate) fn read_on(
    device: &dyn Device,
    at: Address,
    bytes: Bytes,
    stream: StreamId,
) -> DeviceResult<Vec<u8>> {
    let mut found = vec![0u8; bytes as usize];
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(found.as_mut_ptr() as Address, at, bytes, stream) }?;
    device.stream_synchronize(stream)?;
    Ok(found)
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }

    /// A request of 1 byte to 64 MiB, small ones as often as large ones.
    pub(crate) fn size(&mut self) -> Bytes {
        let order = self.below(27);
        (1 << order) + self.below(1 << order)
    }
}

macro_rules! on_the_gpu {
    ($($case:ident,)*) => {
        mod contract {
            $(
                #[test]
                fn $case() {
                    let Some(gpu) = crate::gpu() else { return };
                    crate::conformance::$case(&*gpu.device);
                    // What a case leaves behind would be missing from the free memory.
                    let before = gpu.free_memory();
                    crate::conformance::$case(&*gpu.device);
                    let after = gpu.free_memory();
                    assert!(after + crate::MIB > before, "{} bytes leaked", before - after);
                }
            )*
        }
    };
}
conformance_cases!(on_the_gpu);
