//! Since when idle memory is unused, as its stream sees it.
//!
//! Memory that is free may still be used by work that was queued before it was freed, so that
//! another stream has to wait before it takes the memory over: for all that is queued on the first
//! one, if nothing is known but that. That may be long, and has nothing to do with memory that has
//! been free for long. So marks are set: events on the streams of heaps whose idle memory others
//! look at. A heap counts its marks, and each free block knows the mark that comes after its last
//! use; once that has passed nothing is waited for, and until then for the mark alone.

use super::shards::Shard;
use super::{Engine, Growth};
use crate::device::{DeviceResult, EventId};
use crate::heap::Heap;

/// The last mark of one heap's stream.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// It has not passed, as far as anybody looked.
    event: Option<EventId>,
    number: u64,
    /// All marks below this have passed.
    passed: u64,
    /// What `passed` was at a time, and what it was at the time noted before that.
    noted: u64,
    noted_us: u64,
    rested: u64,
}

/// The last marks of all heaps, by number.
#[derive(Debug, Default)]
pub(super) struct Marks {
    last: Vec<Mark>,
}

impl Marks {
    fn of(&mut self, shard: u32) -> &mut Mark {
        let place = shard as usize;
        if self.last.len() <= place {
            self.last.resize(place + 1, Mark::default());
        }
        &mut self.last[place]
    }
}

impl Engine {
    /// The number below which all marks of a heap's stream have passed, so that nothing queued uses
    /// what is free since then any more. Looks only as far as memory that is free since `newest`
    /// needs it, and sets a mark where there is none after that. What the driver refuses is
    /// unknown, which is never wrong.
    pub(super) fn look_at_marks(
        &self,
        marks: &mut Marks,
        shard: &Shard,
        heap: &mut Heap,
        newest: u64,
    ) -> u64 {
        let mark = marks.of(shard.number);
        if newest < mark.passed {
            return mark.passed;
        }
        let mut deferred = self.deferred.lock();
        if let Some(event) = mark.event {
            if !deferred.has_passed(event).unwrap_or(false) {
                return mark.passed;
            }
            mark.passed = mark.number + 1;
            mark.event = None;
            deferred.forget(event);
        }
        if newest < mark.passed {
            return mark.passed;
        }
        if let Ok(Some(event)) = deferred.mark(shard.stream) {
            mark.number = heap.next_mark();
            if deferred.has_passed(event).unwrap_or(false) {
                mark.passed = mark.number + 1;
                deferred.forget(event);
            } else {
                mark.event = Some(event);
            }
        }
        mark.passed
    }

    /// The same as it was `rest_us` ago or somewhat before that: below it is what the heap has not
    /// used since, either.
    pub(super) fn rested(&self, marks: &mut Marks, shard: &Shard, passed: u64) -> u64 {
        let mark = marks.of(shard.number);
        let now = self.clock.now_us();
        if now >= mark.noted_us.saturating_add(self.policy.rest_us) {
            (mark.rested, mark.noted, mark.noted_us) = (mark.noted, passed, now);
        }
        mark.rested
    }

    /// Lets what is queued on `to` from here on run after all uses of memory of `from` that was
    /// freed before the mark `since`. False where one of the streams is being captured.
    pub(super) fn order_after(
        &self,
        growth: &mut Growth,
        (from, since): (&Shard, u64),
        to: &Shard,
    ) -> DeviceResult<bool> {
        let mut deferred = self.deferred.lock();
        if from.stream == to.stream {
            return deferred.order(from.stream, to.stream);
        }
        let mark = *growth.marks.of(from.number);
        if since < mark.passed {
            return deferred.can_order(from.stream, to.stream);
        }
        match mark.event {
            Some(event) if since <= mark.number => deferred.follow(from.stream, to.stream, event),
            _ => deferred.order(from.stream, to.stream),
        }
    }

    /// Gives the events of all marks back.
    pub(super) fn forget_marks(&self, growth: &mut Growth) {
        let events = growth.marks.last.drain(..).filter_map(|mark| mark.event);
        let mut deferred = self.deferred.lock();
        events.for_each(|event| deferred.forget(event));
    }
}
