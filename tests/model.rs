//! Random operations against a model that knows only what must be true: blocks do not overlap, have
//! the size that was asked for, and keep what is written in them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{Random, Rig, config};
use plugalloc::device::Device;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{DeviceErrorKind, Error};
use plugalloc::units::{Address, Bytes, DeviceId, KIB, MIB, StreamId};

const DEVICES: u64 = 2;
const STREAMS: u64 = 4;
/// So much of a block carries a pattern.
const PATTERN_MAX: Bytes = 64 * KIB;

#[derive(Clone, Copy, Debug)]
struct Block {
    bytes: Bytes,
    /// Its bytes as served.
    served: Bytes,
    device: u64,
    value: u8,
}

struct Model {
    rig: Rig,
    random: Random,
    live: BTreeMap<Address, Block>,
    held: Vec<(u64, StreamId)>,
    steps: u64,
    failures: u64,
}

impl Model {
    fn new(virtual_memory: bool, seed: u64) -> Model {
        let options = SimOptions {
            devices: DEVICES as usize,
            capacity: 96 * MIB,
            virtual_memory,
            ..SimOptions::default()
        };
        let mut random = Random::new(seed);
        let steal = random.below(4) > 0;
        let rig = Rig::new(options, config(|c| c.steal = steal));
        Model { rig, random, live: BTreeMap::new(), held: Vec::new(), steps: 0, failures: 0 }
    }

    fn stream(&mut self) -> StreamId {
        StreamId(self.random.below(STREAMS))
    }

    fn device(&self, device: u64) -> std::sync::Arc<plugalloc::device::sim::SimDevice> {
        self.rig.machine.device(device as usize)
    }

    /// Only memory may be lacking; and nobody waits for work that this thread holds back.
    fn expect_lack(&mut self, error: &Error) {
        self.failures += 1;
        match error {
            Error::OutOfMemory(_) => {}
            Error::Device(error) if error.kind == DeviceErrorKind::Misuse => {
                let waits = error.detail.contains("would wait for ever");
                assert!(waits && !self.held.is_empty(), "{error}");
            }
            other => panic!("{other}"),
        }
    }

    fn allocate(&mut self) {
        let (device, stream) = (self.random.below(DEVICES), self.stream());
        let bytes = self.random.size(20 * MIB);
        let address = match self.rig.allocator.allocate(DeviceId(device as i32), bytes, stream) {
            Ok(address) => address,
            Err(error) => return self.expect_lack(&error),
        };
        let info = self.rig.allocator.block(address).unwrap();
        assert_eq!((info.requested, info.stream), (bytes, stream));
        assert_eq!(info.device, DeviceId(device as i32));
        self.rig.served(address);
        self.assert_apart(address, info.bytes);
        let value = self.random.next() as u8;
        let written = bytes.min(PATTERN_MAX);
        self.device(device).fill_async(address, value, written, stream).unwrap();
        self.live.insert(address, Block { bytes, served: info.bytes, device, value });
    }

    fn assert_apart(&self, start: Address, bytes: Bytes) {
        if let Some((before, block)) = self.live.range(..=start).next_back() {
            assert!(before + block.served <= start, "{start:#x} lies in {before:#x}, {block:?}");
        }
        if let Some((after, block)) = self.live.range(start..).next() {
            assert!(start + bytes <= *after, "{start:#x} runs into {after:#x}, {block:?}");
        }
    }

    fn pick(&mut self) -> Option<Address> {
        let at = self.random.below(self.live.len().max(1) as u64) as usize;
        self.live.keys().nth(at).copied()
    }

    fn free(&mut self) {
        let Some(address) = self.pick() else { return };
        let Some(block) = self.live.remove(&address) else { return };
        // What is still held back has not been written yet.
        if self.held.is_empty() {
            let written = block.bytes.min(PATTERN_MAX);
            let mut found = vec![0u8; written as usize];
            let to = found.as_mut_ptr() as Address;
            let reader = StreamId(0xfeed);
            // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
            unsafe { self.device(block.device).copy_async(to, address, written, reader) }.unwrap();
            assert!(found.iter().all(|&byte| byte == block.value), "{address:#x}, {block:?}");
        }
        match self.rig.allocator.free(address) {
            Ok(()) => assert!(self.rig.allocator.free(address).is_err()),
            // A free without caching waits for the device.
            Err(error) => {
                self.expect_lack(&error);
                self.live.insert(address, block);
            }
        }
    }

    fn record(&mut self) {
        if let Some(address) = self.pick() {
            let stream = self.stream();
            self.rig.allocator.record_stream(address, stream).unwrap();
        }
    }

    fn hold(&mut self) {
        let (device, stream) = (self.random.below(DEVICES), self.stream());
        self.device(device).hold(stream).unwrap();
        self.held.push((device, stream));
    }

    fn resume(&mut self) {
        for (device, stream) in std::mem::take(&mut self.held) {
            self.device(device).resume(stream).unwrap();
        }
    }

    fn limit(&mut self) {
        let device = DeviceId(self.random.below(DEVICES) as i32);
        let fraction = [0.3, 0.7, 1.0, 1.0][self.random.below(4) as usize];
        self.rig.allocator.set_memory_fraction(device, fraction).unwrap();
    }

    fn step(&mut self) {
        self.steps += 1;
        match self.random.below(1000) {
            0..450 => self.allocate(),
            450..850 => self.free(),
            850..930 => self.record(),
            930..945 => self.hold(),
            945..970 => self.resume(),
            970..985 => self.limit(),
            985..992 => {
                let caching = self.random.below(3) > 0;
                self.rig.allocator.set_caching(caching);
            }
            _ => {
                if let Err(error) = self.rig.allocator.empty_cache() {
                    self.expect_lack(&error);
                }
            }
        }
        if self.steps.is_multiple_of(50) {
            self.check();
        }
    }

    fn check(&self) {
        self.rig.allocator.is_valid().unwrap();
        for device in 0..DEVICES {
            let own = self.live.values().filter(|block| block.device == device);
            let (count, bytes) =
                own.fold((0, 0), |(count, bytes), block| (count + 1, bytes + block.served as i64));
            let found = self.rig.allocator.statistics(DeviceId(device as i32)).unwrap();
            assert_eq!(found.allocation.all.current, count);
            assert_eq!(found.allocated_bytes.all.current, bytes);
        }
    }

    fn finish(mut self) {
        self.resume();
        while !self.live.is_empty() {
            self.free();
        }
        self.rig.finish();
    }
}

fn run(virtual_memory: bool, default_seed: u64) {
    let seed = Random::seed(default_seed);
    let mut failures = 0;
    for round in 0..20 {
        let mut model = Model::new(virtual_memory, seed + round);
        (0..1500).for_each(|_| model.step());
        failures += model.failures;
        model.finish();
    }
    assert!(failures > 0, "the devices are too large for the test");
}

#[test]
fn random_operations_keep_every_promise_with_virtual_memory() {
    run(true, 1);
}

#[test]
fn random_operations_keep_every_promise_with_segments() {
    run(false, 2);
}
