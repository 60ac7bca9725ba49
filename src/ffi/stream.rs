//! What C++ calls of streams.

use cxx::UniquePtr;

use super::bridge::ffi::{self, HostFunction};
use super::caching::CachingCore;
use super::error::guarded;
use crate::error::Result;
use crate::units::{DeviceId, StreamId};

impl CachingCore {
    pub(crate) fn stream_create(&self, device: i32, stream: &mut u64) -> u32 {
        guarded(|| {
            *stream = self.0.device(DeviceId(device))?.stream_create()?.0;
            Ok(())
        })
    }

    pub(crate) fn stream_retire(&self, device: i32, stream: u64) -> u32 {
        guarded(|| self.0.retire_stream(DeviceId(device), StreamId(stream)))
    }

    /// Retires the stream first, so that its memory can serve others.
    pub(crate) fn stream_destroy(&self, device: i32, stream: u64) -> u32 {
        guarded(|| {
            let (device, stream) = (DeviceId(device), StreamId(stream));
            let retired = self.0.retire_stream(device, stream);
            self.0.device(device)?.stream_destroy(stream)?;
            retired
        })
    }

    /// Lets later work of `stream` wait for what is queued on `other` now.
    pub(crate) fn stream_wait(&self, device: i32, stream: u64, other: u64) -> u32 {
        guarded(|| {
            let device = self.0.device(DeviceId(device))?;
            let event = device.event_create()?;
            let waits = || -> Result<()> {
                device.event_record(event, StreamId(other))?;
                Ok(device.stream_wait_event(StreamId(stream), event)?)
            };
            let waits = waits();
            device.event_destroy(event)?;
            waits
        })
    }

    pub(crate) fn host_function(
        &self,
        device: i32,
        stream: u64,
        function: UniquePtr<HostFunction>,
    ) -> u32 {
        guarded(|| {
            let run = move || ffi::run_host_function(&function);
            Ok(self.0.device(DeviceId(device))?.host_function(StreamId(stream), Box::new(run))?)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::allocator::Allocator;
    use crate::config::Config;
    use crate::device::sim::{SimMachine, SimOptions};
    use crate::error::DriverCall;
    use crate::units::MIB;

    #[test]
    fn memory_of_a_destroyed_stream_is_used_again_without_waiting_for_the_device() {
        let options = SimOptions { capacity: 256 * MIB, ..SimOptions::default() };
        let machine = SimMachine::new(options).unwrap();
        let allocator = Allocator::new(machine.as_devices(), Config::default()).unwrap();
        let core = CachingCore::new(Arc::new(allocator));
        let mut streams = [0, 0];
        for stream in &mut streams {
            assert_eq!(core.stream_create(0, stream), 0);
        }
        let [gone, next] = streams;
        let block = core.alloc(0, 200 * MIB, gone);
        assert!(block > 1 && core.free(block));
        assert_eq!(core.stream_destroy(0, gone), 0);
        let block = core.alloc(0, 200 * MIB, next);
        assert!(block > 1 && core.free(block));
        assert_eq!(machine.device(0).ledger().calls(DriverCall::DeviceSynchronize), 0);
        assert_eq!(core.stream_destroy(0, next), 0);
        assert_eq!(core.stream_destroy(0, next), 1, "a second time is an error");
        core.0.is_quiescent().unwrap();
    }
}
