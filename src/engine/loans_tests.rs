//! Tests of loans that need an engine's inside.

use std::sync::Arc;

use crate::config::Config;
use crate::device::sim::{SimMachine, SimOptions};
use crate::device::{Clock, Device};
use crate::engine::{Engine, PageEntry};
use crate::page_map::PageMap;
use crate::units::{Address, Bytes, GRANULE, KIB, MIB, StreamId};

const A: StreamId = StreamId(0xa0);
const B: StreamId = StreamId(0xb0);
const C: StreamId = StreamId(0xc0);

fn machine(capacity: Bytes) -> SimMachine {
    SimMachine::new(SimOptions { capacity, ..SimOptions::default() }).unwrap()
}

fn engine(capacity: Bytes, config: Config) -> Engine {
    engine_on(&machine(capacity), config)
}

fn engine_on(machine: &SimMachine, config: Config) -> Engine {
    let device = machine.as_devices().remove(0);
    let clock = Arc::new(Clock::default());
    clock.set_us(0);
    Engine::new(0, device, config, (Arc::new(PageMap::new()), clock)).unwrap()
}

fn short(steal: bool) -> Config {
    Config { max_handle: GRANULE, steal, ..Config::default() }
}

fn free(engine: &Engine, address: Address) {
    let (shard, slot) = engine.map.get(address).unwrap();
    engine.free(PageEntry { shard, slot }, address).unwrap();
}

fn loans(engine: &Engine) -> usize {
    engine.growth.lock().loans.len()
}

/// Ends a test: all is given back.
fn finish(engine: &Engine) {
    engine.is_valid().unwrap();
    engine.empty_cache().unwrap();
    assert_eq!((loans(engine), engine.growth.lock().store.reserved.current), (0, 0));
    engine.is_quiescent().unwrap();
}

/// Blocks of 3.5 and 3 MiB of A and B leave 1.5 MiB beside them, and the device has 4 MiB more.
fn nearly_full(steal: bool) -> (Engine, [Address; 2]) {
    nearly_full_on(&machine(12 * MIB), steal)
}

fn nearly_full_on(machine: &SimMachine, steal: bool) -> (Engine, [Address; 2]) {
    let engine = engine_on(machine, short(steal));
    let live = [engine.allocate(3 * MIB + 512 * KIB, A), engine.allocate(3 * MIB, B)];
    (engine, live.map(Result::unwrap))
}

#[test]
fn a_request_that_would_fail_is_served_from_what_others_leave() {
    let bytes = 5 * MIB;
    let machine = machine(12 * MIB);
    let (engine, live) = nearly_full_on(&machine, true);
    let device = machine.device(0);
    let block = engine.allocate(bytes, C).unwrap();
    assert_eq!(loans(&engine), 1);
    engine.is_valid().unwrap();
    let blocks = [(live[0], 3 * MIB + 512 * KIB), (live[1], 3 * MIB), (block, bytes)];
    for (value, (at, bytes)) in (1..).zip(blocks) {
        device.fill_async(at, value, bytes, C).unwrap();
    }
    for (value, (at, bytes)) in (1..).zip(blocks) {
        assert!(device.read(at, bytes).unwrap().iter().all(|&byte| byte == value));
    }
    live.into_iter().chain([block]).for_each(|block| free(&engine, block));
    finish(&engine);
    // Without loans between streams it does not fit.
    let (engine, live) = nearly_full(false);
    assert!(engine.allocate(bytes, C).unwrap_err().is_out_of_memory());
    live.into_iter().for_each(|block| free(&engine, block));
    finish(&engine);
}

#[test]
fn a_small_request_that_would_fail_is_served_from_what_others_leave() {
    for steal in [true, false] {
        let engine = engine(8 * MIB, short(steal));
        let live = [A, B].map(|stream| engine.allocate(3 * MIB + 768 * KIB, stream).unwrap());
        let block = engine.allocate(200 * KIB, C);
        assert_eq!((block.is_ok(), loans(&engine)), (steal, usize::from(steal)));
        live.into_iter().chain(block).for_each(|block| free(&engine, block));
        finish(&engine);
    }
}

#[test]
fn a_request_between_two_remainders_takes_what_neither_has() {
    let engine = engine(12 * MIB, short(true));
    // The second half of A's handle is left, and the first half of B's.
    let whole = [A, B].map(|stream| engine.allocate(4 * MIB, stream).unwrap());
    whole.into_iter().for_each(|block| free(&engine, block));
    let a = engine.allocate(3 * MIB, A).unwrap();
    let parts = [(); 2].map(|()| engine.allocate(2 * MIB + MIB, B).unwrap());
    engine.is_valid().unwrap();
    let block = engine.allocate(3 * MIB, C).unwrap();
    assert!(loans(&engine) > 0);
    engine.is_valid().unwrap();
    for block in parts.into_iter().chain([a, block]) {
        free(&engine, block);
    }
    finish(&engine);
}

#[test]
fn a_loan_ends_when_the_lender_needs_its_memory() {
    let (engine, [a, b]) = nearly_full(true);
    let block = engine.allocate(5 * MIB, C).unwrap();
    free(&engine, block);
    free(&engine, b);
    free(&engine, a);
    let all = engine.allocate(12 * MIB, A).unwrap();
    assert_eq!(loans(&engine), 0);
    free(&engine, all);
    finish(&engine);
}

#[test]
fn a_pinned_block_keeps_what_it_borrowed() {
    let (engine, live) = nearly_full(true);
    let block = engine.allocate(5 * MIB, C).unwrap();
    let (shard, slot) = engine.map.get(block).unwrap();
    let pin = engine.pin(PageEntry { shard, slot }, block).unwrap();
    live.into_iter().chain([block]).for_each(|block| free(&engine, block));
    engine.empty_cache().unwrap();
    engine.is_valid().unwrap();
    assert_eq!(loans(&engine), 1);
    engine.unpin(pin.number).unwrap();
    finish(&engine);
}
