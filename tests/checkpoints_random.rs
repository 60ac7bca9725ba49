//! Random work in a private pool that goes back to checkpoints again and again. After each step
//! back everything is compared with what is known: what is live, what is in it, what is counted,
//! and what events tell.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;
#[path = "common/history_model.rs"]
mod history_model;
#[path = "common/pool_rig.rs"]
mod pool_rig;
#[path = "common/segment_source.rs"]
mod segment_source;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{A, B, C, GPU, Random, Rig, capacity, plain};
use history_model::Model;
use plugalloc::device::sim::SimOptions;
use plugalloc::error::{CheckpointFault, Error};
use plugalloc::observe::HistoryOptions;
use plugalloc::units::{Address, Bytes, GIB, MIB, StreamId};
use plugalloc::{Checkpoint, Config, SegmentSource};
use pool_rig::{POOL, addresses, sorted};
use segment_source::Counted;

/// An allocation, as the test knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    requested: Bytes,
    bytes: Bytes,
    stream: StreamId,
    /// What is in it.
    value: u8,
}

/// A pool and what is known of it.
struct Followed {
    rig: Rig,
    random: Random,
    /// In the pool, and outside.
    live: BTreeMap<Address, Known>,
    outside: BTreeMap<Address, Known>,
    saved: Vec<(Checkpoint, BTreeMap<Address, Known>)>,
    events: Model,
    /// Allocations and frees so far, and the most bytes that were live.
    counts: (i64, i64),
    peak: i64,
    /// How many allocations came back, how many stayed, and how often something was in the way.
    seen: (usize, usize, usize),
}

impl Followed {
    fn new(options: SimOptions, conf: &str, seed: u64) -> Followed {
        Followed::over(Rig::new(options, Config::parse(conf).unwrap()), seed)
    }

    fn over(rig: Rig, seed: u64) -> Followed {
        let history = HistoryOptions { max_entries: usize::MAX, ..HistoryOptions::default() };
        rig.allocator.record_history(&history).unwrap();
        rig.begin(POOL, &[A, B]);
        Followed {
            rig,
            random: Random::new(seed),
            live: BTreeMap::new(),
            outside: BTreeMap::new(),
            saved: Vec::new(),
            events: Model::default(),
            counts: (0, 0),
            peak: 0,
            seen: (0, 0, 0),
        }
    }

    fn paint(&mut self, at: Address, known: &mut Known) {
        known.value = self.random.below(256) as u8;
        self.rig.fill(at, known.value, known.requested, known.stream);
    }

    fn note_peak(&mut self) {
        let all = self.live.values().chain(self.outside.values());
        self.peak = self.peak.max(all.map(|known| known.bytes as i64).sum());
    }

    fn allocate(&mut self, stream: StreamId) {
        let requested = self.random.size(6 * MIB);
        let Ok(at) = self.rig.try_allocate(requested, stream) else {
            return;
        };
        let bytes = self.rig.allocator.block(at).unwrap().bytes;
        let mut known = Known { requested, bytes, stream, value: 0 };
        self.paint(at, &mut known);
        let side = if stream == C { &mut self.outside } else { &mut self.live };
        assert_eq!(side.insert(at, known), None, "{at:#x}");
        self.counts.0 += 1;
        self.note_peak();
    }

    fn free(&mut self, outside: bool) {
        let side = if outside { &mut self.outside } else { &mut self.live };
        let at = side.keys().copied().nth(self.random.below(side.len().max(1) as u64) as usize);
        if let Some((at, known)) = at.and_then(|at| side.remove_entry(&at)) {
            self.rig.assert_filled(at, known.value, known.requested);
            self.rig.free(at);
            self.counts.1 += 1;
        }
    }

    /// Lets the other stream of the pool use something.
    fn record(&mut self) {
        let at = self.random.below(self.live.len().max(1) as u64) as usize;
        if let Some((&at, known)) = self.live.iter().nth(at) {
            let other = if known.stream == A { B } else { A };
            self.rig.allocator.record_stream(at, other).unwrap();
        }
    }

    fn save(&mut self) {
        let checkpoint = self.rig.save();
        let blocks: Vec<_> = checkpoint.blocks().collect();
        assert_eq!(addresses(&blocks), self.live.keys().copied().collect::<Vec<_>>());
        self.saved.push((checkpoint, self.live.clone()));
        if self.saved.len() > 6 {
            let at = self.random.below(6) as usize;
            self.saved.swap_remove(at);
        }
    }

    /// Goes back to one of the checkpoints. Where a block is in the way that a stream was recorded
    /// for, that is freed first, and the stream has passed.
    fn restore(&mut self) {
        if self.saved.is_empty() {
            return;
        }
        let at = self.random.below(self.saved.len() as u64) as usize;
        let (checkpoint, wanted) = self.saved[at].clone();
        let delta = loop {
            match self.rig.allocator.restore_pool(GPU, &checkpoint) {
                Ok(delta) => break delta,
                Err(Error::Checkpoint(error)) => {
                    assert_eq!(error.fault, CheckpointFault::InUseByStreams, "{error}");
                    self.check();
                    let known = self.live.remove(&error.address).unwrap();
                    assert_eq!(known.bytes, error.bytes);
                    self.rig.free(error.address);
                    self.counts.1 += 1;
                    self.seen.2 += 1;
                }
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(sorted(delta.freed), self.live.keys().copied().collect::<Vec<_>>());
        assert_eq!(addresses(&delta.allocated), wanted.keys().copied().collect::<Vec<_>>());
        self.counts.0 += wanted.len() as i64;
        self.counts.1 += self.live.len() as i64;
        let before = std::mem::replace(&mut self.live, wanted.clone());
        for (at, mut known) in wanted {
            match before.get(&at).filter(|old| old.bytes == known.bytes) {
                Some(old) => {
                    // As much as was written there is what it was.
                    known.value = old.value;
                    let same = known.requested.min(old.requested);
                    self.rig.assert_filled(at, old.value, same);
                    self.rig.fill(at, old.value, known.requested, known.stream);
                    self.seen.1 += 1;
                }
                None => {
                    self.paint(at, &mut known);
                    self.seen.0 += 1;
                }
            }
            self.live.insert(at, known);
        }
        self.note_peak();
        self.check();
    }

    /// Fails unless everything is as it is known to be.
    #[track_caller]
    fn check(&mut self) {
        let rig = &self.rig;
        rig.allocator.is_valid().unwrap();
        assert!(rig.holds(POOL, &self.live.keys().copied().collect::<Vec<_>>()));
        for (&at, known) in self.live.iter().chain(&self.outside) {
            let block = rig.allocator.block(at).unwrap();
            let found = (block.requested, block.bytes, block.stream);
            assert_eq!(found, (known.requested, known.bytes, known.stream), "{at:#x}");
            rig.assert_filled(at, known.value, known.requested);
        }
        let statistics = rig.statistics();
        let allocation = statistics.allocation.all;
        let live = (self.live.len() + self.outside.len()) as i64;
        let counted = (allocation.current, allocation.allocated, allocation.freed);
        assert_eq!(counted, (live, self.counts.0, self.counts.1));
        assert_eq!(statistics.allocated_bytes.all.peak, self.peak);
        let snapshot = rig.allocator.snapshot(None, true).unwrap();
        self.events.follow(&snapshot.device_traces[0]);
        self.events.assert_shows(&snapshot);
    }

    fn run(mut self, steps: u32, then: impl FnOnce()) {
        for _ in 0..steps {
            match self.random.below(100) {
                0..45 => {
                    let stream = [A, B, A, B, C][self.random.below(5) as usize];
                    self.allocate(stream);
                }
                45..78 => {
                    let outside = self.random.below(5) == 0;
                    self.free(outside);
                }
                78..80 => self.record(),
                80..82 => self.rig.allocator.empty_cache().unwrap(),
                82..88 => self.save(),
                88..92 => self.restore(),
                92 => self.rig.allocator.process_events().unwrap(),
                _ => {}
            }
        }
        self.restore();
        let (came_back, stayed, in_the_way) = self.seen;
        println!("{came_back} came back, {stayed} stayed, {in_the_way} in the way");
        assert!(came_back > 20 && stayed > 20, "{came_back}, {stayed}");
        let all = self.live.keys().chain(self.outside.keys());
        all.for_each(|&at| self.rig.free(at));
        self.rig.end(POOL);
        then();
        self.rig.finish();
    }
}

#[test]
fn random_checkpoints_over_mapped_memory() {
    let seed = Random::seed(5201);
    Followed::new(capacity(GIB), "", seed).run(1500, || {});
    Followed::new(capacity(160 * MIB), "", seed + 1).run(1500, || {});
}

#[test]
fn random_checkpoints_over_segments() {
    let seed = Random::seed(5202);
    Followed::new(plain(GIB), "", seed).run(1500, || {});
    Followed::new(capacity(GIB), "expandable_segments:False", seed + 1).run(1500, || {});
}

#[test]
fn random_checkpoints_without_splitting() {
    let seed = Random::seed(5203);
    let followed = Followed::new(capacity(2 * GIB), "", seed);
    followed.rig.allocator.set_no_split(GPU, POOL).unwrap();
    followed.run(1200, || {});
}

/// Sources of much and of little memory, of blocks that are split and that are not.
#[test]
fn random_checkpoints_over_memory_of_a_source() {
    let seed = Random::seed(5204);
    for (case, longest) in [(0, 64 * MIB), (1, 64 * MIB), (2, 5 * MIB)] {
        let options = [capacity(2 * GIB), plain(2 * GIB)][case as usize % 2].clone();
        let rig = Rig::new(options, Config::default());
        let source = Counted::new(rig.device(), longest);
        let given = Arc::clone(&source) as Arc<dyn SegmentSource>;
        rig.allocator.create_or_incref_pool(GPU, POOL, Some(given)).unwrap();
        let followed = Followed::over(rig, seed + case);
        if case > 0 {
            followed.rig.allocator.set_no_split(GPU, POOL).unwrap();
        }
        let allocator = Arc::clone(&followed.rig.allocator);
        let release = move || {
            allocator.release_pool(GPU, POOL).unwrap();
            allocator.empty_cache().unwrap();
        };
        followed.run(1200, release);
        assert!(source.calls.load(Ordering::Relaxed) > 5 && source.live.lock().is_empty());
    }
}
