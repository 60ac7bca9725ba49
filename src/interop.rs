//! Hand-over to and from the crate [`cudarc`], without a copy: its streams as [`Stream`]s and back,
//! memory of an allocator as its slices and back.
//!
//! Who owns what:
//!
//! - A [`Stream`] of a `CudaStream` keeps that alive, and destroys nothing itself. A `CudaStream`
//!   of a [`Stream`] destroys nothing either, and must not outlive it.
//! - An allocator keeps each `CudaStream` that it has served alive, until it is the only one to
//!   have it and next serves another, or goes itself.
//! - A [`Slice`] owns memory of an allocator, and gives it back there when it is dropped, after all
//!   work that `cudarc` knows of, in the order of its stream. A bare `CudaSlice` of such memory
//!   must not be dropped: it would give memory to the driver that is not the driver's to take. It
//!   goes back by [`Slice::from_cuda_slice`].
//! - Memory that `cudarc` has allocated itself stays `cudarc`'s: an allocator frees nothing that it
//!   did not give out.
//!
//! Everything is for allocators over CUDA devices, in the context in which the device works. The
//! types are those of the version of `cudarc` that is exported here.
//!
//! ```no_run
//! use plugalloc::interop::cudarc::driver::CudaContext;
//! use plugalloc::{Allocator, DeviceId, Stream};
//!
//! let allocator = Allocator::builder().device("cuda").build()?;
//! let context = CudaContext::new(0)?;
//! let theirs = context.new_stream()?;
//! let mut numbers = allocator.alloc_slice::<f32>(DeviceId(0), 1024, &theirs)?;
//! theirs.memcpy_htod(&[1.5; 1024], &mut numbers.as_view_mut())?;
//! assert_eq!(theirs.clone_dtoh(&*numbers)?[1023], 1.5);
//!
//! let ours = Stream::from_cudarc(&allocator, DeviceId(0), &theirs)?;
//! let memory = numbers.into_allocation();
//! ours.fill(memory.address(), 0, memory.bytes())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

pub use cudarc;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaViewMut, DeviceRepr, ValidAsZeroBits,
};

use crate::allocation::{Allocation, Stream};
use crate::allocator::Allocator;
use crate::device::Device;
use crate::engine::foreign;
use crate::error::{Error, PointerUse, Result};
use crate::units::{Bytes, DeviceId, StreamId};

/// The stream that a `CudaStream` is.
pub fn stream_id(stream: &CudaStream) -> StreamId {
    StreamId(stream.cu_stream() as usize as u64)
}

/// Fails unless the device works in this context.
fn check_context(device: &dyn Device, context: &CudaContext) -> Result<()> {
    let found = device.native_context()?;
    if found == Some(context.cu_ctx() as usize as u64) {
        return Ok(());
    }
    let why = match found {
        None => "it works in no context of CUDA",
        Some(_) => {
            "it works in another context than this one; open its devices while this one is \
                    current, or use the primary context (CudaContext::new)"
        }
    };
    Err(Error::Unsupported {
        operation: format!("use in a context of device {}", context.ordinal()),
        by: device.name(),
        why: why.to_owned(),
    })
}

impl Stream {
    /// A stream of `cudarc`, which lives on at least as long as this does.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`], and [`Error::Unsupported`] where the stream belongs to another
    /// context than the device works in, or the device is simulated.
    pub fn from_cudarc(
        allocator: &Arc<Allocator>,
        device: DeviceId,
        stream: &Arc<CudaStream>,
    ) -> Result<Stream> {
        check_context(&**allocator.device(device)?, stream.context())?;
        let owner = Arc::clone(stream);
        Stream::of_another(allocator, device, stream_id(stream), owner)
    }

    /// This stream for `cudarc`, in the device's context. Nothing orders the two against each other
    /// but the stream itself.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the device works in another context, or is simulated.
    ///
    /// # Safety
    /// The result, its clones and all slices made with them are not used after this is dropped.
    pub unsafe fn to_cudarc(&self, context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
        check_context(self.device(), context)?;
        let raw = self.id().0 as usize as cudarc::driver::sys::CUstream;
        // SAFETY: the stream belongs to this context, as was checked just now, and lives for as
        // long as the result is used, says the caller.
        Ok(unsafe { context.wrap_borrowed_stream(raw) })
    }
}

/// Values in device memory of an allocator, for `cudarc`: it dereferences to a `CudaSlice`, and is
/// given to kernels and copies by that, or by [`as_view_mut`](Slice::as_view_mut) where they write.
///
/// Used on other streams than its own, it needs no more care than other slices as long as `cudarc`
/// tracks events, which is its default; else its memory has to be told by
/// [`record_stream`](Slice::record_stream).
#[derive(Debug)]
#[must_use = "the memory is freed when this is dropped"]
pub struct Slice<T> {
    /// Taken by whoever takes the slice apart, last of all by the drop.
    slice: ManuallyDrop<CudaSlice<T>>,
    allocation: ManuallyDrop<Allocation>,
}

impl<T> Slice<T> {
    /// Memory of an allocator as values for `cudarc`, as many as there is room for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the stream belongs to another context than the device works in,
    /// or the device is simulated, [`Error::InvalidArgument`] for a type of no size. The memory is
    /// freed then.
    ///
    /// # Panics
    /// `cudarc` does where the driver makes no event, as on a device that is lost.
    ///
    /// # Safety
    /// The memory holds valid values of the type before they are read. What another stream has to
    /// do with it is done, or `stream` waits for it.
    pub unsafe fn new(allocation: Allocation, stream: &Arc<CudaStream>) -> Result<Slice<T>> {
        check_context(allocation.device_ref()?, stream.context())?;
        if size_of::<T>() == 0 {
            return Err(Error::InvalidArgument {
                argument: "type of a slice",
                value: std::any::type_name::<T>().to_owned(),
                expected: "a type whose values have a size".to_owned(),
            });
        }
        allocation.keep_stream(Arc::clone(stream) as _, stream_id(stream))?;
        // Freed, the memory is not used again before this stream has passed.
        allocation.record_stream(stream_id(stream))?;
        let length = allocation.bytes() as usize / size_of::<T>();
        // SAFETY: the allocation has room for so many values, and is kept with the slice; that they
        // are valid is the caller's promise.
        let slice = unsafe { stream.upgrade_device_ptr(allocation.address(), length) };
        Ok(Slice { slice: ManuallyDrop::new(slice), allocation: ManuallyDrop::new(allocation) })
    }

    /// The values, to be written. (There is no `DerefMut`: it would let the `CudaSlice` be taken
    /// out, which must not be dropped.)
    pub fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.as_view_mut()
    }

    /// The memory's address, size and stream.
    pub fn allocation(&self) -> &Allocation {
        &self.allocation
    }

    /// Tells that `stream` uses the memory, too, where `cudarc` does not track events.
    ///
    /// # Errors
    /// As [`Allocator::record_stream`].
    pub fn record_stream(&self, stream: &CudaStream) -> Result<()> {
        self.allocation.record_stream(stream_id(stream))
    }

    /// The memory, no longer known to `cudarc`. The slice's stream waits for all work that `cudarc`
    /// knows of.
    pub fn into_allocation(self) -> Allocation {
        let mut parts = ManuallyDrop::new(self);
        // SAFETY: the parts are not dropped, and this one is not used again.
        let slice = unsafe { ManuallyDrop::take(&mut parts.slice) };
        let _address = slice.leak();
        // SAFETY: as above, of the other one.
        unsafe { ManuallyDrop::take(&mut parts.allocation) }
    }

    /// The bare `CudaSlice`, for code that wants to own one. It must come back by
    /// [`from_cuda_slice`](Slice::from_cuda_slice) while the allocator lives; otherwise the memory
    /// stays allocated.
    ///
    /// # Safety
    /// The `CudaSlice` is never dropped.
    pub unsafe fn into_cuda_slice(self) -> CudaSlice<T> {
        let mut parts = ManuallyDrop::new(self);
        // SAFETY: the parts are not dropped, and this one is not used again.
        let slice = unsafe { ManuallyDrop::take(&mut parts.slice) };
        // SAFETY: as above, of the other one.
        let allocation = unsafe { ManuallyDrop::take(&mut parts.allocation) };
        let _address = allocation.into_raw();
        slice
    }

    /// Takes a `CudaSlice` back whose memory is the allocator's.
    ///
    /// # Errors
    /// The slice itself, whose memory stays as it is, and [`Error::InvalidPointer`] where that is
    /// not a live allocation of `allocator` (`cudarc`'s own memory, for instance), or what
    /// [`Allocator::record_stream`] says of the slice's stream.
    pub fn from_cuda_slice(
        allocator: &Arc<Allocator>,
        slice: CudaSlice<T>,
    ) -> std::result::Result<Slice<T>, Box<(CudaSlice<T>, Error)>> {
        let address = slice_address(&slice);
        let found = allocator.adopt(address).and_then(|allocation| {
            // A slice that reaches past its allocation is another's.
            let usable: Result<()> = if (allocation.bytes() as usize) < slice.num_bytes() {
                Err(foreign(address).when_asked_to(PointerUse::Find))
            } else {
                let stream = slice.stream();
                allocation
                    .keep_stream(Arc::clone(stream) as _, stream_id(stream))
                    .and_then(|()| allocation.record_stream(stream_id(stream)))
            };
            match usable {
                Ok(()) => Ok(allocation),
                Err(error) => {
                    // The slice goes back to the caller, and the memory with it.
                    let _address = allocation.into_raw();
                    Err(error)
                }
            }
        });
        match found {
            Ok(allocation) => Ok(Slice {
                slice: ManuallyDrop::new(slice),
                allocation: ManuallyDrop::new(allocation),
            }),
            Err(error) => Err(Box::new((slice, error))),
        }
    }
}

/// Where a slice starts. Its stream waits for what others have written there, as before any use.
fn slice_address<T>(slice: &CudaSlice<T>) -> crate::units::Address {
    use cudarc::driver::DevicePtr;
    let (address, _synchronised) = slice.device_ptr(slice.stream());
    address
}

impl<T> Deref for Slice<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T> Drop for Slice<T> {
    fn drop(&mut self) {
        // SAFETY: this is the end: it is not used again.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        // The stream waits for what other streams do with the memory; then it can be freed in its
        // order.
        let _address = slice.leak();
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.allocation) };
    }
}

impl Allocator {
    /// Allocates `length` values for use on a stream of `cudarc`, all zero once the stream gets
    /// there.
    ///
    /// # Errors
    /// As [`Allocator::allocate`] and [`Slice::new`].
    pub fn alloc_slice<T: DeviceRepr + ValidAsZeroBits>(
        self: &Arc<Self>,
        device: DeviceId,
        length: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<Slice<T>> {
        let bytes = (length as Bytes).saturating_mul(size_of::<T>() as Bytes);
        check_context(&**self.device(device)?, stream.context())?;
        let id = stream_id(stream);
        self.keep_stream(device, id, Arc::clone(stream) as _)?;
        let allocation = self.alloc(device, bytes, id)?;
        self.device(device)?.fill_async(allocation.address(), 0, bytes, id)?;
        // SAFETY: zeros are valid values of this type, and are written on the stream of the slice.
        unsafe { Slice::new(allocation, stream) }
    }
}
