//! The driver's functions, looked up one by one, so that a missing one is an error, and every
//! number that a later driver may answer can be held.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;
use sys::{CUcontext, CUdeviceptr, CUevent, CUgraph, CUgraphExec, CUgraphNode, CUhostFn, CUstream};

use super::ipc::IpcBytes;
use super::vmm::{AccessDescription, AllocationProperties};

/// What the driver answers. Zero is success.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) u32);

impl Code {
    /// Fails with the code unless it is success.
    pub(super) fn check(self) -> Result<(), Code> {
        if self.0 == 0 { Ok(()) } else { Err(self) }
    }

    /// Whether it is this code of the header.
    pub(super) fn is(self, code: sys::CUresult) -> bool {
        self.0 == code as u32
    }
}

/// The functions of one driver library.
macro_rules! functions {
    (
        required { $($field:ident = $symbol:literal($($argument:ty),* $(,)?);)* }
        optional { $($later:ident = $later_symbol:literal($($later_argument:ty),* $(,)?);)* }
    ) => {
        /// The functions that are called, under shorter names. Those with a version in their symbol
        /// keep its signature for ever.
        #[derive(Debug)]
        pub(super) struct Driver {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> Code,)*
            $(pub(super) $later: Option<unsafe extern "C" fn($($later_argument),*) -> Code>,)*
        }

        impl Driver {
            fn look_up() -> Result<Driver, String> {
                Ok(Driver {
                    $(
                        // SAFETY: the signature is that of this symbol in cuda.h, where an
                        // enumeration and a CUresult are 32-bit integers.
                        $field: unsafe { symbol($symbol) }?,
                    )*
                    $(
                        // SAFETY: as above.
                        $later: unsafe { symbol($later_symbol) }.ok(),
                    )*
                })
            }
        }
    };
}

functions! {
required {
    init = "cuInit"(c_uint);
    driver_version = "cuDriverGetVersion"(*mut c_int);
    error_name = "cuGetErrorName"(Code, *mut *const c_char);
    error_text = "cuGetErrorString"(Code, *mut *const c_char);

    device_count = "cuDeviceGetCount"(*mut c_int);
    device_name = "cuDeviceGetName"(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, c_uint, c_int);
    device_total = "cuDeviceTotalMem_v2"(*mut usize, c_int);
    can_access_peer = "cuDeviceCanAccessPeer"(*mut c_int, c_int, c_int);

    context_retain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2"(c_int);
    context_state = "cuDevicePrimaryCtxGetState"(c_int, *mut c_uint, *mut c_int);
    context_current = "cuCtxGetCurrent"(*mut CUcontext);
    context_device = "cuCtxGetDevice"(*mut c_int);
    context_push = "cuCtxPushCurrent_v2"(CUcontext);
    context_pop = "cuCtxPopCurrent_v2"(*mut CUcontext);
    context_synchronize = "cuCtxSynchronize"();
    enable_peer = "cuCtxEnablePeerAccess"(CUcontext, c_uint);

    mem_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    mem_alloc = "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
    mem_free = "cuMemFree_v2"(CUdeviceptr);
    mem_copy = "cuMemcpyAsync"(CUdeviceptr, CUdeviceptr, usize, CUstream);
    mem_fill = "cuMemsetD8Async"(CUdeviceptr, u8, usize, CUstream);

    mem_granularity = "cuMemGetAllocationGranularity"(
        *mut usize, *const AllocationProperties, c_uint);
    mem_reserve = "cuMemAddressReserve"(*mut CUdeviceptr, usize, usize, CUdeviceptr, u64);
    mem_address_free = "cuMemAddressFree"(CUdeviceptr, usize);
    mem_create = "cuMemCreate"(*mut u64, usize, *const AllocationProperties, u64);
    mem_release = "cuMemRelease"(u64);
    mem_map = "cuMemMap"(CUdeviceptr, usize, usize, u64, u64);
    mem_set_access = "cuMemSetAccess"(CUdeviceptr, usize, *const AccessDescription, usize);
    mem_unmap = "cuMemUnmap"(CUdeviceptr, usize);

    mem_export = "cuMemExportToShareableHandle"(*mut c_void, u64, c_uint, u64);
    mem_import = "cuMemImportFromShareableHandle"(*mut u64, *mut c_void, c_uint);
    ipc_get = "cuIpcGetMemHandle"(*mut IpcBytes, CUdeviceptr);
    ipc_open = "cuIpcOpenMemHandle_v2"(*mut CUdeviceptr, IpcBytes, c_uint);
    ipc_close = "cuIpcCloseMemHandle"(CUdeviceptr);

    stream_create = "cuStreamCreate"(*mut CUstream, c_uint);
    stream_destroy = "cuStreamDestroy_v2"(CUstream);
    stream_synchronize = "cuStreamSynchronize"(CUstream);
    stream_wait_event = "cuStreamWaitEvent"(CUstream, CUevent, c_uint);
    launch_host_function = "cuLaunchHostFunc"(CUstream, CUhostFn, *mut c_void);

    event_create = "cuEventCreate"(*mut CUevent, c_uint);
    event_destroy = "cuEventDestroy_v2"(CUevent);
    event_record = "cuEventRecord"(CUevent, CUstream);
    event_query = "cuEventQuery"(CUevent);
    event_synchronize = "cuEventSynchronize"(CUevent);

    capture_begin = "cuStreamBeginCapture_v2"(CUstream, c_uint);
    capture_end = "cuStreamEndCapture"(CUstream, *mut CUgraph);
    capture_info = "cuStreamGetCaptureInfo_v2"(
        CUstream, *mut c_uint, *mut u64, *mut CUgraph, *mut *const CUgraphNode, *mut usize);
    capture_exchange_mode = "cuThreadExchangeStreamCaptureMode"(*mut c_uint);
    graph_instantiate = "cuGraphInstantiateWithFlags"(*mut CUgraphExec, CUgraph, u64);
    graph_destroy = "cuGraphDestroy"(CUgraph);
    graph_launch = "cuGraphLaunch"(CUgraphExec, CUstream);
    graph_exec_destroy = "cuGraphExecDestroy"(CUgraphExec);
}
// What older drivers lack and can do without.
optional {
    context_id = "cuCtxGetId"(CUcontext, *mut u64);
    stream_context = "cuStreamGetCtx"(CUstream, *mut CUcontext);
}
}

/// The address of a function of the driver library.
///
/// # Safety
///
/// The library is present, and `F` is the type of the function of that name.
unsafe fn symbol<F: Copy>(name: &str) -> Result<F, String> {
    // SAFETY: the library is present, says the caller, so that this does not panic; its
    // initialisers are those of the system's driver.
    let library = unsafe { sys::culib() };
    // SAFETY: the caller answers for the type.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|function| *function).map_err(|_| name.to_owned())
}

impl Driver {
    /// The functions of this machine's driver, or what is missing.
    pub(super) fn find() -> Result<&'static Driver, String> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        DRIVER.get_or_init(Driver::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Driver, String> {
        // SAFETY: loads the system's driver library, whose initialisers may run in any program.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "no CUDA driver: looked for libcuda.so and libcuda.so.1 where the dynamic \
                        loader looks (LD_LIBRARY_PATH, the system's cache)"
                    .to_owned(),
            );
        }
        Driver::look_up().map_err(|name| {
            format!("the CUDA driver is too old: it has no {name}; CUDA 11.4 or later is needed")
        })
    }

    /// The driver's name and words for a code.
    pub(super) fn describe(&self, code: Code) -> String {
        let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
        // SAFETY: writes one pointer.
        let named = unsafe { (self.error_name)(code, &raw mut name) };
        // SAFETY: writes one pointer.
        let told = unsafe { (self.error_text)(code, &raw mut text) };
        let (name, text) = (read_text(named, name), read_text(told, text));
        match (name, text) {
            (Some(name), Some(text)) => format!("{name}: {text}{}", code.hint()),
            _ => format!("CUDA error {}, which this driver cannot name", code.0),
        }
    }
}

/// A text that the driver keeps.
fn read_text(code: Code, text: *const c_char) -> Option<String> {
    if code.check().is_err() || text.is_null() {
        return None;
    }
    // SAFETY: the driver succeeded, so this is a text that ends with a zero and lives as long as
    // the library, which is never unloaded.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}
