//! Memory that somebody has pinned: the handles or the segment under it stay where they are until
//! every pin of them has gone, whether the allocation lives on or not.

use std::collections::{HashMap, HashSet};

use super::allocate::foreign;
use super::{Engine, PageEntry};
use crate::error::{Error, InvalidPointer, PointerFault, Result};
use crate::heap::Lookup;
use crate::units::{Address, Bytes};

/// The pins of one device, by number.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    made: u64,
    spans: HashMap<u64, Span>,
}

/// What a pin was made for.
#[derive(Clone, Copy, Debug)]
struct Span {
    shard: u32,
    start: Address,
    bytes: Bytes,
}

/// A pin: its number, and what stays in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) number: u64,
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
}

impl Pins {
    /// The allocations that were pinned, live or not, by heap and start.
    pub(super) fn starts(&self) -> HashSet<(u32, Address)> {
        self.spans.values().map(|span| (span.shard, span.start)).collect()
    }
}

impl Engine {
    /// Pins the live allocation around an address.
    pub(crate) fn pin(&self, at: PageEntry<'_>, address: Address) -> Result<Pinned> {
        let mut heap = at.shard.heap.lock();
        let (start, length) = match heap.lookup(at.slot, address) {
            Lookup::Live(block) => (address, heap.block(block).bytes),
            Lookup::Interior(start, bytes) => (start, bytes),
            Lookup::Freed => {
                return Err(InvalidPointer::new(address, PointerFault::DoubleFree).into());
            }
            Lookup::Nothing => return Err(foreign(address)),
        };
        let Some((first, bytes)) = heap.pin(start, length) else {
            return Err(Error::Internal {
                check: "live blocks lie on memory".to_owned(),
                detail: format!("{length} bytes at {start:#x}"),
            });
        };
        let mut pins = self.pins.lock();
        pins.made += 1;
        let number = pins.made;
        pins.spans.insert(number, Span { shard: at.shard.number, start, bytes: length });
        Ok(Pinned { number, address: first, bytes })
    }

    /// Ends a pin.
    pub(crate) fn unpin(&self, number: u64) -> Result<()> {
        let Some(span) = self.pins.lock().spans.remove(&number) else {
            return Err(Error::InvalidArgument {
                argument: "pin",
                value: number.to_string(),
                expected: "a pin that was made and has not ended".to_owned(),
            });
        };
        if let Some(shard) = self.shards.get(span.shard) {
            shard.heap.lock().unpin(span.start, span.bytes);
        }
        Ok(())
    }

    /// How many pins there are.
    pub(super) fn pinned(&self) -> usize {
        self.pins.lock().spans.len()
    }
}
