//! The pieces of address space that belong to the devices of one machine.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::os::{HostRange, MemoryFile};
use super::pages::Pages;
use super::refusal::{Outcome, misuse};
use crate::units::{Address, Bytes};

/// A piece of address space that belongs to a device.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) device: usize,
    pub(super) range: HostRange,
    pub(super) kind: RegionKind,
    /// Where the bytes of an allocation start in the file of its bank; 0 for the other kinds.
    pub(super) offset: Bytes,
    /// What holds the bytes: of an allocation that has a legacy handle the opening that the handle
    /// names, of memory of another process the opening through which it is mapped.
    pub(super) held: Option<MemoryFile>,
    /// Of a reservation: what is mapped there.
    pub(super) pages: Pages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegionKind {
    /// Of `reserve`: accessible where something is mapped.
    Reservation,
    /// Of `malloc`: accessible from end to end.
    Allocation,
    /// Of `ipc_open_handle`: as above.
    Opened,
}

impl Region {
    pub(super) fn new(device: usize, range: HostRange, kind: RegionKind) -> Region {
        Region { device, range, kind, offset: 0, held: None, pages: Pages::default() }
    }
}

/// All of them. No two overlap.
#[derive(Debug, Default)]
pub(super) struct Regions {
    places: Vec<Option<Region>>,
    vacant: Vec<usize>,
    /// Their places, by start.
    by_start: BTreeMap<Address, usize>,
    /// The place that was found last, which mostly is the next one, too.
    last: Cell<usize>,
}

impl Regions {
    pub(super) fn insert(&mut self, region: Region) {
        let start = region.range.start();
        let place = self.vacant.pop().unwrap_or(self.places.len());
        if place == self.places.len() {
            self.places.push(None);
        }
        self.places[place] = Some(region);
        self.by_start.insert(start, place);
    }

    /// Removes the region that starts there.
    pub(super) fn remove(&mut self, start: Address) -> Option<Region> {
        let place = self.by_start.remove(&start)?;
        self.vacant.push(place);
        self.places[place].take()
    }

    /// The region that starts there.
    pub(super) fn get(&self, start: Address) -> Option<&Region> {
        self.places[*self.by_start.get(&start)?].as_ref()
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, start: Address) -> Option<&mut Region> {
        self.places[*self.by_start.get(&start)?].as_mut()
    }

    #[inline]
    fn place_of(&self, address: Address) -> Option<usize> {
        let over = |place: usize| {
            let range = &self.places.get(place)?.as_ref()?.range;
            (range.start() <= address && address < range.end()).then_some(place)
        };
        if let Some(last) = over(self.last.get()) {
            return Some(last);
        }
        let (_, &place) = self.by_start.range(..=address).next_back()?;
        self.last.set(place);
        over(place)
    }

    /// The region that contains the address.
    pub(super) fn at(&self, address: Address) -> Option<&Region> {
        self.places[self.place_of(address)?].as_ref()
    }

    /// Where the first region starts that starts in a span.
    pub(super) fn first_start_in(&self, from: Address, to: Address) -> Option<Address> {
        self.by_start.range(from..to).next().map(|(&start, _)| start)
    }

    /// The reservation of this device in which the whole span lies.
    pub(super) fn reservation(
        &mut self,
        device: usize,
        address: Address,
        bytes: Bytes,
    ) -> Outcome<&mut Region> {
        let place = self.place_of(address);
        let region = place.and_then(|place| self.places[place].as_mut());
        match region {
            Some(region)
                if region.kind == RegionKind::Reservation
                    && region.device == device
                    && bytes > 0
                    && bytes <= region.range.end() - address =>
            {
                Ok(region)
            }
            region => Err(no_reservation(region.as_deref(), device, address, bytes)),
        }
    }
}

/// Why a span lies in no reservation of the device.
#[cold]
fn no_reservation(
    region: Option<&Region>,
    device: usize,
    address: Address,
    bytes: Bytes,
) -> super::refusal::Refusal {
    let span = format!("{bytes} bytes at {address:#x}");
    if bytes == 0 {
        return misuse(format!("{span} are no span"));
    }
    match region {
        Some(region) if region.kind == RegionKind::Reservation && region.device != device => {
            let owner = region.device;
            misuse(format!("{span} lie in a reservation of device {owner}"))
        }
        Some(region) if region.kind == RegionKind::Reservation => {
            misuse(format!("{span} run past the end of their reservation"))
        }
        _ => misuse(format!("{span} lie in no reservation")),
    }
}
