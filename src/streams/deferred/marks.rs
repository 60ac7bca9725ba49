//! Events that stay on a stream, so that what comes after them need not wait for all of it.

use super::Deferred;
use crate::device::{DeviceResult, EventId};
use crate::error::DeviceErrorKind;
use crate::units::StreamId;

impl Deferred {
    /// Records an event on a stream of which nothing else is known; `None` where it is being
    /// captured, was retired or destroyed, or where no event may be asked.
    pub(crate) fn mark(&mut self, stream: StreamId) -> DeviceResult<Option<EventId>> {
        if self.must_not_ask()? || self.retired.contains_key(&stream) {
            return Ok(None);
        }
        match self.device.capture_status(stream) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(None),
            Err(error) if error.kind == DeviceErrorKind::Misuse => return Ok(None),
            Err(error) => return Err(error),
        }
        let event = self.event()?;
        if let Err(error) = self.device.event_record(event, stream) {
            self.idle_events.push(event);
            return Err(error);
        }
        Ok(Some(event))
    }

    /// Whether the event of a mark has passed; false, too, where no event may be asked.
    pub(crate) fn has_passed(&self, event: EventId) -> DeviceResult<bool> {
        Ok(!self.must_not_ask()? && self.device.event_query(event)?)
    }

    /// The event of a mark is not needed any more.
    pub(crate) fn forget(&mut self, event: EventId) {
        self.idle_events.push(event);
    }

    /// As [`order`](Deferred::order), with an event that was recorded on `earlier` before.
    pub(crate) fn follow(
        &self,
        earlier: StreamId,
        later: StreamId,
        event: EventId,
    ) -> DeviceResult<bool> {
        if !self.can_order(earlier, later)? {
            return Ok(false);
        }
        self.device.stream_wait_event(later, event).map(|()| true)
    }
}
