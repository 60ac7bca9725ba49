//! Tests of growth that need an engine's inside.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::Config;
use crate::device::Clock;
use crate::device::sim::{SimMachine, SimOptions};
use crate::engine::{Engine, PageEntry};
use crate::page_map::PageMap;
use crate::units::{MIB, StreamId};

const STREAM: StreamId = StreamId(1);

/// An engine of 64 MiB whose one stream has all the lanes that a stream can have.
fn spread_engine() -> Engine {
    let options = SimOptions { capacity: 64 * MIB, ..SimOptions::default() };
    let device = SimMachine::new(options).unwrap().as_devices().remove(0);
    let config = Config { steal: false, ..Config::default() };
    let shared = (Arc::new(PageMap::new()), Arc::new(Clock::default()));
    let engine = Engine::new(0, device, config, shared).unwrap();
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
