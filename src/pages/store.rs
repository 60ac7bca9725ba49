//! The device's handles, and the driver calls that make, map, unmap and release them. Every method
//! leaves the store as it was, or as it should be: a failed step is undone.

mod counts;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::policy::price;
use crate::device::{Device, DeviceResult, HandleId};
use crate::error::DeviceErrorKind;
use crate::heap::ArenaKind;
use crate::nvtx::Announcer;
use crate::stat::Stat;
use crate::units::{Address, Bytes, GRANULE, make_room, room_for};

/// Where a handle is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The heap, by its place among the device's shards.
    pub(crate) shard: u32,
    /// The view in that heap.
    pub(crate) view: u32,
    pub(crate) address: Address,
    /// Which requests it serves there.
    pub(crate) kind: ArenaKind,
}

/// For how many of them there is room in a handle at first.
const PLACES: usize = 12;

/// Physical memory of one size.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    id: HandleId,
    pub(crate) bytes: Bytes,
    /// Where it is in use.
    pub(crate) active: Option<Place>,
    /// Where else it is mapped.
    pub(crate) dormant: Vec<Place>,
    /// Where parts of it are in use that are lent.
    pub(crate) lent: Vec<Place>,
    /// Where it is mapped but was not made accessible.
    closed: Vec<Address>,
    /// How many handles and segments there were before it.
    pub(crate) born: u64,
}

impl Handle {
    /// What the device calls it.
    pub(crate) fn id(&self) -> HandleId {
        self.id
    }
}

/// A dormant view, by its handle and place, with the mark that comes after its last use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parked {
    pub(crate) number: u32,
    pub(crate) place: Place,
    pub(crate) since: u64,
}

/// The same, short: there are many.
#[derive(Clone, Copy, Debug)]
struct Note {
    number: u32,
    shard: u32,
    view: u32,
    /// Its address is so many granules.
    granules: u32,
    since: u64,
}

impl Note {
    fn new(number: u32, place: Place, since: u64) -> Note {
        let granules = (place.address / GRANULE) as u32;
        Note { number, shard: place.shard, view: place.view, granules, since }
    }

    fn is_of(&self, place: &Place) -> bool {
        (self.shard, self.view) == (place.shard, place.view)
            && u64::from(self.granules) == place.address / GRANULE
    }
}

/// All physical memory that the allocator has of one device.
pub(crate) struct Store {
    device: Arc<dyn Device>,
    handles: Vec<Option<Handle>>,
    vacant: Vec<u32>,
    /// How many dormant views there are, and those and some that are none any more, by age.
    dormant: usize,
    parked: VecDeque<Note>,
    /// Handles with no active view.
    pub(crate) spare: Vec<u32>,
    /// Bytes taken from the device, as handles and as segments.
    pub(crate) reserved: Stat,
    /// The same by what it serves; spare handles serve nothing.
    by_kind: [Stat; 2],
    /// Whoever is told of mappings, if anybody is.
    pub(crate) announcer: Option<Arc<Announcer>>,
    /// Network cards are to reach the handles.
    pub(crate) rdma: bool,
    /// The most that may be taken.
    pub(crate) limit: Bytes,
    /// The device refused to go beyond this: asked again only when nothing else is left.
    ceiling: Bytes,
    /// What all calls to the driver have cost, by the price list.
    pub(crate) spent_us: u64,
    /// How often memory was taken from the device, and given back.
    pub(crate) device_allocs: i64,
    pub(crate) device_frees: i64,
    /// How many handles and segments there ever were, and which of them each segment is.
    born: u64,
    segments: HashMap<Address, u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let handles = self.handles.iter().flatten().count();
        f.debug_struct("Store")
            .field("handles", &handles)
            .field("reserved", &self.reserved)
            .finish()
    }
}

impl Store {
    pub(crate) fn new(device: Arc<dyn Device>, limit: Bytes) -> Self {
        Store {
            device,
            handles: Vec::new(),
            vacant: Vec::new(),
            dormant: 0,
            parked: VecDeque::new(),
            spare: Vec::new(),
            reserved: Stat::default(),
            by_kind: [Stat::default(); 2],
            announcer: None,
            rdma: false,
            limit,
            ceiling: Bytes::MAX,
            spent_us: 0,
            device_allocs: 0,
            device_frees: 0,
            born: 0,
            segments: HashMap::new(),
        }
    }

    /// What may still be taken under the limit.
    pub(crate) fn headroom(&self) -> Bytes {
        self.limit.min(self.ceiling).saturating_sub(self.reserved.current as Bytes)
    }

    /// Lets the device be asked again for more than it refused.
    pub(crate) fn forget_ceiling(&mut self) {
        self.ceiling = Bytes::MAX;
    }

    /// Makes a spare handle; `None` where the limit or the device has no room.
    pub(crate) fn create(&mut self, bytes: Bytes) -> DeviceResult<Option<u32>> {
        if bytes > self.headroom() {
            return Ok(None);
        }
        let made = match self.rdma {
            false => self.device.create(bytes),
            true => self.device.create_for_rdma(bytes),
        };
        let id = match made {
            Ok(id) => id,
            Err(error) if error.kind == DeviceErrorKind::OutOfMemory => {
                self.ceiling = self.reserved.current as Bytes + bytes - 1;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.spent_us += price::CREATE_US;
        self.count_taken(bytes);
        let born = self.born;
        self.born += 1;
        // Most come to be mapped at several places.
        let dormant = Vec::with_capacity(PLACES);
        let (lent, closed) = (Vec::new(), Vec::new());
        let handle = Some(Handle { id, bytes, active: None, dormant, lent, closed, born });
        let number = match self.vacant.pop() {
            Some(number) => {
                self.handles[number as usize] = handle;
                number
            }
            None => {
                make_room(&mut self.handles, 1);
                self.handles.push(handle);
                (self.handles.len() - 1) as u32
            }
        };
        self.spare.push(number);
        Ok(Some(number))
    }

    /// A handle.
    pub(crate) fn handle(&self, number: u32) -> Option<&Handle> {
        self.handles.get(number as usize)?.as_ref()
    }

    fn handle_mut(&mut self, number: u32) -> Option<&mut Handle> {
        self.handles.get_mut(number as usize)?.as_mut()
    }

    /// All handles have lower numbers.
    pub(crate) fn numbers(&self) -> usize {
        self.handles.len()
    }

    /// Every handle.
    pub(crate) fn handles(&self) -> impl Iterator<Item = (u32, &Handle)> {
        let handles = self.handles.iter().enumerate();
        handles.filter_map(|(number, handle)| handle.as_ref().map(|h| (number as u32, h)))
    }

    /// Maps a handle at an address where nothing is mapped, readable and writable. After an error
    /// nothing is mapped there, unless [`is_closed`](Store::is_closed) says so.
    pub(crate) fn map(&mut self, number: u32, address: Address) -> DeviceResult<()> {
        let Some((id, bytes)) = self.handle(number).map(|handle| (handle.id, handle.bytes)) else {
            return Ok(());
        };
        self.device.map(address, bytes, id)?;
        self.spent_us += price::MAP_US;
        let Err(error) = self.device.set_access(address, bytes) else {
            return Ok(());
        };
        if self.device.unmap(address, bytes).is_err()
            && let Some(handle) = self.handle_mut(number)
        {
            handle.closed.push(address);
        }
        Err(error)
    }

    /// Whether the handle is mapped at the address without being accessible there.
    pub(crate) fn is_closed(&self, number: u32, address: Address) -> bool {
        self.handle(number).is_some_and(|handle| handle.closed.contains(&address))
    }

    /// Makes a dormant place accessible, if it is not.
    pub(crate) fn open(&mut self, number: u32, address: Address) -> DeviceResult<()> {
        if self.is_closed(number, address)
            && let Some(bytes) = self.handle(number).map(|handle| handle.bytes)
        {
            self.device.set_access(address, bytes)?;
            if let Some(handle) = self.handle_mut(number) {
                handle.closed.retain(|&closed| closed != address);
            }
        }
        Ok(())
    }

    /// Removes the mapping of a dormant place. The caller made sure that no queued work uses it.
    pub(crate) fn unmap_dormant(&mut self, number: u32, place: Place) -> DeviceResult<()> {
        let Some(bytes) = self.handle(number).map(|handle| handle.bytes) else {
            return Ok(());
        };
        self.device.unmap(place.address, bytes)?;
        self.spent_us += price::UNMAP_US;
        if let Some(handle) = self.handle_mut(number) {
            let before = handle.dormant.len();
            handle.dormant.retain(|other| *other != place);
            let gone = before - handle.dormant.len();
            handle.closed.retain(|&closed| closed != place.address);
            self.dormant -= gone;
        }
        Ok(())
    }

    /// The handle is in use at `place` from now on, where it was dormant.
    pub(crate) fn activate(&mut self, number: u32, place: Place) {
        if let Some(handle) = self.handle_mut(number) {
            let before = handle.dormant.len();
            handle.dormant.retain(|other| *other != place);
            let woken = before - handle.dormant.len();
            self.dormant -= woken;
        }
        self.occupy(number, place);
    }

    /// The same where it was not.
    pub(crate) fn occupy(&mut self, number: u32, place: Place) {
        if let Some(at) = self.spare.iter().position(|&spare| spare == number) {
            self.spare.remove(at);
        }
        if let Some(handle) = self.handle_mut(number) {
            debug_assert_eq!(handle.active, None);
            handle.active = Some(place);
            let bytes = handle.bytes;
            self.count_serving(place.kind, bytes);
        }
    }

    /// The handle is not in use any more where it was: that place is dormant now, and nothing uses
    /// it after the mark `since` of its stream.
    pub(crate) fn deactivate(&mut self, number: u32, since: u64) {
        self.spare.push(number);
        if let Some(handle) = self.handle_mut(number) {
            let place = handle.active.take();
            handle.dormant.extend(place);
            let bytes = handle.bytes;
            if let Some(place) = place {
                self.count_idle(place.kind, bytes);
                self.dormant += 1;
                self.park(Note::new(number, place, since));
            }
        }
    }

    /// How many dormant views there are.
    pub(crate) fn dormant(&self) -> usize {
        self.dormant
    }

    /// How many handles are in use.
    pub(crate) fn active(&self) -> usize {
        self.handles.len() - self.vacant.len() - self.spare.len()
    }

    /// The view that has been dormant for the longest time.
    pub(crate) fn oldest_dormant(&mut self) -> Option<Parked> {
        while let Some(&note) = self.parked.front() {
            let Note { number, since, .. } = note;
            let mut dormant = self.handle(number).into_iter().flat_map(|handle| &handle.dormant);
            if let Some(&place) = dormant.find(|place| note.is_of(place)) {
                return Some(Parked { number, place, since });
            }
            self.parked.pop_front();
        }
        None
    }

    fn park(&mut self, note: Note) {
        if self.parked.len() == self.parked.capacity() {
            self.parked.reserve_exact(room_for::<Note>(self.parked.len(), 1).max(64));
        }
        self.parked.push_back(note);
    }

    /// The handle serves another heap from now on, at the address where it is.
    pub(crate) fn hand_over(&mut self, number: u32, shard: u32, view: u32) {
        if let Some(place) = self.handle_mut(number).and_then(|handle| handle.active.as_mut()) {
            (place.shard, place.view) = (shard, view);
        }
    }

    /// A part of the handle is in use at `place` too from now on.
    pub(crate) fn lend(&mut self, number: u32, place: Place) {
        if let Some(handle) = self.handle_mut(number) {
            debug_assert!(handle.active.is_some());
            handle.lent.push(place);
        }
    }

    /// No longer: that place is dormant, and nothing uses it after the mark `since` of its stream.
    pub(crate) fn end_loan(&mut self, number: u32, view: (u32, u32), since: u64) {
        let Some(handle) = self.handle_mut(number) else {
            return;
        };
        let Some(at) = handle.lent.iter().position(|place| (place.shard, place.view) == view)
        else {
            return;
        };
        let place = handle.lent.swap_remove(at);
        handle.dormant.push(place);
        self.dormant += 1;
        self.park(Note::new(number, place, since));
    }

    /// Gives a spare handle that is mapped nowhere back to the device.
    pub(crate) fn release(&mut self, number: u32) -> DeviceResult<()> {
        let Some(handle) = self.handle(number) else {
            return Ok(());
        };
        debug_assert!(handle.active.is_none() && handle.dormant.is_empty());
        debug_assert!(handle.lent.is_empty());
        let bytes = handle.bytes;
        self.device.release(handle.id)?;
        self.spent_us += price::release_us(bytes);
        self.count_given(bytes);
        self.handles[number as usize] = None;
        self.vacant.push(number);
        self.spare.retain(|&spare| spare != number);
        Ok(())
    }
}
