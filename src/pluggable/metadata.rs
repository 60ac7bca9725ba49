//! What is known of the allocations of user functions: a map from pointers, counters, and whoever
//! wants to know of events.

use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasherDefault, Hasher};

use super::counters::DeviceCounters;
use super::recorder::Recorder;
use crate::engine::OutOfMemoryObserver;
use crate::error::{Error, InvalidPointer, OutOfMemory, PointerFault, PointerUse, Result};
use crate::lock::{Mutex, MutexGuard};
use crate::observe::history::Tracker;
use crate::observe::{
    BlockState, Context, DeviceStatistics, HistoryOptions, RecordContext, Snapshot, SnapshotBlock,
    SnapshotSegment,
};
use crate::units::{Address, Bytes, DeviceId, MIB, PoolId, StreamId};

/// One live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes that were asked for.
    pub bytes: Bytes,
    /// The device that was asked.
    pub device: DeviceId,
    /// The stream that it was allocated for.
    pub stream: StreamId,
}

/// How many freed addresses are remembered, to tell a double free from a foreign pointer.
const REMEMBERED: usize = 1024;
/// Devices are numbered by a signed byte on the C++ side.
const MAX_DEVICES: usize = 128;

/// The allocations of one source.
///
/// All of it stands behind one lock, which is one atomic exchange a call: the source is one for all
/// threads as well, and counters apart from the map would cost as much again, map or not.
///
/// Nothing here calls a function of the source, so that none is ever called under the lock.
pub(crate) struct Metadata {
    state: Mutex<State>,
    recorder: Recorder,
}

/// A live allocation, and its number among all. Short, since a program may have many.
struct Live {
    bytes: Bytes,
    stream: StreamId,
    /// The number, and in the lowest bits the device.
    born_on: u64,
}

impl Live {
    #[inline]
    fn new(entry: Entry, born: u64) -> Live {
        let born_on = born * MAX_DEVICES as u64 + entry.device.0 as u64;
        Live { bytes: entry.bytes, stream: entry.stream, born_on }
    }

    #[inline]
    fn entry(&self) -> Entry {
        let device = DeviceId((self.born_on % MAX_DEVICES as u64) as i32);
        Entry { bytes: self.bytes, device, stream: self.stream }
    }

    fn born(&self) -> u64 {
        self.born_on / MAX_DEVICES as u64
    }
}

struct State {
    live: HashMap<Address, Live, BuildHasherDefault<AddressHasher>>,
    born: u64,
    freed: Box<[Address; REMEMBERED]>,
    next_freed: usize,
    /// By device, as far as any was used.
    devices: Vec<DeviceCounters>,
}

impl Metadata {
    pub(crate) fn new() -> Metadata {
        let freed = Box::new([0; REMEMBERED]);
        let state =
            State { live: HashMap::default(), born: 0, freed, next_freed: 0, devices: Vec::new() };
        Metadata { state: Mutex::new(state), recorder: Recorder::default() }
    }

    /// Notes a new allocation. A pointer that is live already is refused, and the old entry stays.
    pub(crate) fn record(&self, address: Address, entry: Entry) -> Result<()> {
        if self.recorder.is_active() {
            return self.record_told(address, entry);
        }
        self.state.lock().insert(address, entry)
    }

    #[cold]
    fn record_told(&self, address: Address, entry: Entry) -> Result<()> {
        self.recorder.check_outside()?;
        let context = self.recorder.gather(RecordContext::State);
        let mut state = self.state.lock();
        state.insert(address, entry)?;
        self.recorder.allocated(address, entry, context);
        Ok(())
    }

    /// Forgets an allocation and says what it was. From then on the pointer may be recorded again.
    pub(crate) fn take(&self, address: Address) -> Result<Entry> {
        if self.recorder.is_active() {
            return self.take_told(address);
        }
        self.state.lock().remove(address)
    }

    #[cold]
    fn take_told(&self, address: Address) -> Result<Entry> {
        self.recorder.check_outside()?;
        let context = self.recorder.gather(RecordContext::All);
        let mut state = self.state.lock();
        let entry = state.remove(address)?;
        self.recorder.freed(address, entry, context);
        Ok(entry)
    }

    /// What is known of a live allocation; an error says what it was wanted for.
    pub(crate) fn find(&self, address: Address, purpose: PointerUse) -> Result<Entry> {
        let state = self.lock()?;
        let entry = state.live.get(&address).map(Live::entry);
        entry.ok_or_else(|| state.refuse(address).when_asked_to(purpose))
    }

    /// Whether the pointer is the start of a live allocation.
    pub(crate) fn owns(&self, address: Address) -> Result<bool> {
        Ok(self.lock()?.live.contains_key(&address))
    }

    /// Whether nothing is live, and nobody inside of a tracker.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().is_ok_and(|state| state.live.is_empty())
    }

    /// The state; for calls out of a tracker, which is called with the lock held, an error.
    #[inline]
    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        self.recorder.check_outside()?;
        Ok(self.state.lock())
    }

    /// Counts a request for which there was no memory, tells whoever wants to know, and gives the
    /// error for it.
    pub(crate) fn out_of_memory(&self, bytes: Bytes, device: DeviceId, stream: StreamId) -> Error {
        let allocated = match self.of(device, |counters| counters.out_of_memory()) {
            Ok(allocated) => allocated,
            Err(error) => return error,
        };
        let error = Error::OutOfMemory(Box::new(OutOfMemory {
            requested: bytes,
            device: device.0,
            allocated,
            reserved: allocated,
            hint: "The user's alloc_fn gave no memory.".to_owned(),
            ..OutOfMemory::default()
        }));
        self.recorder.failed(&error, device, stream);
        error
    }

    /// Fails for a device number that cannot be.
    pub(crate) fn check_device(&self, device: DeviceId) -> Result<()> {
        place_of(device).map(|_| ())
    }

    /// Fails for what cannot be recorded later: a device number that cannot be, or a call out of a
    /// tracker. Whoever asks the source for memory asks this first, since otherwise nobody would
    /// have what the source gives.
    pub(crate) fn check_request(&self, device: DeviceId) -> Result<()> {
        self.recorder.check_outside()?;
        self.check_device(device)
    }

    pub(crate) fn statistics(&self, device: DeviceId) -> Result<DeviceStatistics> {
        self.of(device, |counters| counters.statistics())
    }

    pub(crate) fn reset_peaks(&self, device: DeviceId) -> Result<()> {
        self.of(device, DeviceCounters::reset_peaks)
    }

    pub(crate) fn reset_accumulated(&self, device: DeviceId) -> Result<()> {
        self.of(device, DeviceCounters::reset_accumulated)
    }

    /// The share of the device's memory that was allowed last; 1 before.
    pub(crate) fn fraction(&self, device: DeviceId) -> Result<f64> {
        self.of(device, |counters| counters.fraction)
    }

    pub(crate) fn set_fraction(&self, device: DeviceId, fraction: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::InvalidArgument {
                argument: "memory fraction",
                value: fraction.to_string(),
                expected: "a share of the device's memory, from 0 to 1".to_owned(),
            });
        }
        self.of(device, |counters| counters.fraction = fraction)
    }

    pub(crate) fn copy_fractions(&self, from: &Metadata) -> Result<()> {
        let fractions: Vec<f64> = from.lock()?.devices.iter().map(|c| c.fraction).collect();
        let mut state = self.lock()?;
        for (device, fraction) in fractions.into_iter().enumerate() {
            state.counters(device).fraction = fraction;
        }
        Ok(())
    }

    pub(crate) fn record_history(&self, options: &HistoryOptions) -> Result<()> {
        options.check()?;
        self.recorder.check_outside()?;
        self.recorder.start(options);
        Ok(())
    }

    pub(crate) fn stop_history(&self) -> Result<()> {
        self.recorder.check_outside()?;
        self.recorder.stop();
        Ok(())
    }

    pub(crate) fn is_history_enabled(&self) -> bool {
        self.recorder.is_enabled()
    }

    pub(crate) fn annotate(&self, device: DeviceId, metadata: &[(String, String)]) -> Result<()> {
        self.check_request(device)?;
        self.recorder.annotate(device, metadata);
        Ok(())
    }

    pub(crate) fn track(&self, tracker: Tracker) -> Result<()> {
        self.recorder.check_outside()?;
        self.recorder.track(&tracker);
        Ok(())
    }

    pub(crate) fn observe_out_of_memory(&self, observer: OutOfMemoryObserver) {
        self.recorder.observe_out_of_memory(observer);
    }

    /// The context of a live allocation.
    pub(crate) fn context_of(&self, address: Address) -> Result<Option<Context>> {
        let device = self.lock()?.live.get(&address).map(|live| live.entry().device);
        Ok(device.and_then(|device| self.recorder.context_of(device, address)))
    }

    /// All that is live, each allocation as a segment of one block, and the history.
    pub(crate) fn snapshot(&self, traces: bool) -> Result<Snapshot> {
        let state = self.lock()?;
        let mut snapshot = Snapshot::default();
        snapshot.segments.extend(state.live.iter().map(|(&at, live)| self.segment(at, live)));
        snapshot.segments.sort_by_key(|segment| (segment.device, segment.address));
        self.recorder.add_to(&mut snapshot, state.devices.len(), traces);
        Ok(snapshot)
    }

    fn segment(&self, address: Address, live: &Live) -> SnapshotSegment {
        let Entry { bytes, device, stream } = live.entry();
        let state = BlockState::ActiveAllocated;
        let context = self.recorder.context_of(device, address);
        let block = SnapshotBlock { address, bytes, requested: bytes, state, context };
        SnapshotSegment {
            stream,
            is_large: bytes > MIB,
            registration_counter: live.born(),
            ..SnapshotSegment::new(device, PoolId::DEFAULT, vec![block])
        }
    }

    fn of<T>(&self, device: DeviceId, look: impl FnOnce(&mut DeviceCounters) -> T) -> Result<T> {
        let device = place_of(device)?;
        Ok(look(self.lock()?.counters(device)))
    }
}

/// The place of a device among the counters.
#[inline]
fn place_of(device: DeviceId) -> Result<usize> {
    let index = device.index().filter(|index| *index < MAX_DEVICES);
    index.ok_or(Error::InvalidDevice { device, count: MAX_DEVICES })
}

impl State {
    #[inline]
    fn insert(&mut self, address: Address, entry: Entry) -> Result<()> {
        let device = place_of(entry.device)?;
        let born = self.born;
        match self.live.entry(address) {
            hash_map::Entry::Vacant(slot) => slot.insert(Live::new(entry, born)),
            hash_map::Entry::Occupied(_) => return Err(live_twice(address)),
        };
        self.born += 1;
        self.counters(device).allocated(entry.bytes);
        Ok(())
    }

    #[inline]
    fn remove(&mut self, address: Address) -> Result<Entry> {
        let Some(entry) = self.live.remove(&address).map(|live| live.entry()) else {
            return Err(self.refuse(address));
        };
        self.remember(address);
        let device = place_of(entry.device)?;
        self.counters(device).freed(entry.bytes);
        Ok(entry)
    }

    #[inline]
    fn counters(&mut self, device: usize) -> &mut DeviceCounters {
        if device >= self.devices.len() {
            self.devices.resize(device + 1, DeviceCounters::default());
        }
        &mut self.devices[device]
    }

    #[inline]
    fn remember(&mut self, address: Address) {
        self.freed[self.next_freed] = address;
        self.next_freed = (self.next_freed + 1) % REMEMBERED;
    }

    #[cold]
    fn refuse(&self, address: Address) -> Error {
        let freed = address != 0 && self.freed.contains(&address);
        let fault = if freed { PointerFault::DoubleFree } else { PointerFault::Foreign };
        InvalidPointer::new(address, fault).into()
    }
}

#[cold]
fn live_twice(address: Address) -> Error {
    Error::InvalidArgument {
        argument: "alloc_fn",
        value: format!("result {address:#x}"),
        expected: "memory that is not in use: this pointer was given before and not freed since"
            .to_owned(),
    }
}

/// Spreads addresses, whose low bits are all zero, over all bits.
#[inline]
fn spread(address: Address) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A table takes its bucket from the lowest bits of a hash and a tag from its highest: to those all
/// bits of an address carry, so that they are folded onto the lowest.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, address: u64) {
        let product = spread(address);
        self.0 = product ^ (product >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    const ENTRY: Entry = Entry { bytes: 512, device: DeviceId(0), stream: StreamId(7) };

    #[test]
    fn gives_back_exactly_what_was_recorded() {
        let metadata = Metadata::new();
        metadata.record(0x1000, ENTRY).expect("new");
        assert_eq!(metadata.find(0x1000, PointerUse::Find).expect("live"), ENTRY);
        assert_eq!(metadata.take(0x1000).expect("live"), ENTRY);
        assert!(metadata.is_idle());
    }

    #[test]
    fn tells_a_double_free_from_a_foreign_pointer() {
        let metadata = Metadata::new();
        metadata.record(0x1000, ENTRY).expect("new");
        metadata.take(0x1000).expect("live");
        let fault = |address| match metadata.take(address) {
            Err(Error::InvalidPointer(pointer)) => pointer.fault,
            other => panic!("{other:?}"),
        };
        assert_eq!(fault(0x1000), PointerFault::DoubleFree);
        assert_eq!(fault(0x2000), PointerFault::Foreign);
    }

    #[test]
    fn refuses_a_pointer_that_is_live_already() {
        let metadata = Metadata::new();
        metadata.record(0x1000, ENTRY).expect("new");
        assert!(metadata.record(0x1000, Entry { bytes: 1, ..ENTRY }).is_err());
        assert_eq!(metadata.find(0x1000, PointerUse::Find).expect("live"), ENTRY);
        assert_eq!(metadata.statistics(DeviceId(0)).expect("known").allocation.all.current, 1);
    }

    #[test]
    fn addresses_two_mebibytes_apart_spread_over_buckets_and_tags() {
        let hash = |index: u64| {
            let mut hasher = AddressHasher::default();
            hasher.write_u64(index * 2 * MIB);
            hasher.finish()
        };
        for place in [0, 57] {
            let mut counts = [0; 128];
            (0..12_800).for_each(|index| counts[(hash(index) >> place) as usize % 128] += 1);
            assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn fractions_are_each_devices_own_and_can_be_copied() {
        let (metadata, other) = (Metadata::new(), Metadata::new());
        metadata.set_fraction(DeviceId(2), 0.5).expect("a share");
        assert!(metadata.set_fraction(DeviceId(2), 1.5).is_err());
        other.copy_fractions(&metadata).expect("outside");
        let fractions = [0, 1, 2, 3].map(|device| other.fraction(DeviceId(device)).expect("known"));
        assert_eq!(fractions, [1.0, 1.0, 0.5, 1.0]);
        assert!(other.fraction(DeviceId(MAX_DEVICES as i32)).is_err());
    }
}
