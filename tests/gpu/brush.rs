//! Memory painted by kernels.

use std::sync::Arc;

use cudarc::driver::sys;
use plugalloc::device::Device;
use plugalloc::device::cuda::CudaDevice;
use plugalloc::units::{Address, Bytes, StreamId};
use sys::CUresult::CUDA_SUCCESS;

use crate::contexts::with_primary_context_of;
use crate::kernels::Kernels;
use crate::scenarios::{Brush, Place};

/// A kernel that multiplies by zero and adds the value. Unlike a fill it shows that the device
/// itself reaches the memory.
struct KernelBrush {
    device: Arc<CudaDevice>,
    /// The device's primary context, in which the kernels are, and which is kept with them.
    context: sys::CUcontext,
    kernels: Option<Kernels>,
}

// SAFETY: the driver lets every thread use a context.
unsafe impl Send for KernelBrush {}
// SAFETY: as above.
unsafe impl Sync for KernelBrush {}

/// A device with its brush.
pub(crate) fn place(device: &Arc<CudaDevice>) -> Place {
    let brush = KernelBrush::new(device);
    Place { device: Arc::clone(device) as Arc<dyn Device>, brush: Arc::new(brush) }
}

impl KernelBrush {
    fn new(device: &Arc<CudaDevice>) -> KernelBrush {
        let ordinal = device.id().0;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one pointer; given back when this goes.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, ordinal) };
        assert_eq!(code, CUDA_SUCCESS);
        let kernels = with_primary_context_of(ordinal, |_| Kernels::load());
        let brush = KernelBrush { device: Arc::clone(device), context, kernels: Some(kernels) };
        // The driver may load a kernel only when it is launched, which is not to be in a capture.
        let memory = device.malloc(4096).unwrap();
        brush.paint(memory, 4096, 1, StreamId::DEFAULT);
        device.synchronize().unwrap();
        device.free(memory).unwrap();
        brush
    }

    /// Runs `body` with the context current, whatever is current in this thread.
    fn inside(&self, body: impl FnOnce()) {
        // SAFETY: the context is kept.
        let code = unsafe { sys::cuCtxPushCurrent_v2(self.context) };
        assert_eq!(code, CUDA_SUCCESS);
        body();
        let mut popped = std::ptr::null_mut();
        // SAFETY: takes off what was pushed above.
        let code = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
        assert_eq!((code, popped), (CUDA_SUCCESS, self.context));
    }
}

impl Brush for KernelBrush {
    fn paint(&self, at: Address, bytes: Bytes, value: u8, stream: StreamId) {
        let words = (at, u32::try_from(bytes / 4).unwrap());
        let kernels = self.kernels.as_ref().unwrap();
        self.inside(|| kernels.affine(words, (0, u32::from_ne_bytes([value; 4])), stream));
    }
}

impl Drop for KernelBrush {
    fn drop(&mut self) {
        // After a fault of the device nothing can be unloaded any more.
        let unused = self.device.synchronize().is_ok();
        if let Some(kernels) = self.kernels.take().filter(|_| unused) {
            self.inside(|| kernels.unload());
        }
        // SAFETY: gives back what was retained when this was made.
        let _code = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device.id().0) };
    }
}
