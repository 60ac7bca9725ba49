//! One stream of a device after another, and streams that end.

use super::{Deferred, Status, User};
use crate::device::{Device, DeviceResult, EventId};
use crate::error::{DeviceError, DeviceErrorKind, DriverCall};
use crate::units::StreamId;

impl Deferred {
    /// Takes note that `stream` is about to be destroyed: what it leaves is ordered by an event
    /// from now on, and nothing more is asked of it. Where another one of that name left something
    /// before, the event stands for what both left.
    pub(crate) fn retire(&mut self, stream: StreamId) -> DeviceResult<()> {
        if let Some(&earlier) = self.retired.get(&stream) {
            self.wait_for_retired(stream, earlier)?;
        }
        self.record_open(User::own(stream))?;
        let event = self.event()?;
        if let Err(error) = self.device.event_record(event, stream) {
            self.idle_events.push(event);
            return Err(error);
        }
        if let Some(old) = self.retired.insert(stream, event) {
            self.idle_events.push(old);
        }
        self.captures.forget(stream);
        Ok(())
    }

    /// The same of a stream of another device: frees that wait for it are covered by an event. If
    /// it was recorded for live blocks its work is waited for, which nobody can ask about later.
    pub(crate) fn retire_guest(&mut self, index: u32, stream: StreamId) -> DeviceResult<()> {
        let user = User { guest: Some(index), stream };
        self.record_open(user)?;
        if self.users.values().any(|users| users.contains(&user)) {
            self.device_of(user).stream_synchronize(stream)?;
            self.users.values_mut().for_each(|users| users.retain(|&other| other != user));
        }
        Ok(())
    }

    /// A retired stream's handle is in use again: the new stream waits for what the old one left,
    /// unless that has run already.
    ///
    /// # Errors
    ///
    /// It has not, and the new stream is being captured, which a wait would break.
    pub(crate) fn revive(&mut self, stream: StreamId) -> DeviceResult<()> {
        let Some(&event) = self.retired.get(&stream) else {
            return Ok(());
        };
        self.wait_for_retired(stream, event)?;
        self.retired.remove(&stream);
        self.idle_events.push(event);
        Ok(())
    }

    /// Makes a stream wait for the last event of a retired one of its name, unless that has passed.
    fn wait_for_retired(&self, stream: StreamId, event: EventId) -> DeviceResult<()> {
        if self.must_not_ask()? || !self.device.event_query(event)? {
            if self.device.capture_status(stream)?.is_some() {
                return Err(DeviceError {
                    call: DriverCall::StreamWaitEvent,
                    device: self.device.id().0,
                    kind: DeviceErrorKind::NotPermitted,
                    detail: format!(
                        "{stream} is being captured while work of a retired stream of that name \
                         has not run: wait for that before the capture"
                    ),
                });
            }
            self.device.stream_wait_event(stream, event)?;
        }
        Ok(())
    }

    /// Makes `later` wait for what is queued on `earlier` now, unless that has run already. False
    /// where one of them is being captured, so that nothing may be recorded or made to wait. That
    /// holds for one stream too: what is captured runs when its graph does, on any stream, and not
    /// after what is queued here.
    pub(crate) fn order(&mut self, earlier: StreamId, later: StreamId) -> DeviceResult<bool> {
        if !self.can_order(earlier, later)? {
            return Ok(false);
        }
        if earlier == later {
            return Ok(true);
        }
        let ask = !self.must_not_ask()?;
        self.at_end_of(earlier, |device, event| {
            if !(ask && device.event_query(event)?) {
                device.stream_wait_event(later, event)?;
            }
            Ok(())
        })
    }

    /// Whether [`order`](Deferred::order) would not refuse.
    pub(crate) fn can_order(&self, earlier: StreamId, later: StreamId) -> DeviceResult<bool> {
        let free = |stream| Ok(!matches!(self.is_capturing(stream)?, Status::Capturing));
        Ok((earlier == later || self.retired.contains_key(&earlier) || free(earlier)?)
            && free(later)?)
    }

    /// Whether a stream was retired, so that the driver must not be asked about it.
    pub(crate) fn is_retired(&self, stream: StreamId) -> bool {
        self.retired.contains_key(&stream)
    }

    /// Waits on the host for everything queued on `stream`. False where it is being captured, or
    /// no event may be waited for.
    pub(crate) fn drain(&mut self, stream: StreamId) -> DeviceResult<bool> {
        if self.must_not_ask()? {
            return Ok(false);
        }
        self.at_end_of(stream, |device, event| device.event_synchronize(event))
    }

    /// Whether everything queued on `stream` has run; nothing is waited for. False where it is
    /// being captured, or no event may be asked.
    pub(crate) fn is_idle(&mut self, stream: StreamId) -> DeviceResult<bool> {
        if self.must_not_ask()? {
            return Ok(false);
        }
        let mut passed = true;
        let asked = self.at_end_of(stream, |device, event| {
            passed = device.event_query(event)?;
            Ok(())
        })?;
        Ok(asked && passed)
    }

    /// Calls `then` with an event at the end of what is queued on `stream` now. False, without a
    /// call, where it is being captured.
    fn at_end_of(
        &mut self,
        stream: StreamId,
        then: impl FnOnce(&dyn Device, EventId) -> DeviceResult<()>,
    ) -> DeviceResult<bool> {
        if let Some(&event) = self.retired.get(&stream) {
            then(self.device.as_ref(), event)?;
            return Ok(true);
        }
        match self.is_capturing(stream)? {
            Status::Capturing => return Ok(false),
            Status::Gone => return Ok(true),
            Status::Usual => {}
        }
        let event = self.event()?;
        let recorded = self.device.event_record(event, stream);
        let result = recorded.and_then(|()| then(self.device.as_ref(), event));
        self.idle_events.push(event);
        result.map(|()| true)
    }
}
