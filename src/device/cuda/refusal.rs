//! What the driver's numbers mean for an allocator.

use cudarc::driver::sys::CUresult as Cuda;

use super::driver::Code;
use crate::error::DeviceErrorKind;

/// Codes that are newer than the header which is built against.
const DEVICE_UNAVAILABLE: u32 = 46;
const CONTAINED: u32 = 226;
const TENSOR_MEMORY_LEAK: u32 = 721;

/// The kind of failure of each code that is more than [`Other`](DeviceErrorKind::Other).
const KINDS: &[(DeviceErrorKind, &[Cuda])] = &[
    (DeviceErrorKind::OutOfMemory, &[Cuda::CUDA_ERROR_OUT_OF_MEMORY]),
    (
        // After these the context answers every call so, until the process ends.
        DeviceErrorKind::Lost,
        &[
            Cuda::CUDA_ERROR_DEINITIALIZED,
            // Calls are made in a context of our own, so that it is this one which is gone.
            Cuda::CUDA_ERROR_INVALID_CONTEXT,
            Cuda::CUDA_ERROR_ECC_UNCORRECTABLE,
            Cuda::CUDA_ERROR_NVLINK_UNCORRECTABLE,
            Cuda::CUDA_ERROR_ILLEGAL_ADDRESS,
            Cuda::CUDA_ERROR_LAUNCH_TIMEOUT,
            Cuda::CUDA_ERROR_CONTEXT_IS_DESTROYED,
            Cuda::CUDA_ERROR_ASSERT,
            Cuda::CUDA_ERROR_HARDWARE_STACK_ERROR,
            Cuda::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            Cuda::CUDA_ERROR_MISALIGNED_ADDRESS,
            Cuda::CUDA_ERROR_INVALID_ADDRESS_SPACE,
            Cuda::CUDA_ERROR_INVALID_PC,
            Cuda::CUDA_ERROR_LAUNCH_FAILED,
            Cuda::CUDA_ERROR_EXTERNAL_DEVICE,
        ],
    ),
    (
        DeviceErrorKind::NotPermitted,
        &[
            Cuda::CUDA_ERROR_NOT_PERMITTED,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_MERGE,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
            Cuda::CUDA_ERROR_CAPTURED_EVENT,
            Cuda::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
        ],
    ),
    (
        DeviceErrorKind::Unsupported,
        &[
            Cuda::CUDA_ERROR_NOT_SUPPORTED,
            Cuda::CUDA_ERROR_UNSUPPORTED_LIMIT,
            Cuda::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,
        ],
    ),
    (
        DeviceErrorKind::Misuse,
        &[
            Cuda::CUDA_ERROR_INVALID_VALUE,
            Cuda::CUDA_ERROR_INVALID_HANDLE,
            Cuda::CUDA_ERROR_ILLEGAL_STATE,
        ],
    ),
    (
        DeviceErrorKind::NoDevice,
        &[
            Cuda::CUDA_ERROR_STUB_LIBRARY,
            Cuda::CUDA_ERROR_NO_DEVICE,
            Cuda::CUDA_ERROR_INVALID_DEVICE,
            Cuda::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            Cuda::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
        ],
    ),
];

impl Code {
    /// What kind of failure it is.
    pub(super) fn kind(self) -> DeviceErrorKind {
        if matches!(self.0, DEVICE_UNAVAILABLE | CONTAINED | TENSOR_MEMORY_LEAK) {
            return DeviceErrorKind::Lost;
        }
        let known = KINDS.iter().find(|(_, codes)| codes.iter().any(|&code| self.is(code)));
        known.map_or(DeviceErrorKind::Other, |(kind, _)| *kind)
    }

    /// What a reader has to know besides the driver's words.
    pub(super) fn hint(self) -> &'static str {
        if self.is(Cuda::CUDA_ERROR_DEINITIALIZED) {
            return " (the process is exiting)";
        }
        if self.is(Cuda::CUDA_ERROR_NOT_INITIALIZED) {
            return " (so it is in a process forked from one that used CUDA)";
        }
        if self.kind() == DeviceErrorKind::Lost {
            return " (work that the program queued before has failed, or the device was reset; no \
                    call of this process reaches the device any more)";
        }
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_earlier_work_are_a_lost_device() {
        for code in [Cuda::CUDA_ERROR_ILLEGAL_ADDRESS, Cuda::CUDA_ERROR_LAUNCH_FAILED] {
            assert_eq!(Code(code as u32).kind(), DeviceErrorKind::Lost);
        }
        assert_eq!(Code(CONTAINED).kind(), DeviceErrorKind::Lost);
    }

    #[test]
    fn only_want_of_memory_is_out_of_memory() {
        let kinds = (0..1000).filter(|&code| Code(code).kind() == DeviceErrorKind::OutOfMemory);
        assert_eq!(kinds.collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn unknown_codes_are_other_failures() {
        assert_eq!(Code(u32::MAX).kind(), DeviceErrorKind::Other);
        assert_eq!(Code(u32::MAX).hint(), "");
    }
}
