//! Memory and streams that give themselves back.

use std::sync::Arc;

use crate::allocator::{Allocator, Owner};
use crate::device::{Device, HostFunction};
use crate::error::Result;
use crate::units::{Address, Bytes, DeviceId, StreamId};

/// Device memory that is freed when dropped.
///
/// It may be dropped while work that uses it is still queued on its own stream: memory is used
/// again in the order of that stream. For work on other streams, say so with
/// [`record_stream`](Allocation::record_stream) before dropping it.
///
/// ```
/// use plugalloc::{Allocator, DeviceId, Stream};
///
/// let allocator = Allocator::builder().device("sim").build()?;
/// let stream = Stream::new(&allocator, DeviceId(0))?;
/// let memory = allocator.alloc(DeviceId(0), 4096, stream.id())?;
/// stream.fill(memory.address(), 0x5a, memory.bytes())?;
/// drop(memory);
/// stream.synchronize()?;
/// allocator.is_quiescent()?;
/// # Ok::<(), plugalloc::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the memory is freed when this is dropped"]
pub struct Allocation {
    allocator: Arc<Allocator>,
    address: Address,
    bytes: Bytes,
    device: DeviceId,
    stream: StreamId,
}

impl Allocation {
    /// Where the memory starts, a multiple of 512; 0 for an allocation of no bytes.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The bytes that were asked for.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The device that it is on.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The stream that it was allocated for.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The device itself.
    pub(crate) fn device_ref(&self) -> Result<&dyn Device> {
        Ok(&**self.allocator.device(self.device)?)
    }

    /// Has the allocator keep a stream that works on the memory.
    pub(crate) fn keep_stream(&self, owner: Owner, stream: StreamId) -> Result<()> {
        self.allocator.keep_stream(self.device, stream, owner)
    }

    /// Tells that `stream` uses the memory too: once freed, it is not used again before what is
    /// queued there by then has run.
    ///
    /// # Errors
    /// As [`Allocator::record_stream`].
    pub fn record_stream(&self, stream: StreamId) -> Result<()> {
        self.allocator.record_stream(self.address, stream)
    }

    /// Frees the memory now and says whether that worked, which dropping it cannot.
    ///
    /// # Errors
    /// As [`Allocator::free`].
    pub fn free(self) -> Result<()> {
        let allocator = Arc::clone(&self.allocator);
        allocator.free(self.into_raw())
    }

    /// Gives the address up: whoever takes it frees it with [`Allocator::free`], or takes it over
    /// with [`Allocator::adopt`].
    pub fn into_raw(mut self) -> Address {
        std::mem::take(&mut self.address)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // The address is live as long as this owns it, so that a failure is the device's, and stays
        // visible there. Address 0 is ignored.
        let _ = self.allocator.free(self.address);
    }
}

impl Allocator {
    /// Allocates memory that is freed when dropped.
    ///
    /// # Errors
    /// As [`Allocator::allocate`].
    pub fn alloc(
        self: &Arc<Self>,
        device: DeviceId,
        bytes: Bytes,
        stream: StreamId,
    ) -> Result<Allocation> {
        let address = self.allocate(device, bytes, stream)?;
        Ok(Allocation { allocator: Arc::clone(self), address, bytes, device, stream })
    }

    /// Takes over an allocation of which there is only the address, such as one that
    /// [`Allocation::into_raw`] gave up. Nobody else may free it any more.
    ///
    /// # Errors
    /// [`Error::InvalidPointer`](crate::Error::InvalidPointer) where the address is not the start
    /// of a live allocation.
    ///
    /// ```
    /// use plugalloc::{Allocator, DeviceId, StreamId};
    ///
    /// let allocator = Allocator::builder().device("sim").build()?;
    /// let address = allocator.alloc(DeviceId(0), 4096, StreamId::DEFAULT)?.into_raw();
    /// let memory = allocator.adopt(address)?;
    /// assert_eq!(memory.bytes(), 4096);
    /// drop(memory);
    /// assert!(allocator.adopt(address).is_err());
    /// # Ok::<(), plugalloc::Error>(())
    /// ```
    pub fn adopt(self: &Arc<Self>, address: Address) -> Result<Allocation> {
        let allocator = Arc::clone(self);
        let block = self.block(address)?;
        let (bytes, device, stream) = (block.requested, block.device, block.stream);
        Ok(Allocation { allocator, address, bytes, device, stream })
    }
}

/// A stream of one device, destroyed when dropped unless somebody else owns it; what is queued on
/// it still runs.
pub struct Stream {
    allocator: Arc<Allocator>,
    device: Arc<dyn Device>,
    id: StreamId,
    /// Who owns the stream, where it is not this.
    owner: Option<Owner>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("device", &self.device.id()).field("id", &self.id).finish()
    }
}

impl Stream {
    /// Makes a stream of an allocator's device.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`](crate::Error::InvalidDevice), or
    /// [`Error::Device`](crate::Error::Device) where the driver makes no stream.
    pub fn new(allocator: &Arc<Allocator>, device: DeviceId) -> Result<Stream> {
        let device = Arc::clone(allocator.device(device)?);
        let id = device.stream_create()?;
        Ok(Stream { allocator: Arc::clone(allocator), device, id, owner: None })
    }

    /// A stream that lives for as long as `owner` does.
    pub(crate) fn of_another(
        allocator: &Arc<Allocator>,
        device: DeviceId,
        id: StreamId,
        owner: Owner,
    ) -> Result<Stream> {
        let on = Arc::clone(allocator.device(device)?);
        allocator.keep_stream(device, id, Arc::clone(&owner))?;
        Ok(Stream { allocator: Arc::clone(allocator), device: on, id, owner: Some(owner) })
    }

    /// The device that it is of.
    pub(crate) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// What names the stream to an allocator.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Waits until everything queued here has run.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where the device is lost, or the stream is being
    /// captured.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.device.stream_synchronize(self.id)?)
    }

    /// Queues filling `bytes` of device memory at `at` with `value`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where the driver refuses; the simulated device does
    /// for memory that is not mapped.
    pub fn fill(&self, at: Address, value: u8, bytes: Bytes) -> Result<()> {
        Ok(self.device.fill_async(at, value, bytes, self.id)?)
    }

    /// Queues a copy of `bytes` between any two of: device memory, a peer's, host memory.
    ///
    /// # Safety
    /// Memory of the host has to be valid until the copy has run, for as long as a graph may be
    /// launched that captured it; and so long nobody else writes to what is read, nor uses what is
    /// written.
    ///
    /// # Errors
    /// As [`fill`](Stream::fill).
    pub unsafe fn copy(&self, to: Address, from: Address, bytes: Bytes) -> Result<()> {
        // SAFETY: as the caller promises.
        Ok(unsafe { self.device.copy_async(to, from, bytes, self.id) }?)
    }

    /// Queues a function of the host, which must not call the device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where the driver refuses.
    pub fn host_function(&self, function: HostFunction) -> Result<()> {
        Ok(self.device.host_function(self.id, function)?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A device that is lost has destroyed the stream already, and one that is being captured is
        // lost to its owner: in neither case is anybody left to tell.
        match self.owner.take() {
            None => {
                let _ = self.allocator.retire_stream(self.device.id(), self.id);
                let _ = self.device.stream_destroy(self.id);
            }
            // It ends here, too, where nobody else has its owner; a stream of the driver itself
            // never ends, and loses nothing by this.
            Some(owner) => {
                drop(owner);
                self.allocator.let_go_of_streams();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sim::{SimMachine, SimOptions};
    use std::any::Any;

    /// Destroys a stream at its end.
    struct Ending(Arc<dyn Device>, StreamId);

    impl Drop for Ending {
        fn drop(&mut self) {
            self.0.stream_destroy(self.1).unwrap();
        }
    }

    /// The simulated device refuses streams that were destroyed, as the driver need not.
    #[test]
    fn a_stream_of_another_owner_lives_while_its_memory_is_cached() {
        let options = SimOptions { adopt_streams: false, ..SimOptions::default() };
        let machine = SimMachine::new(options).unwrap();
        let builder = Allocator::builder().devices(machine.as_devices());
        let allocator = builder.conf("").build().unwrap();
        let device: Arc<dyn Device> = machine.device(0);
        let start = || {
            let id = device.stream_create().unwrap();
            let owner: Owner = Arc::new(Ending(Arc::clone(&device), id));
            let stream = Stream::of_another(&allocator, DeviceId(0), id, Arc::clone(&owner));
            (owner, stream.unwrap())
        };
        let (owner, stream) = start();
        let id = stream.id();
        drop(allocator.alloc(DeviceId(0), 4096, id).unwrap());
        // The owner goes last, and tells nobody.
        drop(stream);
        drop(owner);
        device.stream_synchronize(id).unwrap();
        // The next one lets it go, after it was retired.
        let (owner, stream) = start();
        assert!(device.stream_synchronize(id).is_err(), "it was destroyed");
        drop(allocator.alloc(DeviceId(0), 4096, stream.id()).unwrap());
        drop((stream, owner));
        allocator.is_quiescent().unwrap();
        // The last one lives until the allocator has given its memory back.
        drop(allocator);
        assert_eq!(machine.device(0).ledger().used, 0);
    }

    #[test]
    fn a_stream_of_another_owner_is_not_destroyed() {
        let options = SimOptions { adopt_streams: false, ..SimOptions::default() };
        let machine = SimMachine::new(options).unwrap();
        let builder = Allocator::builder().devices(machine.as_devices());
        let allocator = builder.conf("").build().unwrap();
        let (device, id) = (machine.device(0), machine.device(0).stream_create().unwrap());
        for others in [1, 0] {
            let owner: Arc<dyn Any + Send + Sync> = Arc::new(());
            let others: Vec<_> = (0..others).map(|_| Arc::clone(&owner)).collect();
            let stream = Stream::of_another(&allocator, DeviceId(0), id, owner).unwrap();
            let memory = allocator.alloc(DeviceId(0), 4096, id).unwrap();
            stream.fill(memory.address(), 1, memory.bytes()).unwrap();
            drop((memory, stream));
            device.stream_synchronize(id).unwrap();
            drop(others);
        }
        allocator.is_quiescent().unwrap();
        device.stream_destroy(id).unwrap();
    }
}
