//! Streams of other libraries, kept alive for as long as memory of theirs is cached: the driver
//! need not survive that a stream's handle is used after its end.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Allocator;
use crate::error::Result;
use crate::units::{DeviceId, StreamId};

/// What destroys a stream when the last one of it is dropped.
pub(crate) type Owner = Arc<dyn Any + Send + Sync>;

/// The streams of others that an allocator has served.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<HashMap<(DeviceId, StreamId), Owner>>);

impl Owners {
    /// Takes a stream out, if it is kept.
    pub(super) fn take(&self, device: DeviceId, stream: StreamId) -> Option<Owner> {
        self.0.lock().remove(&(device, stream))
    }
}

impl Allocator {
    /// Keeps a stream until nobody else has it.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) inside of a tracker.
    pub(crate) fn keep_stream(
        &self,
        device: DeviceId,
        stream: StreamId,
        owner: Owner,
    ) -> Result<()> {
        self.check_outside()?;
        let place = Arc::as_ptr(&owner).cast::<()>();
        let before = self.owners.0.lock().insert((device, stream), owner);
        if before.is_none_or(|before| Arc::as_ptr(&before).cast::<()>() != place) {
            self.let_go_of_streams();
        }
        Ok(())
    }

    /// Retires the kept streams that nobody else has any more, and lets them end.
    /// Inside of a tracker that is left to the next time.
    pub(crate) fn let_go_of_streams(&self) {
        if self.check_outside().is_err() {
            return;
        }
        self.owners.0.lock().retain(|&(device, stream), owner| {
            let retire = || self.engine(device)?.retire_stream(stream);
            // One that cannot be retired now, because it is being captured, is kept.
            Arc::strong_count(owner) > 1 || retire().is_err()
        });
    }
}
