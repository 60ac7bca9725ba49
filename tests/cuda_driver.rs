//! What the CUDA device asks of its driver, and in which context. The driver is a library made here
//! by the C compiler, which child processes find in the place of CUDA's; nothing of this needs a
//! GPU.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;

use cudarc::driver::sys;
use plugalloc::device::cuda::{CudaDevice, CudaMachine};
use plugalloc::device::{Device, HandleId, HandleType, IpcHandle, ShareableHandle};
use plugalloc::error::{DeviceError, DeviceErrorKind};
use plugalloc::units::{MIB, StreamId};

/// Set in the environment of a child to the test whose part it plays.
const CHILD: &str = "PLUGALLOC_DRIVER_CHILD";

/// The folder with the driver. `None` without a C compiler.
fn driver() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(make_driver).as_deref()
}

fn make_driver() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
    std::fs::create_dir_all(&folder).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_driver/driver.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]);
    match compiler.arg(folder.join("libcuda.so")).arg(source).status() {
        Ok(status) => {
            assert!(status.success());
            Some(folder)
        }
        Err(problem) => {
            println!("skipped: no C compiler here ({problem})");
            None
        }
    }
}

/// Runs `part` in a child that finds the driver, with these variables, and passes if it does.
fn with_driver(test: &str, variables: &[(&str, &str)], part: impl FnOnce()) {
    if std::env::var(CHILD).is_ok_and(|told| told == test) {
        part();
        println!("done as told");
        return;
    }
    let Some(folder) = driver() else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, test).env("LD_LIBRARY_PATH", folder);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{complained}");
    assert!(printed.contains("done as told"), "{printed}{complained}");
}

/// A variable of the driver.
fn variable<T: Copy>(name: &str) -> *mut T {
    // SAFETY: the driver of the test is there, and has no initialisers.
    let library = unsafe { sys::culib() };
    // SAFETY: it is a variable of this type, says the caller.
    let found = unsafe { library.get::<*mut T>(name.as_bytes()) };
    *found.unwrap()
}

fn read<T: Copy>(name: &str) -> T {
    // SAFETY: the variable lives as long as the driver, and no call is under way.
    unsafe { variable::<T>(name).read() }
}

fn break_work() {
    // SAFETY: as above.
    unsafe { variable::<i32>("fake_broken").write(1) }
}

fn current() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    unsafe { sys::cuCtxGetCurrent(&raw mut context) }.result().unwrap();
    context
}

fn create_context() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, 0) }.result().unwrap();
    context
}

fn destroy_context(context: sys::CUcontext) {
    // SAFETY: the driver of the test keeps destroyed contexts apart.
    unsafe { sys::cuCtxDestroy_v2(context) }.result().unwrap();
}

fn open() -> (Arc<CudaMachine>, Arc<CudaDevice>) {
    let machine = CudaMachine::open().unwrap();
    let device = Arc::clone(&machine.devices()[0]);
    (machine, device)
}

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(result: Result<T, DeviceError>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::Lost, "{error}");
    assert!(error.detail.contains(words), "{error}");
}

#[test]
fn calls_are_made_in_the_primary_context_and_leave_none_behind() {
    let test = "calls_are_made_in_the_primary_context_and_leave_none_behind";
    with_driver(test, &[], || {
        let (machine, device) = open();
        device.malloc(MIB).unwrap();
        let primary: sys::CUcontext = read("fake_context");
        assert_eq!(device.native_context().unwrap(), Some(primary as u64));
        assert!(current().is_null());
        assert!(device.free(0).is_err());
        assert!(current().is_null());
        let mut seen = None;
        device.in_context(&mut || seen = Some(current())).unwrap();
        assert_eq!(seen, Some(primary));
        assert!(current().is_null());
        // In a context of the program's, the same device is used in its primary one all the same.
        let own = create_context();
        device.malloc(MIB).unwrap();
        assert_eq!((read::<sys::CUcontext>("fake_context"), current()), (primary, own));
        destroy_context(own);
        assert!(Arc::ptr_eq(&machine, &CudaMachine::open().unwrap()));
    });
}

#[test]
fn a_device_opened_in_a_context_of_the_program_works_in_it() {
    let test = "a_device_opened_in_a_context_of_the_program_works_in_it";
    with_driver(test, &[], || {
        let (primary, _) = open();
        let own = create_context();
        let (machine, device) = open();
        assert!(!Arc::ptr_eq(&primary, &machine));
        assert!(Arc::ptr_eq(&machine, &CudaMachine::open().unwrap()));
        let expected = own.addr();
        thread::scope(|scope| {
            scope.spawn(|| {
                device.malloc(MIB).unwrap();
                assert_eq!(read::<sys::CUcontext>("fake_context").addr(), expected);
                assert!(current().is_null());
                // Where nothing is current, the primary context is meant.
                assert!(Arc::ptr_eq(&primary, &CudaMachine::open().unwrap()));
            });
        });
        assert_eq!(current(), own);
    });
}

#[test]
fn a_destroyed_context_is_not_mistaken_for_the_next_in_its_place() {
    let test = "a_destroyed_context_is_not_mistaken_for_the_next_in_its_place";
    with_driver(test, &[], || {
        let own = create_context();
        let (machine, device) = open();
        let event = device.event_create().unwrap();
        destroy_context(own);
        let next = create_context();
        assert_eq!(next, own, "it lies in the same place");
        assert_lost(device.malloc(MIB), "was destroyed");
        let (again, anew) = open();
        assert!(!Arc::ptr_eq(&machine, &again));
        anew.malloc(MIB).unwrap();
        assert_lost(device.event_record(event, StreamId::DEFAULT), "was destroyed");
        // Short calls are refused, too, before the driver sees a context that is gone.
        destroy_context(next);
        assert_lost(anew.event_record(event, StreamId::DEFAULT), "was destroyed");
    });
}

#[test]
fn a_reset_device_is_lost_until_it_is_opened_again() {
    let test = "a_reset_device_is_lost_until_it_is_opened_again";
    with_driver(test, &[], || {
        let (machine, device) = open();
        device.malloc(MIB).unwrap();
        // SAFETY: takes an ordinal.
        unsafe { sys::cuDevicePrimaryCtxReset_v2(0) }.result().unwrap();
        let (again, anew) = open();
        assert!(!Arc::ptr_eq(&machine, &again));
        anew.malloc(MIB).unwrap();
        assert_lost(device.malloc(MIB), "reset");
    });
}

#[test]
fn work_of_the_program_that_failed_is_told_as_that() {
    let test = "work_of_the_program_that_failed_is_told_as_that";
    with_driver(test, &[], || {
        let (_machine, device) = open();
        device.malloc(MIB).unwrap();
        break_work();
        assert_lost(device.malloc(MIB), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_lost(device.malloc(MIB), "work that the program queued before has failed");
        assert_lost(device.memory_info(), "CUDA_ERROR_ILLEGAL_ADDRESS");
    });
}

/// Exports and imports by a type, and looks at what was asked for.
fn share(device: &CudaDevice, handle_type: HandleType) {
    let handle = device.create(2 * MIB).unwrap();
    let shared = device.export_handle(handle, handle_type).unwrap();
    assert_eq!(shared.handle_type(), handle_type);
    let imported = device.import_handle(&shared).unwrap();
    device.release(imported).unwrap();
    device.release(handle).unwrap();
}

#[test]
fn memory_is_exportable_in_every_way_that_works() {
    let test = "memory_is_exportable_in_every_way_that_works";
    for fabric in ["works", "refused"] {
        with_driver(test, &[("FABRIC", fabric)], || {
            let (_, device) = open();
            let works = std::env::var("FABRIC").unwrap() == "works";
            let types = device.capabilities().handle_types;
            assert_eq!((types.file_descriptor, types.fabric), (true, works));
            share(&device, HandleType::FileDescriptor);
            assert_eq!(read::<u32>("fake_handle_types"), if works { 9 } else { 1 });
            if works {
                share(&device, HandleType::Fabric);
                return;
            }
            let handle = device.create(2 * MIB).unwrap();
            let error = device.export_handle(handle, HandleType::Fabric).unwrap_err();
            assert_eq!(error.kind, DeviceErrorKind::Unsupported, "{error}");
            let error = device.import_handle(&ShareableHandle::Fabric([0xfa; 64])).unwrap_err();
            assert_eq!(error.kind, DeviceErrorKind::Unsupported, "{error}");
        });
    }
}

#[track_caller]
fn assert_misuse<T: std::fmt::Debug>(result: Result<T, DeviceError>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::Misuse, "{error}");
    assert!(error.detail.contains(words), "{error}");
}

#[test]
fn the_driver_sees_no_handle_that_is_not_alive() {
    let test = "the_driver_sees_no_handle_that_is_not_alive";
    with_driver(test, &[("FABRIC", "refused")], || {
        let (_, device) = open();
        let handle = device.create(2 * MIB).unwrap();
        let shared = device.export_handle(handle, HandleType::FileDescriptor).unwrap();
        let imports =
            [device.import_handle(&shared).unwrap(), device.import_handle(&shared).unwrap()];
        device.map(4 * MIB, 2 * MIB, handle).unwrap();
        assert_eq!(
            device.ipc_get_handle(5 * MIB).unwrap_err().kind,
            DeviceErrorKind::Unsupported,
            "it is mapped memory"
        );
        device.release(handle).unwrap();
        for gone in [handle, HandleId(0), HandleId(u64::MAX)] {
            let words = "none of this device, or was released";
            assert_misuse(device.export_handle(gone, HandleType::FileDescriptor), words);
            assert_misuse(device.map(8 * MIB, 2 * MIB, gone), words);
            assert_misuse(device.release(gone), words);
        }
        for import in imports {
            device.map(8 * MIB, 2 * MIB, import).unwrap();
            device.release(import).unwrap();
        }
        assert_misuse(device.release(imports[0]), "released before");
        break_work();
        assert_lost(device.create(2 * MIB), "CUDA_ERROR_ILLEGAL_ADDRESS");
    });
}

#[test]
fn network_cards_reach_memory_only_where_that_was_asked_for() {
    let test = "network_cards_reach_memory_only_where_that_was_asked_for";
    for variables in [&[("RDMA", "1")][..], &[]] {
        with_driver(test, variables, || {
            let (_, device) = open();
            let able = std::env::var_os("RDMA").is_some();
            assert_eq!(device.capabilities().rdma, able);
            device.create(2 * MIB).unwrap();
            assert_eq!(read::<u8>("fake_rdma"), 0);
            let made = device.create_for_rdma(2 * MIB);
            if able {
                made.unwrap();
                assert_eq!((read::<u8>("fake_rdma"), read::<u32>("fake_handle_types")), (1, 1));
            } else {
                assert_eq!(made.unwrap_err().kind, DeviceErrorKind::Unsupported);
            }
        });
    }
}

#[test]
fn legacy_handles_pass_through_and_those_of_this_process_are_named() {
    let test = "legacy_handles_pass_through_and_those_of_this_process_are_named";
    with_driver(test, &[], || {
        let (_, device) = open();
        let handle = device.ipc_get_handle(7).unwrap();
        assert_eq!(handle, IpcHandle([7; 64]));
        let error = device.ipc_open_handle(handle).unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Misuse, "{error}");
        assert!(error.detail.contains("of this process"), "{error}");
        let at = device.ipc_open_handle(IpcHandle([9; 64])).unwrap();
        device.ipc_close_handle(at).unwrap();
        assert_misuse(device.ipc_close_handle(at), "was closed as often");
        assert_misuse(device.ipc_close_handle(at + 1), "no legacy handle");
        // Opened twice, it is closed twice, and is nobody's to free here.
        assert_eq!(device.ipc_open_handle(IpcHandle([9; 64])).unwrap(), at);
        assert_eq!(device.ipc_open_handle(IpcHandle([9; 64])).unwrap(), at);
        device.ipc_close_handle(at).unwrap();
        assert_misuse(device.free(at), "another process's");
        device.ipc_close_handle(at).unwrap();
        device.free(at).unwrap();
        break_work();
        assert_lost(device.ipc_open_handle(handle), "CUDA_ERROR_ILLEGAL_ADDRESS");
    });
}

#[test]
fn a_stream_is_known_by_its_context() {
    let test = "a_stream_is_known_by_its_context";
    with_driver(test, &[], || {
        let (_, device) = open();
        let belongs = |context: sys::CUcontext| {
            // SAFETY: the variable lives as long as the driver, and no call is under way.
            unsafe { variable::<sys::CUcontext>("fake_stream_context").write(context) };
            device.has_stream(StreamId(0x5000)).unwrap()
        };
        let own = device.native_context().unwrap().unwrap() as usize as sys::CUcontext;
        assert!(belongs(own));
        assert!(!belongs((own as usize + 64) as sys::CUcontext));
        assert!(current().is_null());
        // The default streams are every device's, and what the driver does not know may be.
        for number in [0, 1, 2, 0xbad] {
            assert!(device.has_stream(StreamId(number)).unwrap(), "{number:#x}");
        }
    });
}
