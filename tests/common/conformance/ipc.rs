//! Cases about memory that is given to others: within one process where that is possible, and to a
//! child process, which runs the same test with the part of the child.

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use plugalloc::device::{Device, HandleId, HandleType, IpcHandle, ShareableHandle};
use plugalloc::error::DeviceErrorKind;
use plugalloc::units::{Address, Bytes, MIB};

use super::{Mapped, granularity, read, write};

/// The granularity of a device whose memory can be exported as a file descriptor.
fn exportable(device: &dyn Device) -> Option<Bytes> {
    let granularity = granularity(device)?;
    let able = device.capabilities().handle_types.file_descriptor;
    if !able {
        println!("skipped: {} exports no file descriptors", device.name());
    }
    able.then_some(granularity)
}

fn has_legacy_ipc(device: &dyn Device) -> bool {
    let able = device.capabilities().legacy_ipc;
    if !able {
        println!("skipped: {} has no legacy handles", device.name());
    }
    able
}

fn map_imported(device: &dyn Device, shared: &ShareableHandle, bytes: Bytes) -> Mapped {
    let handle = device.import_handle(shared).unwrap();
    let at = device.reserve(bytes).unwrap();
    device.map(at, bytes, handle).unwrap();
    device.set_access(at, bytes).unwrap();
    Mapped { handle, at, bytes }
}

pub(crate) fn imported_memory_is_the_same_memory(device: &dyn Device) {
    let Some(granularity) = exportable(device) else { return };
    let bytes = 2 * granularity;
    let original = Mapped::new(device, bytes);
    let shared = device.export_handle(original.handle, HandleType::FileDescriptor).unwrap();
    assert_eq!(shared.handle_type(), HandleType::FileDescriptor);
    let (first, second) =
        (map_imported(device, &shared, bytes), map_imported(device, &shared, bytes));
    write(device, original.at + granularity, b"to the importers");
    assert_eq!(read(device, first.at + granularity, 16), b"to the importers");
    write(device, second.at + bytes - 4, b"back");
    assert_eq!(read(device, original.at + bytes - 4, 4), b"back");
    first.end(device);
    assert_eq!(read(device, second.at + bytes - 4, 4), b"back");
    second.end(device);
    original.end(device);
}

pub(crate) fn exported_memory_lives_while_somebody_has_it(device: &dyn Device) {
    let Some(bytes) = exportable(device) else { return };
    let original = Mapped::new(device, bytes);
    write(device, original.at, b"handed on");
    let shared = device.export_handle(original.handle, HandleType::FileDescriptor).unwrap();
    original.end(device);
    let imported = map_imported(device, &shared, bytes);
    drop(shared);
    assert_eq!(read(device, imported.at, 9), b"handed on");
    // CUDA's driver does not pass on what was itself imported.
    let again = device.export_handle(imported.handle, HandleType::FileDescriptor);
    imported.end(device);
    match again {
        Ok(again) => {
            let imported = map_imported(device, &again, bytes);
            assert_eq!(read(device, imported.at, 9), b"handed on");
            imported.end(device);
        }
        Err(error) => assert_eq!(error.kind, DeviceErrorKind::Misuse, "{error}"),
    }
}

pub(crate) fn what_nobody_exported_is_not_imported(device: &dyn Device) {
    if exportable(device).is_none() {
        return;
    }
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    let error = device.import_handle(&ShareableHandle::FileDescriptor(file)).unwrap_err();
    println!("{error}");
    assert_eq!(error.device, device.id().0);
    assert_ne!(error.kind, DeviceErrorKind::Lost);
    // The failed call has changed nothing.
    device.memory_info().unwrap();
}

pub(crate) fn a_released_handle_is_not_exported(device: &dyn Device) {
    let Some(bytes) = exportable(device) else { return };
    let handle = device.create(bytes).unwrap();
    device.release(handle).unwrap();
    assert!(device.export_handle(handle, HandleType::FileDescriptor).is_err());
    let unknown = HandleId(0);
    assert!(device.export_handle(unknown, HandleType::FileDescriptor).is_err());
}

pub(crate) fn a_handle_type_works_or_is_unsupported(device: &dyn Device) {
    let Some(bytes) = granularity(device) else {
        let error = device.export_handle(HandleId(1), HandleType::FileDescriptor).unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Unsupported, "{error}");
        return;
    };
    let mapped = Mapped::new(device, bytes);
    for handle_type in [HandleType::FileDescriptor, HandleType::Fabric] {
        let exported = device.export_handle(mapped.handle, handle_type);
        if !device.capabilities().handle_types.contains(handle_type) {
            let error = exported.unwrap_err();
            assert_eq!(error.kind, DeviceErrorKind::Unsupported, "{error}");
            continue;
        }
        let imported = map_imported(device, &exported.unwrap(), bytes);
        write(device, mapped.at, b"by any way");
        assert_eq!(read(device, imported.at, 10), b"by any way");
        imported.end(device);
    }
    mapped.end(device);
}

pub(crate) fn a_process_opens_no_handle_of_its_own(device: &dyn Device) {
    if !has_legacy_ipc(device) {
        return;
    }
    let memory = device.malloc(MIB).unwrap();
    let handle = device.ipc_get_handle(memory).unwrap();
    assert_eq!(device.ipc_get_handle(memory).unwrap(), handle);
    let error = device.ipc_open_handle(handle).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::Misuse, "{error}");
    assert!(device.ipc_close_handle(memory).is_err(), "it was never opened");
    write(device, memory, b"unharmed");
    assert_eq!(read(device, memory, 8), b"unharmed");
    device.free(memory).unwrap();
}

pub(crate) fn mapped_memory_has_no_legacy_handle(device: &dyn Device) {
    let Some(bytes) = granularity(device) else { return };
    let mapped = Mapped::new(device, bytes);
    let error = device.ipc_get_handle(mapped.at).unwrap_err();
    println!("{error}");
    assert!(matches!(error.kind, DeviceErrorKind::Misuse | DeviceErrorKind::Unsupported));
    mapped.end(device);
}

/// Set in the environment of a child to what it is told.
const TOLD: &str = "PLUGALLOC_TEST_CHILD";

/// Runs this test again in a child, which plays the other part and is told `what`, and may read
/// `input`. Fails with what it printed unless it ended as a test that passed.
fn run_child(test: &str, what: &str, input: Stdio) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(TOLD, what);
    let output = command.stdin(input).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the child: {printed}{complained}");
    assert!(printed.contains("the child has seen it"), "the child: {printed}{complained}");
}

/// What this process was told, if it is a child.
fn told() -> Option<String> {
    std::env::var(TOLD).ok()
}

/// Of two processes: `test` is the path of the test that calls this.
pub(crate) fn a_child_sees_exported_memory(device: &dyn Device, test: &str) {
    let Some(granularity) = exportable(device) else { return };
    let bytes = 2 * granularity;
    if told().is_some() {
        let descriptor = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let shared = ShareableHandle::FileDescriptor(descriptor);
        let imported = map_imported(device, &shared, bytes);
        assert_eq!(read(device, imported.at + granularity, 11), b"from parent");
        write(device, imported.at + bytes - 10, b"from child");
        imported.end(device);
        println!("the child has seen it");
        return;
    }
    let original = Mapped::new(device, bytes);
    write(device, original.at + granularity, b"from parent");
    let shared = device.export_handle(original.handle, HandleType::FileDescriptor).unwrap();
    // Nothing but the descriptor has the memory when the child begins.
    original.end(device);
    let ShareableHandle::FileDescriptor(descriptor) = &shared else { panic!("{shared:?}") };
    run_child(test, "import", Stdio::from(descriptor.try_clone().unwrap()));
    let imported = map_imported(device, &shared, bytes);
    assert_eq!(read(device, imported.at + bytes - 10, 10), b"from child");
    imported.end(device);
}

fn to_hex(handle: IpcHandle) -> String {
    handle.0.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn from_hex(text: &str) -> IpcHandle {
    let mut bytes = [0; 64];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap();
    }
    IpcHandle(bytes)
}

/// Of two processes: `test` is the path of the test that calls this.
pub(crate) fn a_child_opens_a_legacy_handle(device: &dyn Device, test: &str) {
    if !has_legacy_ipc(device) {
        return;
    }
    if let Some(text) = told() {
        if let Some(text) = text.strip_prefix("freed ") {
            let error = device.ipc_open_handle(from_hex(text)).unwrap_err();
            assert_ne!(error.kind, DeviceErrorKind::Lost, "{error}");
            println!("the child has seen it: {error}");
            return;
        }
        let handle = from_hex(&text);
        let at: Address = device.ipc_open_handle(handle).unwrap();
        assert_eq!(device.ipc_open_handle(handle).unwrap(), at, "opened again");
        assert_eq!(read(device, at, 11), b"from parent");
        device.ipc_close_handle(at).unwrap();
        write(device, at + 3 * MIB - 10, b"from child");
        assert!(device.free(at).is_err(), "it is the parent's");
        device.ipc_close_handle(at).unwrap();
        let error = device.ipc_close_handle(at).unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Misuse, "{error}");
        println!("the child has seen it");
        return;
    }
    let memory = device.malloc(3 * MIB).unwrap();
    write(device, memory, b"from parent");
    let handle = device.ipc_get_handle(memory).unwrap();
    run_child(test, &to_hex(handle), Stdio::null());
    assert_eq!(read(device, memory + 3 * MIB - 10, 10), b"from child");
    device.free(memory).unwrap();
    run_child(test, &format!("freed {}", to_hex(handle)), Stdio::null());
}
