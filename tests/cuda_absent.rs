//! What users are told where CUDA cannot work. Drivers that lack something are made here, by the C
//! compiler, and shown to a child process; nothing of this needs a GPU.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::path::{Path, PathBuf};
use std::process::Command;

use plugalloc::device::cuda::{CudaMachine, open_all};
use plugalloc::error::DeviceErrorKind;

/// Set in the environment of a child that tells how it fares.
const CHILD: &str = "PLUGALLOC_ABSENT_CHILD";

/// A driver that has only the first function that is looked up.
const TRUNCATED: &str = "int cuInit(unsigned flags) { return 0; }";

/// Makes a driver library out of C source, in a folder of its own.
fn make_driver(name: &str, source: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("driver.c");
    std::fs::write(&file, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join("libcuda.so")).arg(file);
    match compiler.status() {
        Ok(status) if status.success() => Some(folder),
        problem => {
            println!("skipped: no C compiler here ({problem:?})");
            None
        }
    }
}

/// A whole driver, in name: `cuInit` answers `code`, everything else fails.
fn source_of_driver(code: u32) -> String {
    let table = include_str!("../src/device/cuda/driver.rs");
    let symbols = table.lines().filter_map(|line| line.split(" = \"").nth(1)?.split('"').next());
    let others = symbols.filter(|symbol| *symbol != "cuInit" && !symbol.starts_with("cuGetError"));
    let mut source: String =
        others.map(|symbol| format!("int {symbol}() {{ return 999; }}\n")).collect();
    source += &format!("int cuInit(unsigned flags) {{ return {code}; }}\n");
    source += "int cuGetErrorName(int code, const char** out)\n\
               { *out = \"CUDA_ERROR_NO_DEVICE\"; return code == 100 ? 0 : 1; }\n\
               int cuGetErrorString(int code, const char** out)\n\
               { *out = \"no CUDA-capable device\"; return code == 100 ? 0 : 1; }\n";
    source
}

/// What a process is told that finds the driver in `folder`.
fn told(folder: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tells_how_it_fares", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The child's part; nothing where this is no child.
#[test]
fn tells_how_it_fares() {
    if std::env::var_os(CHILD).is_some() {
        let error = CudaMachine::open().unwrap_err();
        println!("told: {:?}: {error}", error.kind);
    }
}

#[test]
fn opening_gives_devices_or_says_what_was_looked_for() {
    match CudaMachine::open() {
        Ok(machine) => assert!(!machine.devices().is_empty()),
        Err(error) => {
            assert_eq!(error.kind, DeviceErrorKind::NoDevice, "{error}");
            assert!(error.detail.contains("CUDA"), "{error}");
            assert!(open_all().is_err());
        }
    }
}

#[test]
fn a_driver_without_a_function_is_too_old() {
    let Some(folder) = make_driver("truncated", TRUNCATED) else { return };
    let told = told(&folder);
    assert!(told.contains("NoDevice") && told.contains("too old"), "{told}");
    assert!(told.contains("cuDriverGetVersion"), "{told}");
}

#[test]
fn a_driver_without_a_device_is_no_device() {
    let Some(folder) = make_driver("empty", &source_of_driver(100)) else { return };
    let told = told(&folder);
    assert!(told.contains("NoDevice") && told.contains("CUDA_ERROR_NO_DEVICE"), "{told}");
}

#[test]
fn an_answer_that_nobody_knows_is_shown_as_it_is() {
    let Some(folder) = make_driver("strange", &source_of_driver(54321)) else { return };
    let told = told(&folder);
    assert!(told.contains("Other") && told.contains("54321"), "{told}");
}
