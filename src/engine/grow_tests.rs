//! Tests of growth that need an engine's inside.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::Config;
use crate::device::Clock;
use crate::device::sim::{SimMachine, SimOptions};
use crate::engine::{Engine, PageEntry};
use crate::heap::ArenaKind;
use crate::page_map::PageMap;
use crate::units::{Bytes, GIB, GRANULE, KIB, MIB, StreamId};

const STREAM: StreamId = StreamId(1);

fn engine(capacity: Bytes, config: Config) -> Engine {
    let options = SimOptions { capacity, ..SimOptions::default() };
    let device = SimMachine::new(options).unwrap().as_devices().remove(0);
    let shared = (Arc::new(PageMap::new()), Arc::new(Clock::default()));
    Engine::new(0, device, config, shared).unwrap()
}

/// An engine of 64 MiB whose one stream has all the lanes that a stream can have.
fn spread_engine() -> Engine {
    spread(engine(64 * MIB, Config { steal: false, ..Config::default() }))
}

fn spread(engine: Engine) -> Engine {
    let first = engine.shards.for_stream(STREAM).unwrap();
    (0..100_000).for_each(|turn| engine.shards.collide(first, 1 + turn % 2));
    assert!(first.lanes().count() > 4);
    engine
}

fn free(engine: &Engine, address: u64) {
    let (shard, slot) = engine.map.get(address).unwrap();
    engine.free(PageEntry { shard, slot }, address).unwrap();
}

#[test]
fn lanes_share_idle_memory_where_stealing_is_off() {
    let engine = spread_engine();
    // One thread a lane, one after the other, all of whose blocks are live at once.
    let mut live = Vec::new();
    for _ in 0..16 {
        let allocate = || [(); 2].map(|()| engine.allocate(MIB, STREAM).unwrap());
        live.extend(std::thread::scope(|scope| scope.spawn(allocate).join().unwrap()));
    }
    let lanes: HashSet<u32> =
        live.iter().map(|&block| engine.map.get(block).unwrap().0.number).collect();
    assert!(lanes.len() > 4);
    live.into_iter().for_each(|block| free(&engine, block));
    let all = engine.allocate(64 * MIB, STREAM).unwrap();
    free(&engine, all);
    engine.is_quiescent().unwrap();
}

/// What lanes have free of a stream whose name comes back serves the new one before it would fail,
/// although it has used none of them yet.
#[test]
fn lanes_share_what_is_left_after_a_name_came_back() {
    let config = Config { expandable_segments: false, ..Config::default() };
    let engine = spread(engine(64 * MIB, config));
    // Three segments of one lane, on each of which something lives and more than half is free.
    let allocate = || [(); 12].map(|()| engine.allocate(5 * MIB, STREAM).unwrap());
    let blocks = std::thread::scope(|scope| scope.spawn(allocate).join().unwrap());
    let (live, freed): (Vec<_>, Vec<_>) = (0..).zip(blocks).partition(|(k, _)| k % 4 == 0);
    freed.into_iter().for_each(|(_, block)| free(&engine, block));
    engine.retire_stream(STREAM).unwrap();
    let mut live: Vec<_> = live.into_iter().map(|(_, block)| block).collect();
    let lane = engine.map.get(live[0]).unwrap().0.number;
    for _ in 0..3 {
        let allocate = || engine.allocate(15 * MIB, STREAM);
        let found = std::thread::scope(|scope| scope.spawn(allocate).join().unwrap());
        live.push(found.unwrap());
    }
    assert!(live.iter().all(|&block| engine.map.get(block).unwrap().0.number == lane));
    live.into_iter().for_each(|block| free(&engine, block));
    engine.is_quiescent().unwrap();
    engine.is_valid().unwrap();
}

/// A thousand streams with a few small blocks each are to lie close together, and one with many is
/// to have few ranges.
#[test]
fn addresses_for_small_requests_are_reserved_by_and_by() {
    let engine = engine(GIB, Config::default());
    let reserved = |engine: &Engine| {
        engine.shards.for_stream(STREAM).unwrap().heap.lock().reserved(ArenaKind::Small)
    };
    let mut live = vec![engine.allocate(KIB, STREAM).unwrap()];
    assert_eq!(reserved(&engine), 64 * MIB);
    for expected in [64, 128, 256, 256] {
        live.extend((0..63).map(|_| engine.allocate(MIB, STREAM).unwrap()));
        assert_eq!(reserved(&engine), expected * MIB);
    }
    live.into_iter().for_each(|block| free(&engine, block));
    engine.is_quiescent().unwrap();
    engine.is_valid().unwrap();
}

/// What is idle of one stream and too short for another's request by a few handles is used where it
/// is, with the addresses behind it.
#[test]
fn a_run_that_is_too_short_is_continued_on_a_mostly_empty_device() {
    let other = StreamId(2);
    for (capacity, continued) in [(GIB, true), (128 * MIB, false)] {
        let engine = engine(capacity, Config { max_handle: GRANULE, ..Config::default() });
        let own = engine.allocate(2 * MIB, other).unwrap();
        let first = engine.allocate(32 * MIB, STREAM).unwrap();
        free(&engine, first);
        let longer = engine.allocate(40 * MIB, other).unwrap();
        assert_eq!(longer == first, continued);
        assert_eq!(engine.growth.lock().store.reserved.current, 42 << 20);
        [own, longer].into_iter().for_each(|block| free(&engine, block));
        engine.is_quiescent().unwrap();
        engine.is_valid().unwrap();
    }
}

/// Where streams share memory, and calls of the driver take much of all time, handles are longer.
#[test]
fn handles_are_longer_where_streams_share_memory_and_the_driver_is_busy() {
    // Whether another stream has memory, the time then, and the handles of another 64 MiB.
    for (shared, now_us, made) in [(false, 1, 8), (true, 1, 4), (true, 200_000, 8)] {
        let engine = engine(4 * GIB, Config::default());
        let mut live = vec![engine.allocate(GIB, STREAM).unwrap()];
        if shared {
            live.push(engine.allocate(GIB, StreamId(2)).unwrap());
        }
        engine.clock.set_us(now_us);
        let before = engine.growth.lock().store.active();
        live.push(engine.allocate(64 * MIB, STREAM).unwrap());
        let after = engine.growth.lock().store.active();
        assert_eq!(after - before, made, "shared {shared}, at {now_us} us");
        live.into_iter().for_each(|block| free(&engine, block));
        engine.is_quiescent().unwrap();
        engine.is_valid().unwrap();
    }
}
