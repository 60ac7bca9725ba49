//! What happens at the ends of processes: exit, fork, and faults of the program.

use std::ffi::c_int;
use std::process::{Command, Output};

use plugalloc::Error;
use plugalloc::device::Device;
use plugalloc::device::cuda::CudaMachine;
use plugalloc::error::{DeviceError, DeviceErrorKind};
use plugalloc::units::{MIB, StreamId};

use crate::contexts::with_primary_context;
use crate::kernels::Kernels;
use crate::{GPU, Gpu, gpu};

unsafe extern "C" {
    safe fn fork() -> c_int;
    safe fn alarm(seconds: u32) -> u32;
    safe fn _exit(status: c_int) -> !;
    fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
}

/// Set in the environment of a child to the name of the test whose part it plays.
const CHILD: &str = "PLUGALLOC_GPU_CHILD";

pub(crate) fn is_child(test: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|name| name == test)
}

/// Runs this executable again with one test, which plays the child's part, and prints what it has
/// printed.
pub(crate) fn run_child(module: &str, test: &str) -> Output {
    let name = format!("{module}::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(CHILD, test);
    let output = command.output().unwrap();
    print!("{}", print_of(&output));
    output
}

pub(crate) fn print_of(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[test]
fn a_forked_child_gets_an_error() {
    let Some(gpu) = gpu() else { return };
    gpu.device.memory_info().unwrap();
    let child = fork();
    assert!(child >= 0);
    if child == 0 {
        // A hang ends here as a failure.
        alarm(20);
        let refused = |kind| kind == DeviceErrorKind::Lost;
        let used = gpu.device.memory_info().is_err_and(|error| refused(error.kind))
            && gpu.device.create(2 * MIB).is_err_and(|error| refused(error.kind));
        let opened = CudaMachine::open().is_err_and(|error| refused(error.kind));
        _exit(if used && opened { 0 } else { 1 });
    }
    let mut status = -1;
    // SAFETY: writes one integer.
    let waited = unsafe { waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    gpu.device.memory_info().unwrap();
}

#[test]
fn exit_with_live_memory_is_clean() {
    let test = "exit_with_live_memory_is_clean";
    let Some(gpu) = gpu() else { return };
    if is_child(test) {
        let allocator = gpu.allocator();
        let at = allocator.allocate(GPU, 64 * MIB, StreamId::DEFAULT).unwrap();
        gpu.device.fill_async(at, 1, 64 * MIB, StreamId::DEFAULT).unwrap();
        gpu.keep_busy(StreamId::DEFAULT, 50);
        std::mem::forget(allocator);
        println!("leaves");
        std::process::exit(0);
    }
    let output = run_child("processes", test);
    assert!(output.status.success(), "{}", print_of(&output));
    assert!(print_of(&output).contains("leaves"));
}

#[test]
fn a_fault_of_the_program_is_reported_as_that() {
    let test = "a_fault_of_the_program_is_reported_as_that";
    let Some(gpu) = gpu() else { return };
    if is_child(test) {
        fault_and_ask(&*gpu.device);
        println!("told");
        std::process::exit(0);
    }
    let output = run_child("processes", test);
    assert!(output.status.success(), "{}", print_of(&output));
    assert!(print_of(&output).contains("told"), "{}", print_of(&output));
}

#[test]
fn a_fault_of_a_kernel_is_no_want_of_memory() {
    let test = "a_fault_of_a_kernel_is_no_want_of_memory";
    let Some(gpu) = gpu() else { return };
    if is_child(test) {
        with_primary_context(|| fault_and_allocate(&gpu));
        println!("told");
        std::process::exit(0);
    }
    let output = run_child("processes", test);
    assert!(output.status.success(), "{}", print_of(&output));
    assert!(print_of(&output).contains("told"), "{}", print_of(&output));
}

/// Lets a kernel read where nothing is, and asks an allocator for memory after that.
fn fault_and_allocate(gpu: &Gpu) {
    let (allocator, kernels) = (gpu.allocator(), Kernels::load());
    let cached = allocator.allocate(GPU, MIB, StreamId::DEFAULT).unwrap();
    kernels.peek(0x1000, cached, StreamId::DEFAULT);
    let lost = |error: &DeviceError| {
        println!("{error}");
        assert_eq!(error.kind, DeviceErrorKind::Lost);
        assert!(error.detail.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    };
    lost(&gpu.device.stream_synchronize(StreamId::DEFAULT).unwrap_err());
    for bytes in [64 * MIB, 1024 * MIB] {
        // Calls on virtual memory do not look at the context, so that memory may be had.
        match allocator.allocate(GPU, bytes, StreamId::DEFAULT) {
            Ok(address) => println!("{bytes} bytes at {address:#x}"),
            Err(Error::Device(error)) => lost(&error),
            Err(error) => panic!("not the device's: {error}"),
        }
    }
    lost(&gpu.device.stream_synchronize(StreamId::DEFAULT).unwrap_err());
}

#[test]
fn a_device_that_was_reset_is_lost() {
    let test = "a_device_that_was_reset_is_lost";
    let Some(gpu) = gpu() else { return };
    if is_child(test) {
        let event = gpu.device.event_create().unwrap();
        // SAFETY: device 0 exists; what lives on it is not used any more, save as refused below.
        let code = unsafe { cudarc::driver::sys::cuDevicePrimaryCtxReset_v2(0) };
        println!("reset: {code:?}");
        let error = gpu.device.memory_info().unwrap_err();
        println!("{error}");
        assert_eq!(error.kind, DeviceErrorKind::Lost);
        assert!(gpu.device.event_query(event).is_err());
        assert!(gpu.device.malloc(MIB).is_err());
        // Whoever opens the devices now starts anew, and what is lost stays lost.
        let again = CudaMachine::open().unwrap();
        let memory = again.devices()[0].malloc(MIB).unwrap();
        assert_eq!(gpu.device.malloc(MIB).unwrap_err().kind, DeviceErrorKind::Lost);
        again.devices()[0].free(memory).unwrap();
        println!("told");
        std::process::exit(0);
    }
    let output = run_child("processes", test);
    assert!(output.status.success(), "{:?}", output.status);
    assert!(print_of(&output).contains("told"));
}

/// Unmaps memory under queued work, which is a fault of whoever does it, and looks at what is told.
fn fault_and_ask(device: &dyn Device) {
    let stream = device.stream_create().unwrap();
    let bytes = 2 * MIB;
    let at = device.reserve(bytes).unwrap();
    let handle = device.create(bytes).unwrap();
    device.map(at, bytes, handle).unwrap();
    device.set_access(at, bytes).unwrap();
    let sleep = || std::thread::sleep(std::time::Duration::from_millis(100));
    device.host_function(stream, Box::new(sleep)).unwrap();
    device.fill_async(at, 1, bytes, stream).unwrap();
    device.unmap(at, bytes).unwrap();
    let error = device.stream_synchronize(stream).unwrap_err();
    println!("{error}");
    assert_eq!(error.kind, DeviceErrorKind::Lost);
    let later = device.malloc(MIB).unwrap_err();
    println!("{later}");
    assert_eq!(later.kind, DeviceErrorKind::Lost);
}
