//! Why the simulated device refuses a call, before the call and the device are known.

use crate::error::DeviceErrorKind;

/// A failed step inside the simulator. The face of the device adds which call it was, of which
/// device.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: DeviceErrorKind,
    pub(super) detail: String,
}

/// The result of a step inside the simulator.
pub(super) type Outcome<T> = Result<T, Refusal>;

/// The caller broke the contract.
pub(super) fn misuse(detail: impl Into<String>) -> Refusal {
    Refusal { kind: DeviceErrorKind::Misuse, detail: detail.into() }
}

/// The call is not allowed now.
pub(super) fn not_permitted(detail: impl Into<String>) -> Refusal {
    Refusal { kind: DeviceErrorKind::NotPermitted, detail: detail.into() }
}

/// This device cannot do it.
pub(super) fn unsupported(detail: impl Into<String>) -> Refusal {
    Refusal { kind: DeviceErrorKind::Unsupported, detail: detail.into() }
}

/// No memory of the device is left for this.
pub(super) fn out_of_memory(detail: impl Into<String>) -> Refusal {
    Refusal { kind: DeviceErrorKind::OutOfMemory, detail: detail.into() }
}

/// The host refused a system call. This is never the device's own lack of memory, so that nobody
/// tries to cure it by giving device memory back.
pub(super) fn host_failure(doing: &str, error: &std::io::Error) -> Refusal {
    let hint = match error.raw_os_error() {
        Some(super::os::ENOMEM) => {
            "; the host has no memory or no address space left, or this process has more mappings \
             than the kernel allows (sysctl vm.max_map_count)"
        }
        _ => "",
    };
    let detail = format!("the host of the simulated device could not {doing}: {error}{hint}");
    Refusal { kind: DeviceErrorKind::Other, detail }
}
