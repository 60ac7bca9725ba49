//! Everything at once, on one thread: streams that come, are captured, are held back and end;
//! private pools with graphs and checkpoints; pins, observers, exports and imports; limits that
//! rise and fall; requests that fail. A model knows what must hold meanwhile (`common/storm`).
//!
//! `PLUGALLOC_SEED` names the first round and `STORM_ROUNDS` how many there are of each kind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/history_model.rs"]
mod history_model;
#[path = "common/mapping_books.rs"]
mod mapping_books;
#[path = "common/storm/mod.rs"]
mod storm;

use common::{Random, capacity, config, plain};
use plugalloc::Config;
use plugalloc::device::sim::SimOptions;
use plugalloc::units::{GRANULE, MIB};
use storm::Storm;

/// How many rounds there are, and of how many steps.
fn rounds(default: u64) -> u64 {
    let rounds = std::env::var("STORM_ROUNDS").ok().and_then(|text| text.parse().ok());
    rounds.unwrap_or(default)
}

/// Rounds of one kind. A round's name is its seed alone, so that any can be run by itself.
fn run(kind: impl Fn(&mut Random) -> (SimOptions, Config), default_seed: u64) {
    let seed = Random::seed(default_seed);
    let mut seen = storm::Seen::default();
    for seed in seed..seed + rounds(4) {
        println!("round PLUGALLOC_SEED={seed} STORM_ROUNDS=1");
        let mut random = Random::new(seed);
        let (options, config) = kind(&mut random);
        let mut storm = Storm::new(options, config, random);
        (0..700).for_each(|_| storm.step());
        seen.add(storm.finish());
    }
    println!("{seen:?}");
    if std::env::var("STORM_ROUNDS").is_err() {
        seen.assert_everything_happened();
    }
}

/// Options that change what the engine does with the same calls.
fn any_config(random: &mut Random) -> Config {
    let (steal, short) = (random.below(4) > 0, random.below(3) == 0);
    let (idle, collect) = (random.below(4) == 0, random.below(6) == 0);
    config(|c| {
        c.steal = steal;
        if short {
            c.max_handle = GRANULE;
        }
        if idle {
            c.release_idle_ms = 20;
        }
        if collect {
            c.garbage_collection_threshold = 0.5;
        }
    })
}

#[test]
fn a_storm_over_mapped_memory() {
    let kind = |random: &mut Random| {
        let bytes = [32, 64, 160, 1024][random.below(4) as usize] * MIB;
        (capacity(bytes), any_config(random))
    };
    run(kind, 100);
}

/// No event may be asked while anything is captured.
#[test]
fn a_storm_where_captures_forbid_much() {
    let kind = |random: &mut Random| {
        let bytes = [32, 64, 160, 1024][random.below(4) as usize] * MIB;
        (SimOptions { global_capture: true, ..capacity(bytes) }, any_config(random))
    };
    run(kind, 200);
}

#[test]
fn a_storm_over_segments() {
    let kind = |random: &mut Random| {
        let bytes = [96, 160, 1024][random.below(3) as usize] * MIB;
        let expandable = random.below(2) == 0;
        let mut config = any_config(random);
        config.expandable_segments = expandable;
        (if expandable { plain(bytes) } else { capacity(bytes) }, config)
    };
    run(kind, 300);
}
