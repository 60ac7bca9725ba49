//! Whoever wants to know what memory appears and disappears at which addresses: libraries that
//! register memory with a network card or another device.
//!
//! Observers are called with no lock of the allocator held, in the order of what happened, one
//! thread at a time. What appears is told before the request returns that it was made for. What is
//! to disappear is told first, and unmapped after that: so such memory is put aside under the lock
//! on physical memory, and the lock is let go of while the observers are told
//! ([`announce`](Engine::announce)).

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard, ReentrantMutex, RwLock};

use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::ArenaKind;
use crate::units::{Address, Bytes, DeviceId};

/// What happens to a span of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingChange {
    /// Memory has appeared there, and may be used.
    Mapped,
    /// The memory there is about to disappear. Nobody uses it any more.
    Unmapping,
}

/// One change, as observers are told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MappingEvent {
    /// What happens.
    pub change: MappingChange,
    /// The device.
    pub device: DeviceId,
    /// Where the span starts.
    pub address: Address,
    /// How long it is. A span disappears as it has appeared, whole.
    pub bytes: Bytes,
}

/// An observer.
pub(crate) type MappingObserver = Arc<dyn Fn(&MappingEvent) + Send + Sync>;

/// The observers of one device, and what they are still to be told.
pub(crate) struct Watch {
    present: AtomicBool,
    observers: RwLock<Vec<(u64, MappingObserver)>>,
    /// What is being told stays the first until that is done.
    queue: Mutex<VecDeque<MappingEvent>>,
    /// Whether that is so; by the thread whose turn it is.
    telling: AtomicBool,
    /// Held by the thread that calls observers; true while it does.
    turn: ReentrantMutex<Cell<bool>>,
}

impl Default for Watch {
    fn default() -> Self {
        Watch {
            present: AtomicBool::new(false),
            observers: RwLock::default(),
            queue: Mutex::default(),
            telling: AtomicBool::new(false),
            turn: ReentrantMutex::new(Cell::new(false)),
        }
    }
}

/// What is about to disappear; under the lock on physical memory.
#[derive(Debug, Default)]
pub(crate) struct Parting {
    /// Spans that observers have to be told of before they can be unmapped.
    wanted: Vec<(Address, Bytes)>,
    /// Spans that are mapped and that observers take for gone, or never heard of; or will, once
    /// they are told what stands in the queue.
    announced: HashSet<Address>,
    /// Segments that were taken out of their heaps.
    segments: Vec<Segment>,
}

/// A whole segment of the device or of a pool's source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) shard: u32,
    pub(super) base: Address,
    pub(super) bytes: Bytes,
    pub(super) kind: ArenaKind,
}

impl Parting {
    /// Segments that are in no heap, and that the device has still.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of segments that are in no heap.
    pub(super) fn segment_bytes(&self) -> Bytes {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

/// An event that is being told: out of the queue after that, whatever an observer does.
struct Telling<'a>(&'a Watch);

impl<'a> Telling<'a> {
    fn begin(watch: &'a Watch) -> Self {
        watch.telling.store(true, Ordering::Relaxed);
        Telling(watch)
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.telling.store(false, Ordering::Relaxed);
        self.0.queue.lock().pop_front();
    }
}

/// Ends a thread's turn, whatever an observer does.
struct Turn<'a>(&'a Cell<bool>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Engine {
    /// Adds an observer under a number, and tells it what is mapped already.
    pub(crate) fn observe_mappings(&self, number: u64, observer: &MappingObserver) {
        // Before the lock on physical memory: an observer may need that.
        let turn = self.watch.turn.lock();
        let nested = turn.get();
        let mut growth = self.growth.lock();
        while !nested && !self.watch.queue.lock().is_empty() {
            // For the others: this one sees the outcome. Where there are none it is for nobody.
            match self.is_watched() {
                true => MutexGuard::unlocked(&mut growth, || self.tell_observers()),
                false => self.watch.queue.lock().clear(),
            }
        }
        let mut known = Vec::new();
        for (_, handle) in growth.store.handles() {
            let places = handle.active.iter().chain(&handle.dormant).chain(&handle.lent);
            known.extend(places.map(|place| (place.address, handle.bytes)));
        }
        for (_, shard) in self.shards.iter() {
            known.extend(shard.heap.lock().segments());
        }
        known.extend(self.direct_spans());
        let parted = growth.parting.segments.iter();
        known.extend(parted.map(|segment| (segment.base, segment.bytes)));
        let pending = self.pending();
        known.retain(|(address, _)| match pending.get(address) {
            // It is told of what others are still to be told, like them.
            Some(first) => *first == MappingChange::Unmapping,
            None => !growth.parting.announced.contains(address),
        });
        known.sort_unstable();
        self.watch.observers.write().push((number, Arc::clone(observer)));
        self.watch.present.store(true, Ordering::Release);
        drop(growth);
        turn.set(true);
        let ends = (!nested).then(|| Turn(&turn));
        for (address, bytes) in known {
            observer(&self.event(MappingChange::Mapped, address, bytes));
        }
        drop(ends);
        drop(turn);
        self.tell_observers();
    }

    /// Removes an observer; false where there is none of that number.
    pub(crate) fn unobserve_mappings(&self, number: u64) -> bool {
        // Not in the middle of a call.
        let _turn = self.watch.turn.lock();
        let mut observers = self.watch.observers.write();
        let before = observers.len();
        observers.retain(|(other, _)| *other != number);
        self.watch.present.store(!observers.is_empty(), Ordering::Release);
        observers.len() < before
    }

    /// The first change at each address that stands in the queue behind what is being told.
    fn pending(&self) -> HashMap<Address, MappingChange> {
        let queue = self.watch.queue.lock();
        let told = usize::from(self.watch.telling.load(Ordering::Relaxed));
        let later_first = queue.iter().skip(told).rev();
        later_first.map(|event| (event.address, event.change)).collect()
    }

    fn event(&self, change: MappingChange, address: Address, bytes: Bytes) -> MappingEvent {
        MappingEvent { change, device: self.id(), address, bytes }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watch.present.load(Ordering::Acquire)
    }

    /// Notes that memory has appeared.
    pub(super) fn note_mapped(&self, address: Address, bytes: Bytes) {
        if self.is_watched() {
            let event = self.event(MappingChange::Mapped, address, bytes);
            self.watch.queue.lock().push_back(event);
        }
    }

    /// Notes that memory is in use again which observers may have been told to be disappearing.
    pub(super) fn note_kept(&self, growth: &mut Growth, address: Address, bytes: Bytes) {
        growth.parting.wanted.retain(|&(at, _)| at != address);
        if growth.parting.announced.remove(&address) {
            self.note_mapped(address, bytes);
        }
    }

    /// Notes that memory is mapped at an address where nobody can use it, yet or any more.
    pub(super) fn note_closed(&self, growth: &mut Growth, address: Address) {
        growth.parting.announced.insert(address);
    }

    /// Notes that a handle is in use again at an address.
    pub(super) fn note_woken(&self, growth: &mut Growth, number: u32, address: Address) {
        if let Some(bytes) = growth.store.handle(number).map(|handle| handle.bytes) {
            self.note_kept(growth, address, bytes);
        }
    }

    /// Serves a request that its heap could not serve a moment ago, and tells what has changed.
    #[cold]
    pub(super) fn allocate_slow(&self, shard: u32, requested: Bytes) -> Result<Address> {
        let result = self.allocate_growing(shard, requested);
        self.tell_observers();
        result
    }

    /// Whether a span may be unmapped now; if not, it can be once it was announced.
    pub(super) fn may_unmap(&self, growth: &mut Growth, address: Address, bytes: Bytes) -> bool {
        if !self.is_watched() {
            return true;
        }
        if growth.parting.announced.contains(&address) {
            return !self.is_unmapping_untold(|event| event.address == address);
        }
        if !growth.parting.wanted.contains(&(address, bytes)) {
            growth.parting.wanted.push((address, bytes));
        }
        false
    }

    /// Whether observers have still to be told that something disappears.
    fn is_unmapping_untold(&self, what: impl Fn(&MappingEvent) -> bool) -> bool {
        let queue = self.watch.queue.lock();
        queue.iter().any(|event| event.change == MappingChange::Unmapping && what(event))
    }

    /// The same of a handle at an address.
    pub(super) fn may_unmap_place(
        &self,
        growth: &mut Growth,
        number: u32,
        address: Address,
    ) -> bool {
        let bytes = growth.store.handle(number).map_or(0, |handle| handle.bytes);
        self.may_unmap(growth, address, bytes)
    }

    /// A span was unmapped.
    pub(super) fn note_unmapped(&self, growth: &mut Growth, address: Address) {
        growth.parting.wanted.retain(|&(at, _)| at != address);
        growth.parting.announced.remove(&address);
    }

    /// Tells the observers that an allocation of the device's own is about to disappear. True where
    /// that is left to a call further out, which is telling them something else.
    pub(super) fn announce_direct(&self, address: Address, bytes: Bytes) -> bool {
        if !self.is_watched() {
            return false;
        }
        let event = self.event(MappingChange::Unmapping, address, bytes);
        self.watch.queue.lock().push_back(event);
        self.tell_observers();
        self.is_observing()
    }

    /// Puts a segment aside that is to go, and is in no heap any more.
    pub(super) fn part_with(&self, growth: &mut Growth, segment: Segment) {
        growth.parting.segments.push(segment);
        growth.parting.wanted.push((segment.base, segment.bytes));
    }

    /// Tells the observers what is about to disappear, with the lock let go of meanwhile. True
    /// where something can be unmapped now that could not before.
    pub(super) fn announce(&self, growth: &mut MutexGuard<'_, Growth>) -> Result<bool> {
        // What observers have freed and were told of since.
        let given = self.has_left() && self.give_left(growth);
        // What another thread is about to tell can be unmapped once it has.
        let elsewhere = || self.is_watched() && self.is_unmapping_untold(|_| true);
        if self.is_observing() || (growth.parting.wanted.is_empty() && !elsewhere()) {
            return Ok(given);
        }
        let wanted = std::mem::take(&mut growth.parting.wanted);
        for &(address, bytes) in &wanted {
            growth.parting.announced.insert(address);
            let event = self.event(MappingChange::Unmapping, address, bytes);
            self.watch.queue.lock().push_back(event);
        }
        MutexGuard::unlocked(growth, || self.tell_observers());
        self.free_all_parted(growth)?;
        Ok(true)
    }

    /// Gives back the segments that were put aside and that observers have been told of.
    fn free_all_parted(&self, growth: &mut Growth) -> Result<()> {
        let parted = std::mem::take(&mut growth.parting.segments);
        let (told, left): (Vec<_>, Vec<_>) = parted
            .into_iter()
            .partition(|segment| self.may_unmap(growth, segment.base, segment.bytes));
        growth.parting.segments = left;
        let mut given = 0;
        let result = match self.captures.may_be_under_way(self.device.as_ref()) {
            // One that has begun since would be spoilt.
            Ok(true) => Ok(()),
            Ok(false) => told.iter().try_for_each(|&segment| {
                self.free_parted(growth, segment)?;
                given += 1;
                Ok(())
            }),
            Err(error) => Err(error.into()),
        };
        told[given..].iter().for_each(|&segment| self.take_back(growth, segment));
        result
    }

    fn free_parted(&self, growth: &mut Growth, segment: Segment) -> Result<()> {
        if let Some(shard) = self.shards.get(segment.shard) {
            self.give_segment(growth, shard, segment.base, segment.bytes)?;
        }
        self.note_unmapped(growth, segment.base);
        self.count_given(growth, (segment.base, segment.bytes), segment.kind);
        Ok(())
    }

    /// A segment could not be given back: it is the heap's again.
    fn take_back(&self, growth: &mut Growth, segment: Segment) {
        if let Some(shard) = self.shards.get(segment.shard) {
            let slots = shard.heap.lock().add_segment(segment.base, segment.bytes, segment.kind);
            self.publish(segment.shard, &slots);
            self.note_kept(growth, segment.base, segment.bytes);
        }
    }

    /// Whether this thread is in the middle of a call of an observer.
    fn is_observing(&self) -> bool {
        self.watch.turn.try_lock().is_some_and(|turn| turn.get())
    }

    /// Tells the observers what has happened, in order. A call from inside of an observer leaves it
    /// to the one outside.
    pub(crate) fn tell_observers(&self) {
        if !self.is_watched() {
            return;
        }
        let turn = self.watch.turn.lock();
        if turn.replace(true) {
            return;
        }
        let _turn = Turn(&turn);
        loop {
            let next = self.watch.queue.lock().front().copied();
            let Some(event) = next else { return };
            let telling = Telling::begin(&self.watch);
            let observers: Vec<MappingObserver> =
                self.watch.observers.read().iter().map(|(_, each)| Arc::clone(each)).collect();
            observers.iter().for_each(|observer| observer(&event));
            drop(telling);
            if self.has_left() {
                self.give_left(&mut self.growth.lock());
            }
        }
    }
}
