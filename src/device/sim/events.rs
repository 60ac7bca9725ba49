//! Events: names for points in the work of streams.

use super::queue::Point;
use super::refusal::{Outcome, misuse};
use crate::device::EventId;

/// All events of one machine.
#[derive(Debug, Default)]
pub(super) struct Events {
    slots: Vec<Slot>,
    /// Slots of destroyed events.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    /// How many events this slot has served before, plus one: the upper half of the event's id, so
    /// that a destroyed event is told from the one that took its place.
    generation: u32,
    live: bool,
    event: Event,
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    /// The device that made it.
    pub(super) device: usize,
    /// Where it was recorded last.
    pub(super) point: Option<Point>,
}

impl Events {
    pub(super) fn create(&mut self, device: usize) -> EventId {
        let event = Event { device, point: None };
        let index = match self.free.pop() {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                slot.generation = slot.generation.wrapping_add(1).max(1);
                slot.live = true;
                slot.event = event;
                index
            }
            None => {
                self.slots.push(Slot { generation: 1, live: true, event });
                (self.slots.len() - 1) as u32
            }
        };
        let generation = self.slots[index as usize].generation;
        EventId(u64::from(generation) << 32 | u64::from(index))
    }

    pub(super) fn destroy(&mut self, id: EventId) -> Outcome<()> {
        self.slot(id)?.live = false;
        self.free.push(id.0 as u32);
        Ok(())
    }

    pub(super) fn get(&mut self, id: EventId) -> Outcome<&mut Event> {
        Ok(&mut self.slot(id)?.event)
    }

    fn slot(&mut self, id: EventId) -> Outcome<&mut Slot> {
        let (index, generation) = (id.0 as u32 as usize, (id.0 >> 32) as u32);
        match self.slots.get_mut(index) {
            Some(slot) if slot.live && slot.generation == generation => Ok(slot),
            _ => {
                let number = id.0;
                Err(misuse(format!("event {number:#x} does not exist, or was destroyed before")))
            }
        }
    }
}
