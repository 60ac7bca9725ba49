//! Compiles the bridge and the C++ classes into the library, and nothing else.

use std::path::Path;

fn main() -> std::io::Result<()> {
    cxx_build::bridges(["src/ffi/bridge.rs", "src/ffi/records.rs"])
        .files(&cpp_sources()?)
        .include("cpp/include")
        .include("cpp/src")
        .std("c++17")
        .opt_level(2)
        // Exceptions are unwound from tables, and a frame pointer costs every call three
        // instructions.
        .force_frame_pointer(false)
        // Calls inside the library stay inside: nobody replaces its functions one by one.
        .flag_if_supported("-fno-semantic-interposition")
        .flag("-fvisibility=hidden")
        .flag("-fvisibility-inlines-hidden")
        .flag("-ffunction-sections")
        .flag("-fdata-sections")
        .flag("-Wall")
        .flag("-Wextra")
        .define("PLUGALLOC_VERSION", concat!("\"", env!("CARGO_PKG_VERSION"), "\""))
        .compile("plugalloc_cpp");

    // For crates that compile C++ against the same headers.
    println!("cargo:include={}/cpp/include", env!("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed=src/ffi/bridge.rs");
    println!("cargo:rerun-if-changed=src/ffi/records.rs");
    println!("cargo:rerun-if-changed=cpp/include");
    println!("cargo:rerun-if-changed=cpp/src");
    Ok(())
}

/// Every `.cc` file of `cpp/src`, in order of names so that builds repeat.
fn cpp_sources() -> std::io::Result<Vec<String>> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(Path::new("cpp/src"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cc") {
            sources.push(path.display().to_string());
        }
    }
    sources.sort();
    Ok(sources)
}
