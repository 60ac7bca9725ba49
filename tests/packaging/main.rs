//! The C++ package as a program gets it: installed once, moved, its build tree deleted; then built
//! against by programs that know nothing else. Needs a cmake program, and skips without one.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod dependent;
mod flags;
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The package in its moved prefix.
struct Package {
    prefix: PathBuf,
    work: PathBuf,
}

fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo put this test, so that cmake's call of cargo finds what is built already.
fn cargo_target() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    folder.expect("the folder is inside the target folder").to_owned()
}

/// cmake through the crate of that name, which was made for build scripts and so wants to be told
/// what a build script knows.
fn configured(project: &Path, out: &Path) -> cmake::Config {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut config = cmake::Config::new(project);
    config
        .target(&host)
        .host(&host)
        .out_dir(out)
        .profile("Release")
        .no_default_flags(true)
        .define("CMAKE_CXX_FLAGS", flags::marking())
        .env("CMAKE_BUILD_PARALLEL_LEVEL", "2");
    config
}

fn run(program: &mut Command) -> String {
    let output = program.output().unwrap_or_else(|error| panic!("{program:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}: {}\n{text}\n{errors}", output.status);
    text
}

fn install() -> Package {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packaging");
    let _ = std::fs::remove_dir_all(&work);
    let (made, moved) = (work.join("made"), work.join("moved"));
    std::fs::create_dir_all(&made).expect("a folder for the build");
    configured(source(), &made)
        .define("PLUGALLOC_STATIC", "ON")
        .define("PLUGALLOC_BUILD_TESTS", "OFF")
        .define("PLUGALLOC_CARGO_TARGET_DIR", cargo_target())
        .build();
    std::fs::remove_dir_all(made.join("build")).expect("the build tree is there");
    std::fs::rename(&made, &moved).expect("the prefix can be moved");
    Package { prefix: moved, work }
}

/// The package, installed by whichever test comes first; `None`, with the reason printed, without
/// cmake.
fn package() -> Option<&'static Package> {
    static PACKAGE: OnceLock<Option<Package>> = OnceLock::new();
    let package = PACKAGE.get_or_init(|| {
        let found = Command::new("cmake").arg("--version").output().is_ok();
        found.then(install)
    });
    if package.is_none() {
        println!("skipped: there is no cmake program");
    }
    package.as_ref()
}

fn library(package: &Package) -> PathBuf {
    let folders = ["lib", "lib64"].into_iter().map(|name| package.prefix.join(name));
    let multiarch = package.prefix.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
    let mut files = folders.chain([multiarch]).map(|folder| folder.join("libplugalloc.so"));
    files.find(|file| file.exists()).expect("the library is installed")
}

#[test]
fn a_consumer_finds_the_moved_package() {
    let Some(package) = package() else { return };
    let out = package.work.join("consumer");
    std::fs::create_dir_all(&out).expect("a folder");
    configured(&source().join("tests/consumer"), &out)
        .define("CMAKE_PREFIX_PATH", &package.prefix)
        .build_target("all")
        .build();
    for program in ["consumer", "consumer_static"] {
        let text = run(&mut Command::new(out.join("build").join(program)));
        assert!(text.contains("CUDA out of memory"), "{text}");
    }
}

#[test]
fn a_consumer_builds_the_package_as_a_part_of_itself() {
    let Some(package) = package() else { return };
    let out = package.work.join("subdirectory");
    std::fs::create_dir_all(&out).expect("a folder");
    configured(&source().join("tests/consumer/subdirectory"), &out)
        .define("PLUGALLOC_SOURCE_DIR", source())
        .define("PLUGALLOC_CARGO_TARGET_DIR", cargo_target())
        .build_target("consumer")
        .build();
    run(&mut Command::new(out.join("build/consumer")));
}

#[test]
fn pkg_config_finds_the_moved_package() {
    let Some(package) = package() else { return };
    let library = library(package);
    let folder = library.parent().expect("it lies in a folder");
    let mut flags = Command::new("pkg-config");
    flags.env("PKG_CONFIG_PATH", folder.join("pkgconfig"));
    flags.args(["--cflags", "--libs", "plugalloc"]);
    if Command::new("pkg-config").arg("--version").output().is_err() {
        println!("skipped: there is no pkg-config program");
        return;
    }
    let flags = run(&mut flags);
    let program = package.work.join("with_pkg_config");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-o"]).arg(&program);
    compiler.arg(source().join("tests/consumer/main.cc"));
    compiler.args(flags.split_whitespace());
    run(compiler.arg(format!("-Wl,-rpath,{}", folder.display())));
    run(&mut Command::new(program));
}

#[test]
fn an_older_standard_is_told_at_the_first_header() {
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++14", "-fsyntax-only", "-I"]).arg(source().join("cpp/include"));
    compiler.arg(source().join("tests/consumer/main.cc"));
    let output = compiler.output().expect("a compiler");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("plugalloc needs C++17"), "{errors}");
}

#[test]
fn the_library_exports_only_its_own_symbols() {
    let Some(package) = package() else { return };
    let script = source().join("tests/cpp/check_symbols.sh");
    run(Command::new(script).arg(library(package)));
}

#[test]
fn a_program_is_only_loaded_with_a_version_that_promises_the_same() {
    let Some(package) = package() else { return };
    // What the loader looks for is the name in this link.
    let name = match env!("CARGO_PKG_VERSION_MAJOR") {
        "0" => concat!("libplugalloc.so.0.", env!("CARGO_PKG_VERSION_MINOR")),
        major => panic!("libplugalloc.so.{major} from here on"),
    };
    assert!(library(package).with_file_name(name).exists(), "{name}");
}

#[test]
fn installed_headers_show_neither_cxx_nor_the_place_where_they_were_built() {
    let Some(package) = package() else { return };
    let mut folders = vec![package.prefix.clone()];
    let mut texts = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                assert!(!text.contains("rust/cxx.h"), "{}", path.display());
                assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{}", path.display());
                assert!(!text.contains(env!("CARGO_TARGET_TMPDIR")), "{}", path.display());
                texts += 1;
            }
        }
    }
    assert!(texts > 10, "headers and configuration are installed");
}
