//! One device's allocator: the order of steps.
//!
//! An allocation goes through at most four stages, each dearer than the one before: the heap of its
//! stream ([`allocate`](Engine::allocate)); then, under the lock that guards the device's physical
//! memory, the heap again after frees that have completed meanwhile; new memory under it, stolen or
//! made (`grow`); and the ladder before out of memory (`reclaim`).
//!
//! Locks are taken in one order: the turn to tell observers (`watch`), then `growth`, then `pools`,
//! then `ipc`, then heaps, then `deferred`, then the state of `peaks`. Whoever holds `growth` may
//! hold several heaps; nobody else holds more than one, and others' are only tried for the peaks.

#![forbid(unsafe_code)]

mod adopt;
mod adopt_run;
mod allocate;
mod announce;
mod borrow;
mod check;
mod checkpoint;
mod direct;
mod dormant;
mod extend;
mod fill;
mod grow;
mod handles;
mod heap_lock;
mod idle;
mod ipc;
mod ipc_format;
mod loans;
mod marks;
mod means;
mod out_of_memory;
mod padded;
mod peaks;
mod pins;
mod plan;
mod pool_memory;
mod pools;
mod reclaim;
mod record;
mod room;
mod segments;
mod shards;
mod snapshot;
mod statistics;
mod take;
mod unneeded;
mod watch;

pub(crate) use allocate::{Look, foreign};
pub(crate) use checkpoint::SavedPool;
pub(crate) use direct::DirectBlock;
pub(crate) use pins::Pinned;
pub use pool_memory::SegmentSource;
pub(crate) use pools::StreamFilter;
pub use record::OutOfMemoryEvent;
pub(crate) use record::OutOfMemoryObserver;
pub(crate) use watch::MappingObserver;
pub use watch::{MappingChange, MappingEvent};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::config::Config;
use crate::device::{Clock, Device};
use crate::error::{Error, Result};
use crate::heap::{ArenaKind, Divisions, IdleList, Whole};
use crate::nvtx::Announcer;
use crate::observe::history::History;
use crate::page_map::PageMap;
use crate::pages::{MovingTime, Policy, Store};
use crate::streams::{Captures, Deferred, Guest};
use crate::units::{Bytes, DeviceId};
use direct::Direct;
use ipc::Ipc;
use loans::Loan;
use marks::Marks;
use padded::Padded;
use peaks::Peaks;
use pins::Pins;
use pools::Pools;
use record::Alarm;
pub(crate) use shards::Shard;
use shards::Shards;
use statistics::Counters;
use watch::{Parting, Watch};

/// What makes a call leave the hot path; all zero in the usual case.
pub(crate) mod flag {
    /// Freed blocks wait for streams.
    pub(crate) const DEFERRED: u32 = 1;
    /// Caching is off.
    pub(crate) const UNCACHED: u32 = 2;
    /// Sizes are rounded up in steps between powers of two.
    pub(crate) const DIVIDED: u32 = 4;
    /// A tool is told of every allocation. Up for as long as the engine lives, or never.
    pub(crate) const ANNOUNCED: u32 = 8;
    /// Allocations of some streams or threads go to a private pool.
    pub(crate) const DIVERTED: u32 = 16;
    /// A history is recorded, or events are tracked.
    pub(crate) const RECORDED: u32 = 32;
    /// What there is to do before an allocation, of those above.
    pub(crate) const BEFORE: u32 = DEFERRED | UNCACHED | DIVERTED;
}

/// To whom a granule of memory belongs: what the address map tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageEntry<'a> {
    pub(crate) shard: &'a Shard,
    /// The page slot in its heap.
    pub(crate) slot: u32,
}

/// What the lock on physical memory guards.
#[derive(Debug)]
pub(crate) struct Growth {
    store: Store,
    counters: Counters,
    /// What may be spent on moving memory between places.
    moving: MovingTime,
    /// How often memory that was idle when it was counted on was in use when it was taken.
    lost: u64,
    /// What is about to be unmapped.
    parting: Parting,
    /// Since when idle memory is unused.
    marks: Marks,
    /// What of handles is in use at another place.
    loans: Vec<Loan>,
    /// How many requests there were since it was looked which loans can end.
    unrecalled: usize,
    /// When it was last looked for memory that nobody needs.
    looked_us: u64,
    /// Room for a list of idle memory.
    idle: IdleList,
    /// Room for what of it may be moved.
    movable: Vec<idle::Idle>,
    /// Room for what of all handles is idle, by number.
    usable: Vec<bool>,
}

/// The allocator of one device.
pub(crate) struct Engine {
    /// The device's place among the allocator's devices.
    index: u32,
    device: Arc<dyn Device>,
    config: Config,
    divisions: Option<Divisions>,
    /// Whoever is told of allocations, if anybody is.
    announcer: Option<Arc<Announcer>>,
    policy: Policy,
    /// Whether memory comes through virtual memory management.
    virtual_memory: bool,
    /// What heaps are told of blocks that are not to be split.
    whole: Option<Whole>,
    /// The device's whole memory.
    total: Bytes,
    map: Arc<PageMap<Shard>>,
    clock: Arc<Clock>,
    shards: Shards,
    flags: AtomicU32,
    polls: Padded<AtomicU32>,
    peaks: Peaks,
    growth: Padded<Mutex<Growth>>,
    pools: Padded<RwLock<Pools>>,
    captures: Arc<Captures>,
    pins: Padded<Mutex<Pins>>,
    watch: Padded<Watch>,
    ipc: Padded<Mutex<Ipc>>,
    deferred: Padded<Mutex<Deferred>>,
    direct: Padded<Direct>,
    history: Padded<History>,
    alarm: Padded<Alarm>,
    ooms: AtomicU64,
    fraction_limited: AtomicBool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("device", &self.device.id())
            .field("streams", &self.shards.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// The allocator of `device`, which is the `index`-th and shares the map and the clock with the
    /// others.
    pub(crate) fn new(
        index: u32,
        device: Arc<dyn Device>,
        config: Config,
        (map, clock): (Arc<PageMap<Shard>>, Arc<Clock>),
    ) -> Result<Engine> {
        let total = device.memory_info()?.total;
        let able = device.capabilities();
        // The device's context was made above, without which tools do not work.
        let announcer = Announcer::new(&device).map(Arc::new);
        // Tools take only segments, so that is what they get unless the user has chosen.
        let told = announcer.as_ref().is_some_and(|announcer| announcer.takes_memory());
        let expandable = config.expandable_segments && (config.expandable_with_tools || !told);
        let virtual_memory = expandable && able.virtual_memory.is_some();
        if virtual_memory && config.gpu_direct_rdma && !able.rdma {
            return Err(no_rdma(&*device));
        }
        // As in PyTorch, only segments know blocks that are not to be split.
        let limit = config.max_split_size.filter(|_| !virtual_memory);
        let (rounding, shared) = (config.max_non_split_rounding, config.large_segment_size);
        let whole = limit.map(|limit| Whole { limit, rounding, shared });
        let mut store = Store::new(Arc::clone(&device), Bytes::MAX);
        store.rdma = config.gpu_direct_rdma;
        store.announcer = announcer.clone();
        let announced = if announcer.is_some() { flag::ANNOUNCED } else { 0 };
        let captures = Arc::new(Captures::default());
        let deferred = Deferred::new(Arc::clone(&device), Arc::clone(&captures));
        let divisions = Divisions::new(config.roundup_power2_divisions);
        let uncached = if config.caching { 0 } else { flag::UNCACHED };
        let divided = if divisions.is_some() { flag::DIVIDED } else { 0 };
        let policy = Policy::new(&config);
        let moving = MovingTime::new(&policy);
        // The map is one for all devices of the allocator, and no other allocator's.
        let history = History::new(DeviceId(index as i32), Arc::as_ptr(&map).addr());
        let engine = Engine {
            index,
            divisions,
            announcer,
            policy,
            virtual_memory,
            whole,
            total,
            map,
            clock,
            shards: Shards::new(index, whole),
            flags: AtomicU32::new(uncached | divided | announced),
            polls: Padded::default(),
            peaks: Peaks::new(),
            growth: Padded(Mutex::new(Growth {
                store,
                counters: Counters::default(),
                moving,
                lost: 0,
                parting: Parting::default(),
                marks: Marks::default(),
                loans: Vec::new(),
                unrecalled: 0,
                looked_us: 0,
                idle: IdleList::default(),
                movable: Vec::new(),
                usable: Vec::new(),
            })),
            pools: Padded::default(),
            captures,
            pins: Padded::default(),
            watch: Padded::default(),
            ipc: Padded::default(),
            deferred: Padded(Mutex::new(deferred)),
            direct: Padded::default(),
            history: Padded(history),
            alarm: Padded::default(),
            ooms: AtomicU64::new(0),
            fraction_limited: AtomicBool::new(false),
            device,
            config,
        };
        engine.set_memory_fraction(engine.config.memory_fraction)?;
        Ok(engine)
    }

    /// The device.
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The device as one whose streams use memory of others.
    pub(crate) fn as_guest(&self) -> Guest {
        let (device, captures) = (Arc::clone(&self.device), Arc::clone(&self.captures));
        Guest { index: self.index, device, captures }
    }

    /// The device's number.
    pub(crate) fn id(&self) -> DeviceId {
        DeviceId(self.index as i32)
    }

    /// Limits what is taken from the device to a share of its memory.
    pub(crate) fn set_memory_fraction(&self, fraction: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::InvalidArgument {
                argument: "memory fraction",
                value: fraction.to_string(),
                expected: "a share of the device's memory between 0 and 1".to_owned(),
            });
        }
        let limited = fraction < 1.0;
        let limit = if limited { (self.total as f64 * fraction) as Bytes } else { Bytes::MAX };
        self.growth.lock().store.limit = limit;
        self.fraction_limited.store(limited, Ordering::Relaxed);
        Ok(())
    }

    /// The limit as a share of the device's memory.
    pub(crate) fn memory_fraction(&self) -> f64 {
        if !self.fraction_limited.load(Ordering::Relaxed) {
            return 1.0;
        }
        self.growth.lock().store.limit as f64 / self.total as f64
    }

    /// Turns caching on or off for later allocations.
    pub(crate) fn set_caching(&self, caching: bool) {
        if caching {
            self.flags.fetch_and(!flag::UNCACHED, Ordering::Relaxed);
        } else {
            self.flags.fetch_or(flag::UNCACHED, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_caching(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flag::UNCACHED == 0
    }

    /// Counts an out-of-memory error.
    fn count_out_of_memory(&self) {
        self.ooms.fetch_add(1, Ordering::Relaxed);
    }

    /// The largest cached block of any stream.
    pub(crate) fn largest_free_block(&self) -> Bytes {
        let sizes = self.shards.iter().map(|(_, shard)| shard.heap.lock().largest_free());
        sizes.max().unwrap_or(0)
    }

    /// The arena and the size with which a request is served.
    #[inline]
    fn size_of(&self, requested: Bytes) -> (ArenaKind, Bytes) {
        let bytes = match &self.divisions {
            None => crate::heap::rounded(requested),
            Some(divisions) => crate::heap::rounded(divisions.apply(requested)),
        };
        (ArenaKind::of(bytes), bytes)
    }
}

fn no_rdma(device: &dyn Device) -> Error {
    Error::Unsupported {
        operation: "gpu_direct_rdma".to_owned(),
        by: device.name(),
        why: "network cards do not reach its mapped memory; leave the key out, or use whole \
              segments (expandable_segments:False)"
            .to_owned(),
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Memory that is live stays with whoever uses it: queued work may still read it.
        let _ = self.empty_cache();
        self.give_addresses_back();
        self.forget_marks(&mut self.growth.lock());
        self.deferred.get_mut().destroy_events();
    }
}
