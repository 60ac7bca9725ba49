//! The streams that were recorded for live blocks, as somebody keeps them who ends blocks and makes
//! them live again.

use super::Deferred;
use crate::units::{Address, StreamId};

impl Deferred {
    /// Whether a stream was recorded for the live block at an address.
    pub(crate) fn is_used(&self, address: Address) -> bool {
        self.users.get(&address).is_some_and(|users| !users.is_empty())
    }

    /// The streams of the block's own device that were recorded for it.
    pub(crate) fn streams_of(&self, address: Address) -> Vec<StreamId> {
        let users = self.users.get(&address).into_iter().flatten();
        users.filter(|user| user.guest.is_none()).map(|user| user.stream).collect()
    }

    /// Records such streams again; true where there is any. Nothing is asked of one that was
    /// retired meanwhile: its last event is waited for.
    pub(crate) fn record_again(&mut self, address: Address, streams: &[StreamId]) -> bool {
        streams.iter().for_each(|&stream| self.record(address, stream, None));
        !streams.is_empty()
    }

    /// Forgets a block for which nobody is recorded any more.
    pub(crate) fn forget_unused(&mut self, address: Address) {
        if !self.is_used(address) {
            self.users.remove(&address);
        }
    }
}
