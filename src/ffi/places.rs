//! Memory that stays in place, observers of mappings, and memory shared with other processes, over
//! the bridge.

use cxx::UniquePtr;

use super::bridge::ffi;
use super::caching::CachingCore;
use super::error::guarded;
use crate::allocator::ObserverId;
use crate::engine::{MappingChange, MappingEvent};
use crate::units::DeviceId;

impl CachingCore {
    pub(crate) fn pin(
        &self,
        at: u64,
        device: &mut i32,
        number: &mut u64,
        address: &mut u64,
        bytes: &mut u64,
    ) -> u32 {
        guarded(|| {
            let (on, pinned) = self.0.pin_memory(at)?;
            (*device, *number) = (on.0, pinned.number);
            (*address, *bytes) = (pinned.address, pinned.bytes);
            Ok(())
        })
    }

    pub(crate) fn unpin(&self, device: i32, number: u64) -> u32 {
        guarded(|| self.0.unpin(DeviceId(device), number))
    }

    pub(crate) fn observe_mappings(
        &self,
        observer: UniquePtr<ffi::CppObserver>,
        number: &mut u64,
    ) -> u32 {
        let tell = move |event: &MappingEvent| {
            let mapped = event.change == MappingChange::Mapped;
            ffi::tell_observer(&observer, mapped, event.device.0, event.address, event.bytes);
        };
        guarded(|| {
            *number = self.0.observe_mappings(tell)?.0;
            Ok(())
        })
    }

    pub(crate) fn unobserve_mappings(&self, number: u64, found: &mut bool) -> u32 {
        guarded(|| {
            *found = self.0.unobserve_mappings(ObserverId(number))?;
            Ok(())
        })
    }

    pub(crate) fn share(&self, address: u64, offset: &mut u64, handle: &mut Vec<u8>) -> u32 {
        guarded(|| {
            let shared = self.0.share(address)?;
            (*offset, *handle) = (shared.offset, shared.handle);
            Ok(())
        })
    }

    pub(crate) fn open_shared(&self, device: i32, handle: &[u8], address: &mut u64) -> u32 {
        guarded(|| {
            *address = self.0.open_raw(DeviceId(device), handle)?.0;
            Ok(())
        })
    }

    pub(crate) fn close_shared(&self, device: i32, address: u64) -> u32 {
        guarded(|| self.0.close_shared(DeviceId(device), address))
    }
}
