//! What a C++ project says of compiler, flags and target reaches cargo, and with it each C++ file.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{library, package, source};

/// Flags of a C++ project that leave a mark in all that is compiled with them.
pub(crate) fn marking() -> String {
    let header = source().join("tests/packaging/flag.h");
    format!("-DA_FLAG_OF_THE_PROJECT='a value' -include \"{}\"", header.display())
}

/// A folder of its own with a program in the place of cargo, which writes down how it was called.
struct Stage(PathBuf);

const IN_THE_PLACE_OF_CARGO: &str = r#"#!/bin/sh
{ env | grep -E '^(CXX|AR|CC_)'; echo "arguments: $*"; } | sort > "$CARGO_TARGET_DIR/called"
for folder in "$CARGO_TARGET_DIR/release" "$CARGO_TARGET_DIR/aarch64-unknown-linux-gnu/release"; do
  mkdir -p "$folder" && : > "$folder/libplugalloc.a"
done
"#;

impl Stage {
    fn new(name: &str) -> Option<Stage> {
        if Command::new("cmake").arg("--version").output().is_err() {
            println!("skipped: there is no cmake program");
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("cargo")).unwrap();
        std::fs::write(folder.join("program"), IN_THE_PLACE_OF_CARGO).unwrap();
        let status = Command::new("chmod").arg("+x").arg(folder.join("program")).status();
        assert!(status.unwrap().success());
        Some(Stage(folder))
    }

    fn configure(&self, definitions: &[&str]) -> Output {
        let mut cmake = Command::new("cmake");
        cmake.arg("-S").arg(source()).arg("-B").arg(self.0.join("build"));
        cmake.arg("-DPLUGALLOC_BUILD_TESTS=OFF");
        cmake.arg(format!("-DPLUGALLOC_CARGO={}", self.0.join("program").display()));
        cmake.arg(format!("-DPLUGALLOC_CARGO_TARGET_DIR={}", self.0.join("cargo").display()));
        cmake.args(definitions).output().unwrap()
    }

    /// How cargo was called, a line each.
    fn called(&self, definitions: &[&str]) -> Vec<String> {
        let configured = self.configure(definitions);
        let errors = String::from_utf8_lossy(&configured.stderr);
        assert!(configured.status.success(), "{errors}");
        let mut build = Command::new("cmake");
        build.arg("--build").arg(self.0.join("build")).args(["--target", "plugalloc_cargo"]);
        super::run(build.env("CXXFLAGS", "-DOF_THE_ENVIRONMENT"));
        let called = std::fs::read_to_string(self.0.join("cargo/called")).unwrap();
        called.lines().map(str::to_owned).collect()
    }
}

fn has(lines: &[String], start: &str, part: &str) -> bool {
    lines.iter().any(|line| line.starts_with(start) && line.contains(part))
}

#[test]
fn flags_of_the_project_arrive_in_each_cpp_file() {
    let Some(package) = package() else { return };
    let archive = library(package).with_extension("a");
    let bytes = std::fs::read(archive).unwrap();
    let wanted = b"marked by a flag";
    let times = bytes.windows(wanted.len()).filter(|window| window == wanted).count();
    let sources = std::fs::read_dir(source().join("cpp/src")).unwrap().flatten();
    let sources = sources.filter(|entry| entry.path().extension().is_some_and(|e| e == "cc"));
    let sources = sources.count();
    assert!(times >= sources, "the mark is in {times} objects of {sources}");
}

#[test]
fn compiler_and_flags_reach_cargo_and_changed_ones_again() {
    let Some(stage) = Stage::new("flags") else { return };
    let called = stage.called(&["-DCMAKE_CXX_FLAGS=-DONE", "-DCMAKE_CXX_COMPILER=c++"]);
    assert!(has(&called, "CXX=/", "c++"), "{called:?}");
    assert!(has(&called, "CXXFLAGS=-DONE", ""), "{called:?}");
    assert!(!has(&called, "arguments:", "--target"), "{called:?}");
    let called = stage.called(&["-DCMAKE_CXX_FLAGS=-DTWO", "-DCMAKE_SYSROOT=/"]);
    assert!(has(&called, "CXXFLAGS=-DTWO \"--sysroot=/\"", ""), "{called:?}");
    let called = stage.called(&["-DCMAKE_CXX_FLAGS=", "-DCMAKE_SYSROOT="]);
    assert!(!has(&called, "CXXFLAGS", ""), "those of the environment are older: {called:?}");
}

#[test]
fn a_cross_build_tells_cargo_the_target() {
    let Some(stage) = Stage::new("cross") else { return };
    let cross = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"];
    let refused = stage.configure(&cross);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(errors.contains("PLUGALLOC_RUST_TARGET"), "{errors}");
    assert!(errors.contains("aarch64-unknown-linux-gnu"), "{errors}");

    let target = "-DPLUGALLOC_RUST_TARGET=aarch64-unknown-linux-gnu";
    let called = stage.called(&[&cross[..], &[target, "-DCMAKE_CXX_FLAGS=-DONE"]].concat());
    assert!(has(&called, "arguments:", "--target aarch64-unknown-linux-gnu"), "{called:?}");
    assert!(has(&called, "CXX_aarch64_unknown_linux_gnu=/", ""), "{called:?}");
    assert!(has(&called, "CXXFLAGS_aarch64_unknown_linux_gnu=-DONE", ""), "{called:?}");
    assert!(!has(&called, "CXX=", ""), "programs of the build run here: {called:?}");
}

#[test]
fn a_missing_cargo_is_told_when_the_build_is_configured() {
    let Some(stage) = Stage::new("no_cargo") else { return };
    let refused = stage.configure(&["-DPLUGALLOC_CARGO=/nowhere/cargo"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{errors}");
    let words = ["built with cargo", "'/nowhere/cargo'", "install Rust 1.88"];
    assert!(words.iter().all(|word| errors.contains(word)), "{errors}");
}

#[test]
fn other_systems_are_refused_with_a_reason() {
    let Some(stage) = Stage::new("other_system") else { return };
    let refused = stage.configure(&["-DCMAKE_SYSTEM_NAME=FreeBSD"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && errors.contains("for Linux alone"), "{errors}");
}
