//! What is known of the allocations of user functions: a map from pointers, in shards, and
//! counters.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::counters::{Counters, Totals};
use crate::error::{Error, InvalidPointer, OutOfMemory, PointerFault, Result};
use crate::lock::Mutex;
use crate::observe::DeviceStatistics;
use crate::units::{Address, Bytes, DeviceId, StreamId};

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

/// How many shards the map has: enough that 16 threads seldom meet in one.
const SHARDS: usize = 64;
/// How many freed addresses each shard remembers, to tell a double free from a foreign pointer.
const REMEMBERED: usize = 32;
/// Devices are numbered by a signed byte on the C++ side.
pub(super) const MAX_DEVICES: usize = 128;

/// The allocations of one source.
///
/// Nothing here calls a user function, so that none is ever called under one of these locks.
pub(crate) struct Metadata {
    shards: Box<[Shard]>,
    counters: Counters,
}

/// On cache lines of its own, so that threads in different shards do not slow each other.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<ShardState>);

#[derive(Default)]
struct ShardState {
    live: HashMap<Address, Entry, BuildHasherDefault<AddressHasher>>,
    freed: [Address; REMEMBERED],
    next_freed: usize,
    /// By device. What is counted here needs no shared counter.
    totals: Vec<Totals>,
}

impl Metadata {
    pub(crate) fn new() -> Metadata {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Metadata { shards, counters: Counters::new() }
    }

    /// Notes a new allocation. A pointer that is live already is refused, and the old entry stays.
    pub(crate) fn record(&self, address: Address, entry: Entry) -> Result<()> {
        let device = self.counters.device(entry.device)?;
        let mut shard = self.shard(address).0.lock();
        let slot = match shard.live.entry(address) {
            std::collections::hash_map::Entry::Vacant(slot) => slot,
            std::collections::hash_map::Entry::Occupied(_) => return Err(live_twice(address)),
        };
        slot.insert(entry);
        shard.totals_of(entry.device).add_allocation(entry.bytes);
        drop(shard);
        device.allocated(entry.bytes);
        Ok(())
    }

    /// Forgets an allocation and says what it was. From then on the pointer may be recorded again.
    pub(crate) fn take(&self, address: Address) -> Result<Entry> {
        let mut shard = self.shard(address).0.lock();
        let Some(entry) = shard.live.remove(&address) else {
            return Err(shard.refuse(address));
        };
        shard.remember(address);
        shard.totals_of(entry.device).add_free(entry.bytes);
        drop(shard);
        self.counters.device(entry.device)?.freed(entry.bytes);
        Ok(entry)
    }

    /// What is known of a live allocation.
    pub(crate) fn find(&self, address: Address) -> Result<Entry> {
        let shard = self.shard(address).0.lock();
        shard.live.get(&address).copied().ok_or_else(|| shard.refuse(address))
    }

    /// Whether the pointer is the start of a live allocation.
    pub(crate) fn owns(&self, address: Address) -> bool {
        self.shard(address).0.lock().live.contains_key(&address)
    }

    /// Whether nothing is live.
    pub(crate) fn is_idle(&self) -> bool {
        self.shards.iter().all(|shard| shard.0.lock().live.is_empty())
    }

    /// Counts a request for which there was no memory, and gives the error for it.
    pub(crate) fn out_of_memory(&self, bytes: Bytes, device: DeviceId) -> Error {
        let counters = match self.counters.device(device) {
            Ok(counters) => counters,
            Err(error) => return error,
        };
        let allocated = counters.out_of_memory();
        Error::OutOfMemory(Box::new(OutOfMemory {
            requested: bytes,
            device: device.0,
            allocated,
            reserved: allocated,
            hint: "The user's alloc_fn gave no memory; the device's total is unknown.".to_owned(),
            ..OutOfMemory::default()
        }))
    }

    /// Fails for a device number that cannot be.
    pub(crate) fn check_device(&self, device: DeviceId) -> Result<()> {
        self.counters.check(device).map(|_| ())
    }

    pub(crate) fn statistics(&self, device: DeviceId) -> Result<DeviceStatistics> {
        Ok(self.counters.device(device)?.statistics(self.totals(device)))
    }

    pub(crate) fn reset_peaks(&self, device: DeviceId) -> Result<()> {
        self.counters.device(device)?.reset_peaks();
        Ok(())
    }

    pub(crate) fn reset_accumulated(&self, device: DeviceId) -> Result<()> {
        self.counters.device(device)?.reset_accumulated();
        for shard in &self.shards {
            *shard.0.lock().totals_of(device) = Totals::default();
        }
        Ok(())
    }

    /// The share of the device's memory that was allowed last; 1 before.
    pub(crate) fn fraction(&self, device: DeviceId) -> Result<f64> {
        Ok(self.counters.device(device)?.fraction())
    }

    pub(crate) fn set_fraction(&self, device: DeviceId, fraction: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::InvalidArgument {
                argument: "memory fraction",
                value: fraction.to_string(),
                expected: "a share of the device's memory, from 0 to 1".to_owned(),
            });
        }
        self.counters.device(device)?.set_fraction(fraction);
        Ok(())
    }

    pub(crate) fn copy_fractions(&self, from: &Metadata) {
        self.counters.copy_fractions(&from.counters);
    }

    fn totals(&self, device: DeviceId) -> Totals {
        let mut sum = Totals::default();
        for shard in &self.shards {
            sum.add(*shard.0.lock().totals_of(device));
        }
        sum
    }

    #[inline]
    fn shard(&self, address: Address) -> &Shard {
        &self.shards[(spread(address) >> (64 - SHARDS.ilog2())) as usize]
    }
}

impl ShardState {
    #[inline]
    fn totals_of(&mut self, device: DeviceId) -> &mut Totals {
        let index = device.index().unwrap_or(0);
        if index >= self.totals.len() {
            self.totals.resize(index + 1, Totals::default());
        }
        &mut self.totals[index]
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
        InvalidPointer { address, fault }.into()
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

/// The top bits of the product choose the shard, so the table inside it takes the ones below.
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
        self.0 = spread(address).rotate_left(32);
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
        assert_eq!(metadata.find(0x1000).expect("live"), ENTRY);
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
        assert_eq!(metadata.find(0x1000).expect("live"), ENTRY);
        assert_eq!(metadata.statistics(DeviceId(0)).expect("known").allocation.all.current, 1);
    }

    #[test]
    fn addresses_two_mebibytes_apart_do_not_share_a_shard_or_a_bucket() {
        let mut shards = [0; SHARDS];
        for index in 0..6400 {
            shards[(spread(index * 2 * MIB) >> 58) as usize] += 1;
        }
        assert!(shards.iter().all(|count| (50..200).contains(count)), "{shards:?}");
    }
}
