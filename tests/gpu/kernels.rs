//! Real kernels: they come as PTX, which the driver compiles.

use std::ffi::{CString, c_void};

use cudarc::driver::sys;
use plugalloc::units::{Address, StreamId};
use sys::CUresult::CUDA_SUCCESS;

/// The kernels in the context that was current when they were loaded.
pub(crate) struct Kernels {
    module: sys::CUmodule,
    spin: sys::CUfunction,
    affine: sys::CUfunction,
    peek: sys::CUfunction,
}

// SAFETY: the driver lets every thread use modules and functions.
unsafe impl Sync for Kernels {}
// SAFETY: as above.
unsafe impl Send for Kernels {}

impl Kernels {
    /// Loads them into the current context, which must stay current for every call.
    pub(crate) fn load() -> Kernels {
        let text = CString::new(include_str!("kernels.ptx")).unwrap();
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with a zero; writes one handle.
        let code = unsafe { sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()) };
        assert_eq!(code, CUDA_SUCCESS);
        let find = |name: &str| {
            let name = CString::new(name).unwrap();
            let mut function = std::ptr::null_mut();
            // SAFETY: the module exists, and the name ends with a zero; writes one handle.
            let code =
                unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
            assert_eq!(code, CUDA_SUCCESS, "{name:?}");
            function
        };
        Kernels { module, spin: find("spin"), affine: find("affine"), peek: find("peek") }
    }

    /// Keeps the stream busy.
    pub(crate) fn spin(&self, milliseconds: u64, stream: StreamId) {
        let mut nanoseconds = milliseconds * 1_000_000;
        launch(self.spin, (1, 1), &mut [(&raw mut nanoseconds).cast()], stream);
    }

    /// Multiplies and adds to each of some words.
    pub(crate) fn affine(
        &self,
        (words, count): (Address, u32),
        (factor, addend): (u32, u32),
        stream: StreamId,
    ) {
        let (mut words, mut count, mut factor, mut addend) = (words, count, factor, addend);
        let arguments = &mut [
            (&raw mut words).cast(),
            (&raw mut count).cast(),
            (&raw mut factor).cast(),
            (&raw mut addend).cast(),
        ];
        launch(self.affine, (64, 256), arguments, stream);
    }

    /// Copies the word at an address to another one, whatever is there.
    pub(crate) fn peek(&self, from: Address, to: Address, stream: StreamId) {
        let (mut from, mut to) = (from, to);
        launch(self.peek, (1, 1), &mut [(&raw mut from).cast(), (&raw mut to).cast()], stream);
    }

    /// Unloads them. Nothing of them may be queued any more.
    pub(crate) fn unload(self) {
        // SAFETY: it was loaded, and is used no more, says the caller.
        let code = unsafe { sys::cuModuleUnload(self.module) };
        assert_eq!(code, CUDA_SUCCESS);
    }
}

/// Queues a kernel of so many blocks of threads.
fn launch(
    function: sys::CUfunction,
    (blocks, threads): (u32, u32),
    arguments: &mut [*mut c_void],
    stream: StreamId,
) {
    let stream = stream.0 as usize as sys::CUstream;
    let (arguments, none) = (arguments.as_mut_ptr(), std::ptr::null_mut());
    // SAFETY: function and stream belong to the current context, and the arguments are as many and
    // as long as the kernel's; they are read before this returns.
    let code = unsafe {
        sys::cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, none)
    };
    assert_eq!(code, CUDA_SUCCESS);
}
