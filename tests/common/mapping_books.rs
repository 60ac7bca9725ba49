//! What an observer of mappings is told, and that it makes sense.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use plugalloc::device::Device;
use plugalloc::device::sim::SimDevice;
use plugalloc::{Address, Allocator, Bytes, MappingChange, StreamId};

/// On which nothing is ever held.
const READER: StreamId = StreamId(0xfeed);

/// What an observer knows to be mapped.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) spans: BTreeMap<Address, Bytes>,
    pub(crate) mapped: usize,
    pub(crate) unmapped: usize,
}

impl Seen {
    pub(crate) fn covers(&self, address: Address, bytes: Bytes) -> bool {
        let mut at = address;
        while at < address + bytes {
            match self.spans.range(..=at).next_back() {
                Some((&start, &length)) if at < start + length => at = start + length,
                _ => return false,
            }
        }
        true
    }
}

/// An observer that keeps books, and fails where an event makes no sense: also where memory that is
/// about to disappear cannot be read any more.
pub(crate) fn observe(allocator: &Arc<Allocator>, device: &Arc<SimDevice>) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (books, device) = (Arc::clone(&seen), Arc::clone(device));
    allocator
        .observe_mappings(move |event| {
            let mut seen = books.lock();
            let mut byte = [0u8; 1];
            for at in [event.address, event.address + event.bytes - 1] {
                // SAFETY: nothing is held on this stream: the byte is there until the copy has run.
                unsafe { device.copy_async(byte.as_mut_ptr() as Address, at, 1, READER) }
                    .expect("memory is there");
            }
            match event.change {
                MappingChange::Mapped => {
                    assert_eq!(seen.spans.insert(event.address, event.bytes), None);
                    seen.mapped += 1;
                }
                MappingChange::Unmapping => {
                    assert_eq!(seen.spans.remove(&event.address), Some(event.bytes));
                    seen.unmapped += 1;
                }
            }
        })
        .unwrap();
    seen
}
