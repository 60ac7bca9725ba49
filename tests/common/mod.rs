//! What the tests of the allocator share: an allocator over a simulated machine, patterns in its
//! memory, and how a test ends.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;

use plugalloc::device::Device;
use plugalloc::device::sim::{Ledger, SimDevice, SimMachine, SimOptions};
use plugalloc::error::{Error, OutOfMemory, PointerFault, Result};
use plugalloc::units::{Address, Bytes, DeviceId, GRANULE, KIB, MIB, StreamId};
use plugalloc::{Allocator, Config, DeviceStatistics};

pub(crate) const GPU: DeviceId = DeviceId(0);
pub(crate) const A: StreamId = StreamId(0xa0);
pub(crate) const B: StreamId = StreamId(0xb0);
pub(crate) const C: StreamId = StreamId(0xc0);
/// A stream on which nothing is ever held: memory is looked at through it.
const READER: StreamId = StreamId(0xfeed);

/// An allocator over a simulated machine.
pub(crate) struct Rig {
    pub(crate) machine: SimMachine,
    pub(crate) allocator: Arc<Allocator>,
}

/// Options with a change.
pub(crate) fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

/// One device of `capacity` bytes.
pub(crate) fn capacity(capacity: Bytes) -> SimOptions {
    SimOptions { capacity, ..SimOptions::default() }
}

/// One device of `capacity` bytes without virtual memory management.
pub(crate) fn plain(capacity: Bytes) -> SimOptions {
    SimOptions { capacity, virtual_memory: false, ..SimOptions::default() }
}

impl Rig {
    pub(crate) fn new(options: SimOptions, config: Config) -> Rig {
        let machine = SimMachine::new(options).unwrap();
        let allocator = Arc::new(Allocator::new(machine.as_devices(), config).unwrap());
        Rig { machine, allocator }
    }

    /// One device of `bytes`, everything else by default.
    pub(crate) fn of(bytes: Bytes) -> Rig {
        Rig::new(capacity(bytes), Config::default())
    }

    pub(crate) fn device(&self) -> Arc<SimDevice> {
        self.machine.device(0)
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.device().ledger()
    }

    pub(crate) fn statistics(&self) -> DeviceStatistics {
        self.allocator.statistics(GPU).unwrap()
    }

    /// Allocates on the first device.
    pub(crate) fn try_allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        self.allocator.allocate(GPU, bytes, stream)
    }

    /// As [`try_allocate`](Rig::try_allocate), where it is expected to succeed.
    #[track_caller]
    pub(crate) fn allocate(&self, bytes: Bytes, stream: StreamId) -> Address {
        match self.try_allocate(bytes, stream) {
            Ok(address) => address,
            Err(error) => panic!("{bytes} bytes on {stream}: {error}"),
        }
    }

    /// The bytes with which a live allocation is served: at most an eighth more than its size
    /// class, which is checked.
    #[track_caller]
    pub(crate) fn served(&self, address: Address) -> i64 {
        let block = self.allocator.block(address).unwrap();
        let least = served(block.requested);
        let most = if block.requested > MIB { least } else { least + least / 8 };
        assert!((least..=most).contains(&block.bytes), "{block:?}");
        block.bytes as i64
    }

    #[track_caller]
    pub(crate) fn free(&self, address: Address) {
        if let Err(error) = self.allocator.free(address) {
            panic!("{error}");
        }
    }

    /// Queues filling the memory.
    #[track_caller]
    pub(crate) fn fill(&self, at: Address, value: u8, bytes: Bytes, stream: StreamId) {
        self.device().fill_async(at, value, bytes, stream).unwrap();
    }

    /// Fails unless all of the memory has this value now.
    #[track_caller]
    pub(crate) fn assert_filled(&self, at: Address, value: u8, bytes: Bytes) {
        let found = self.read(at, bytes);
        if let Some(place) = found.iter().position(|&byte| byte != value) {
            let byte = found[place];
            panic!("byte {place} of {bytes} at {at:#x} is {byte:#x} instead of {value:#x}");
        }
    }

    /// What is in the memory now.
    #[track_caller]
    pub(crate) fn read(&self, at: Address, bytes: Bytes) -> Vec<u8> {
        let mut found = vec![0u8; bytes as usize];
        let to = found.as_mut_ptr() as Address;
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { self.device().copy_async(to, at, bytes, READER) }.unwrap();
        found
    }

    /// The numbers of the out-of-memory error that this request ends with.
    #[track_caller]
    pub(crate) fn out_of_memory(&self, bytes: Bytes, stream: StreamId) -> OutOfMemory {
        match self.try_allocate(bytes, stream) {
            Err(Error::OutOfMemory(report)) => *report,
            other => panic!("{bytes} bytes on {stream} gave {other:?}"),
        }
    }

    /// How every test ends: nothing live, nothing pending, every invariant holds, and nothing is
    /// left on the devices once the cache is empty.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.allocator.process_events().unwrap();
        if let Err(error) = self.allocator.is_quiescent() {
            panic!("{error}");
        }
        self.allocator.empty_cache().unwrap();
        self.allocator.is_quiescent().unwrap();
        self.allocator.is_valid().unwrap();
        for device in self.machine.devices() {
            let used = device.ledger().used;
            assert_eq!(used, 0, "{device:?} still has {used} bytes in use");
        }
    }
}

/// A device of 8 MiB with handles of 2 MiB, on which A has a block of 2.5 MiB and one of 1.5 MiB
/// behind it.
pub(crate) fn two_blocks() -> (Rig, [Address; 2]) {
    let rig = Rig::new(capacity(8 * MIB), config(|c| c.max_handle = GRANULE));
    let blocks = [rig.allocate(2560 * KIB, A), rig.allocate(1536 * KIB, A)];
    assert_eq!(blocks[1], blocks[0] + 2560 * KIB);
    (rig, blocks)
}

/// The size at which a request is served: multiples of 512 bytes up to 16 KiB, then 16 sizes a
/// power of two up to 1 MiB, multiples of 4 KiB above.
pub(crate) fn served(bytes: Bytes) -> Bytes {
    let step = match bytes {
        0..=0x4000 => 512,
        0x4001..=MIB => bytes.next_power_of_two() / 32,
        _ => 4096,
    };
    bytes.next_multiple_of(step)
}

/// What is wrong with the pointer that the error is about.
#[track_caller]
pub(crate) fn fault<T: std::fmt::Debug>(result: Result<T>) -> PointerFault {
    match result {
        Err(Error::InvalidPointer(error)) => error.fault,
        other => panic!("not an error about a pointer: {other:?}"),
    }
}

/// A sequence of random numbers that its seed repeats (SplitMix64: Steele et al., 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The seed of `PLUGALLOC_SEED`, or this one; printed, so that a failed test shows it.
    pub(crate) fn seed(default: u64) -> u64 {
        let seed = std::env::var("PLUGALLOC_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(default);
        println!("PLUGALLOC_SEED={seed}");
        seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A size between 1 byte and `most`, small ones as likely as large ones.
    pub(crate) fn size(&mut self, most: Bytes) -> Bytes {
        let power = 1 << self.below(u64::from(most.ilog2()) + 2);
        1 + self.below(most.min(power))
    }
}

/// Sizes of both arenas.
pub(crate) const SIZES: [Bytes; 8] = [1, 512, 513, 100_000, MIB, MIB + 1, 5 * MIB, 33 * MIB];
