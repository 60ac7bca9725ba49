//! The example server, built from the installed package: it serves its load with every allocator
//! that a machine without a GPU has, and checks its own results. Its calls of the CUDA driver are
//! checked against a stand-in.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::{configured, package, run, source};

/// The program and a folder for tests, made by whichever test comes first; `None` without cmake.
struct Built {
    server: PathBuf,
    work: PathBuf,
}

fn built() -> Option<&'static Built> {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    let build = || {
        let package = package()?;
        let work = package.work.join("server");
        std::fs::create_dir_all(&work).expect("a folder");
        configured(&source().join("examples/cpp_server"), &work)
            .define("CMAKE_PREFIX_PATH", &package.prefix)
            .build_target("all")
            .build();
        Some(Built { server: work.join("build/cpp_server"), work })
    };
    BUILT.get_or_init(build).as_ref()
}

/// A load that takes a moment, also on a busy machine.
const SMALL: &str =
    "--requests 60 --warmup 10 --workers 3 --hidden 256 --longest 128 --sessions 16";

/// What the server prints for a small load.
fn served(server: &Path, library_path: Option<&Path>, options: &[&str]) -> Output {
    let mut command = Command::new(server);
    command.arg("--json").args(SMALL.split(' ')).args(options);
    if let Some(folder) = library_path {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.output().expect("the server starts")
}

/// The number of a key in an object of one line.
fn number(object: &str, key: &str) -> f64 {
    let name = format!("\"{key}\": ");
    let at = object.find(&name).unwrap_or_else(|| panic!("no {key} in {object}")) + name.len();
    let rest = &object[at..];
    let end = rest.find([',', '}']).expect("the object ends");
    rest[..end].parse().unwrap_or_else(|_| panic!("{key} is no number in {object}"))
}

/// That every request was served and right, and that the numbers fit each other.
#[track_caller]
fn assert_served(output: &Output, allocator: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let object = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {object}\n{errors}", output.status);
    assert!(object.contains(&format!("\"allocator\": \"{allocator}\"")), "{object}");
    assert_eq!(number(&object, "requests"), 180.0, "{object}");
    assert_eq!(number(&object, "wrong"), 0.0, "{object}");
    assert_eq!(number(&object, "refused"), 0.0, "{object}");
    assert!(number(&object, "allocations") > 180.0 * 10.0, "{object}");
    assert!(number(&object, "reserved_peak") >= number(&object, "live_peak"), "{object}");
    let least = if number(&object, "sessions") > 0.0 { 1e6 } else { 1e5 };
    assert!(number(&object, "live_peak") > least, "{object}");
    let order = ["p50_us", "p90_us", "p99_us", "max_us"].map(|key| number(&object, key));
    assert!(order.is_sorted() && order[0] > 0.0, "{object}");
}

#[test]
fn the_server_serves_on_the_simulated_device() {
    let Some(built) = built() else { return };
    for [shapes, sessions] in [["random", "0"], ["random", "16"], ["fixed", "0"], ["fixed", "16"]] {
        for allocator in ["plugalloc", "cudaMalloc"] {
            let mut options = vec!["--device", "sim", "--allocator", allocator];
            options.extend(["--shapes", shapes, "--sessions", sessions]);
            assert_served(&served(&built.server, None, &options), allocator);
        }
    }
}

#[test]
fn the_server_serves_on_segments_too() {
    let Some(built) = built() else { return };
    let options = ["--device", "sim", "--conf", "expandable_segments:False"];
    assert_served(&served(&built.server, None, &options), "plugalloc");
}

#[test]
fn what_is_missing_is_said() {
    let Some(built) = built() else { return };
    let refused = |options: &[&str], expected: &str, path: Option<&Path>| {
        let output = served(&built.server, path, options);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{options:?}");
        assert!(errors.contains(expected), "{options:?}: {errors}");
    };
    refused(&["--device", "sim", "--allocator", "cudaMallocAsync"], "memory pools", None);
    refused(&["--allocator", "malloc"], "--allocator", None);
    refused(&["--hidden", "100"], "from 256", None);
    refused(&["--workers"], "needs a value", None);
    // A file that is no library stands in for a machine without a driver.
    let folder = built.work.join("no_driver");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("libcuda.so.1"), "").expect("a file");
    refused(&["--device", "cuda"], "libcuda.so.1", Some(&folder));
}

/// Arguments of kernels, order between streams and frees in stream order, of both allocators of the
/// driver. The kernels themselves need a GPU.
#[test]
fn the_server_calls_the_driver_rightly() {
    let Some(built) = built() else { return };
    let folder = built.work.join("stand_in");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-o"]);
    compiler.arg(folder.join("libcuda.so.1"));
    run(compiler.arg(source().join("tests/cpp/stand_in_driver.cc")));
    for shapes in ["random", "fixed"] {
        for allocator in ["cudaMalloc", "cudaMallocAsync"] {
            let options = ["--device", "cuda", "--allocator", allocator, "--shapes", shapes];
            let output = served(&built.server, Some(&folder), &options);
            assert_served(&output, allocator);
            assert!(String::from_utf8_lossy(&output.stdout).contains("\"stand-in\""));
        }
    }
}
