//! A model of what must hold whatever a program does, and the program that does it.
//!
//! Nothing is waited for before memory is freed or used again. Work is queued, as a program would
//! do it, that writes a block's ends and reads them again before the block is freed; what it read
//! is looked at when it has run. Had memory been handed on too early, or moved, or unmapped, what
//! was read would show it, or the simulated device would refuse the work.

mod checks;
mod graphs;
mod pools;
mod streams;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use plugalloc::device::Device;
use plugalloc::device::EventId;
use plugalloc::device::sim::SimOptions;
use plugalloc::observe::HistoryOptions;
use plugalloc::units::{Address, Bytes, StreamId};
use plugalloc::{Config, ImportedMemory, Pin};

use crate::common::{GPU, Random, Rig};
use crate::{history_model, mapping_books};
use pools::Pool;
use streams::{Lane, Names};
use work::Journal;

const LANES: usize = 5;

/// A live allocation.
#[derive(Clone, Debug)]
struct Block {
    requested: Bytes,
    /// Its bytes as served.
    served: Bytes,
    stream: StreamId,
    /// The stream that it was allocated on, of all that had this name.
    life: u64,
    /// What is written at its ends, in the order of its stream; `None` where that is not known.
    value: Option<u8>,
    /// The pool in whose memory it lies, while that is in use: its place and its number.
    pool: Option<(usize, u64)>,
    /// The capture in which it was allocated, where a graph may write to it.
    captured: Option<u64>,
    /// Streams that were recorded for it, by their lives.
    users: Vec<u64>,
    /// Whether any other was, with work or without.
    recorded: bool,
    exported: bool,
}

/// How often what happened that is not to be missing.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    allocated: u64,
    refused: u64,
    waits_refused: u64,
    retired: u64,
    graphs: u64,
    launches: u64,
    restored: u64,
    restores_refused: u64,
    imports: u64,
    read: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Seen) {
        self.allocated += other.allocated;
        self.refused += other.refused;
        self.waits_refused += other.waits_refused;
        self.retired += other.retired;
        self.graphs += other.graphs;
        self.launches += other.launches;
        self.restored += other.restored;
        self.restores_refused += other.restores_refused;
        self.imports += other.imports;
        self.read += other.read;
    }

    pub(crate) fn assert_everything_happened(&self) {
        let counts = [self.allocated, self.refused, self.retired, self.graphs, self.launches];
        let more = [self.restored, self.restores_refused, self.read];
        assert!(counts.iter().chain(&more).all(|&count| count > 0), "{self:?}");
    }
}

/// The program and what it knows.
pub(crate) struct Storm {
    rig: Rig,
    random: Random,
    /// The options of the device that matter.
    global_capture: bool,
    segments: bool,
    capacity: Bytes,
    limit: Bytes,
    lanes: Vec<Lane>,
    names: Names,
    /// Names whose work is held back.
    held: Vec<StreamId>,
    /// Calls of this program that named a stream which is gone.
    own_calls: u64,
    live: BTreeMap<Address, Block>,
    pools: Vec<Pool>,
    journal: Journal,
    pins: Vec<(Address, Pin)>,
    imports: Vec<(Address, Bytes, ImportedMemory)>,
    books: Option<Arc<Mutex<mapping_books::Seen>>>,
    events: Option<history_model::Model>,
    /// An event for every order that this program makes.
    event: EventId,
    next: u64,
    now_us: u64,
    /// A step takes less than this: in some rounds so little that the driver takes much of all
    /// time, and memory moves in other pieces.
    pace_us: u64,
    steps: u64,
    seen: Seen,
}

impl Storm {
    pub(crate) fn new(options: SimOptions, config: Config, mut random: Random) -> Storm {
        let (capacity, global_capture) = (options.capacity, options.global_capture);
        let segments = !options.virtual_memory || !config.expandable_segments;
        let rig = Rig::new(options, config);
        rig.allocator.clock().set_us(0);
        let device = rig.device();
        let mut names = Names::new(device.as_ref());
        let lanes = (0..LANES).map(|at| names.lane(device.as_ref(), at as u64)).collect();
        let events = (random.below(3) == 0).then(|| {
            let options = HistoryOptions { max_entries: usize::MAX, ..HistoryOptions::default() };
            rig.allocator.record_history(&options).unwrap();
            history_model::Model::default()
        });
        let event = device.event_create().unwrap();
        let pools = (0..3).map(Pool::new).collect();
        let pace_us = [3000, 3000, 80][random.below(3) as usize];
        Storm {
            rig,
            random,
            global_capture,
            segments,
            capacity,
            limit: capacity,
            lanes,
            names,
            held: Vec::new(),
            own_calls: 0,
            live: BTreeMap::new(),
            pools,
            journal: Journal::default(),
            pins: Vec::new(),
            imports: Vec::new(),
            books: None,
            events,
            event,
            next: LANES as u64,
            now_us: 0,
            pace_us,
            steps: 0,
            seen: Seen::default(),
        }
    }

    /// A number that nothing else has.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn any_lane(&mut self) -> usize {
        self.random.below(self.lanes.len() as u64) as usize
    }

    fn any_block(&mut self) -> Option<Address> {
        let at = self.random.below(self.live.len().max(1) as u64) as usize;
        self.live.keys().nth(at).copied()
    }

    pub(crate) fn step(&mut self) {
        self.steps += 1;
        self.now_us += self.random.below(self.pace_us);
        self.rig.allocator.clock().set_us(self.now_us);
        match self.random.below(1000) {
            0..330 => self.allocate(),
            330..590 => self.free(),
            590..640 => self.record(),
            640..665 => self.hold(),
            665..690 => self.resume_one(),
            690..700 => self.settle(),
            700..715 => self.retire(),
            715..745 => self.open_or_close(),
            745..760 => self.release(),
            760..800 => self.capture(),
            800..830 => self.launch(),
            830..845 => self.save(),
            845..865 => self.restore(),
            865..875 => self.change_pool(),
            875..890 => self.pin(),
            890..905 => self.share(),
            905..925 => self.limit(),
            925..945 => self.empty(),
            945..960 => {
                let looked = self.rig.allocator.process_events();
                self.may_wait(looked);
            }
            960..965 => self.observe(),
            965..970 => self.free_many(),
            _ => self.check(),
        }
        if self.steps.is_multiple_of(40) {
            self.check();
        }
    }

    /// Ends everything, and what must be true then.
    pub(crate) fn finish(mut self) -> Seen {
        self.end_captures();
        self.settle();
        self.check();
        while let Some(at) = self.live.keys().next().copied() {
            self.free_block(at);
        }
        self.pins.clear();
        for at in 0..self.pools.len() {
            self.close(at);
            while self.pools[at].uses > 0 {
                self.release_use(at);
            }
        }
        self.settle();
        self.check();
        self.close_imports_for_good();
        let ledger = self.rig.ledger();
        assert_eq!(ledger.calls_of_no_stream, self.own_calls, "streams that are gone are asked");
        let (books, seen) = (self.books.take(), self.seen);
        self.rig.device().event_destroy(self.event).unwrap();
        self.rig.finish();
        if let Some(books) = books {
            assert!(books.lock().spans.is_empty(), "{:?}", books.lock().spans);
        }
        seen
    }

    fn observe(&mut self) {
        if self.books.is_none() {
            self.books = Some(mapping_books::observe(&self.rig.allocator, &self.rig.device()));
        }
    }

    fn limit(&mut self) {
        let fraction = [0.3, 0.6, 0.9, 1.0, 1.0][self.random.below(5) as usize];
        self.rig.allocator.set_memory_fraction(GPU, fraction).unwrap();
        self.limit = (self.capacity as f64 * fraction) as Bytes;
    }

    fn empty(&mut self) {
        let emptied = match self.random.below(3) {
            0 => {
                let pool = self.pools[self.random.below(3) as usize].id;
                self.rig.allocator.empty_pool(pool)
            }
            _ => self.rig.allocator.empty_cache(),
        };
        self.may_wait(emptied);
    }

    fn pin(&mut self) {
        if self.pins.len() > 2 || self.random.below(3) == 0 {
            let at = self.random.below(self.pins.len().max(1) as u64) as usize;
            if at < self.pins.len() {
                drop(self.pins.swap_remove(at));
            }
        } else if let Some(at) = self.any_block() {
            let pin = self.rig.allocator.pin(at).unwrap();
            let block = &self.live[&at];
            assert!(pin.address() <= at && at + block.served <= pin.address() + pin.bytes());
            self.pins.push((at, pin));
        }
    }
}
