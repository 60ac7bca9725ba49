//! Streams that use memory of others, and the end of streams.

use crate::allocator::Allocator;
use crate::engine::Engine;
use crate::error::{PointerUse, Result};
use crate::streams::Guest;
use crate::units::{Address, DeviceId, StreamId};

impl Allocator {
    /// Tells that `stream` uses the allocation too: once freed, it is not used again before what is
    /// queued there by then has run. Address 0 is ignored, and so is the allocation's own stream,
    /// unless that was [retired](Allocator::retire_stream) and another one has its name.
    /// The stream may be another device's of this allocator; a default stream is taken for that of
    /// the allocation's device.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`](crate::Error::InvalidPointer) where the address is not the start
    /// of a live allocation; [`Error::Device`](crate::Error::Device) where a device does not tell
    /// whether the stream is its own.
    pub fn record_stream(&self, address: Address, stream: StreamId) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        self.check_outside()?;
        match self.owner(address) {
            Some((engine, entry)) => {
                let guest = self.guest_of(engine, stream)?;
                engine.record_stream(entry, address, (stream, guest))
            }
            None => self.record_outside(address, stream),
        }
    }

    #[cold]
    fn record_outside(&self, address: Address, stream: StreamId) -> Result<()> {
        let Some(block) = self.direct_block(address) else {
            let refused = self.refused_outside(address);
            return Err(refused.when_asked_to(PointerUse::RecordStream));
        };
        let engine = self.engine(block.device)?;
        if let Some(guest) = self.guest_of(engine, stream)? {
            engine.record_direct(address, guest);
        }
        Ok(())
    }

    /// The device that a stream belongs to, where that is another one than the engine's.
    fn guest_of(&self, engine: &Engine, stream: StreamId) -> Result<Option<Guest>> {
        if self.engines.len() == 1 || engine.device().has_stream(stream)? {
            return Ok(None);
        }
        for other in self.engines.iter().filter(|other| other.id() != engine.id()) {
            if other.device().has_stream(stream)? {
                return Ok(Some(other.as_guest()));
            }
        }
        // Nobody's: what is wrong with it is told when an event is recorded there.
        Ok(None)
    }

    /// Takes note that a stream of `device` is about to be destroyed. Its cached memory then serves
    /// other streams, ordered after what was queued on it, and nothing more is asked of its handle;
    /// if the handle comes back for a new stream, that stream waits for what the old one left.
    /// [`Stream`](crate::Stream) does it when dropped.
    ///
    /// Programs that destroy streams themselves should call it for each that allocated or was
    /// recorded. Without it the driver is asked about a stream that is gone. Where it recognises
    /// that, its memory costs a wait for the whole device when it is needed elsewhere; but a driver
    /// may fault instead.
    ///
    /// A stream of another device of this allocator that is recorded for live blocks is waited for.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where no event can be recorded on the stream,
    /// because it is being captured for instance.
    pub fn retire_stream(&self, device: DeviceId, stream: StreamId) -> Result<()> {
        self.check_outside()?;
        let _goes_last = self.owners.take(device, stream);
        let engine = self.engine(device)?;
        for other in self.engines.iter().filter(|other| other.id() != device) {
            other.retire_guest(engine.id(), stream)?;
        }
        engine.retire_stream(stream)
    }
}
