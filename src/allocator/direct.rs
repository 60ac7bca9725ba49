//! Allocations that are the device's own, since they were made while caching was off.

use std::sync::atomic::Ordering;

use super::{Allocator, BlockInfo};
use crate::engine::{DirectBlock, Engine, foreign};
use crate::error::{Error, InvalidPointer, PointerFault, Result};
use crate::units::Address;

impl Allocator {
    #[cold]
    pub(super) fn free_outside(&self, address: Address) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        if self.direct.load(Ordering::Relaxed) {
            for engine in &self.engines {
                if engine.free_direct(address)? {
                    return Ok(());
                }
            }
        }
        Err(self.refused_outside(address))
    }

    pub(super) fn direct_block(&self, address: Address) -> Option<BlockInfo> {
        self.find_direct(|engine| Some((address, engine.direct_block(address)?)))
    }

    /// The one around an address. All of them are looked at.
    pub(super) fn direct_around(&self, address: Address) -> Option<BlockInfo> {
        self.find_direct(|engine| engine.direct_around(address))
    }

    fn find_direct(
        &self,
        find: impl Fn(&Engine) -> Option<(Address, DirectBlock)>,
    ) -> Option<BlockInfo> {
        if !self.direct.load(Ordering::Relaxed) {
            return None;
        }
        self.engines.iter().find_map(|engine| {
            let (address, block) = find(engine)?;
            let device = engine.id();
            let (bytes, requested, stream) = (block.bytes, block.requested, block.stream);
            Some(BlockInfo { address, bytes, requested, device, stream })
        })
    }

    /// The error about an address outside of the map.
    #[cold]
    pub(super) fn refused_outside(&self, address: Address) -> Error {
        match self.direct_around(address) {
            None => foreign(address),
            Some(block) => {
                let fault = PointerFault::Interior { start: block.address, bytes: block.bytes };
                InvalidPointer::new(address, fault).into()
            }
        }
    }
}
