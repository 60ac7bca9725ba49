//! The program of the README, as a crate that depends on this one in the way that stands there.

use std::process::Command;

use super::{cargo_target, run, source};

/// The block of code of this language under a heading of the README.
fn block(heading: &str, language: &str) -> String {
    let readme = std::fs::read_to_string(source().join("README.md")).unwrap();
    let under = readme.split(&format!("## {heading}\n")).nth(1).unwrap();
    let inside = under.split(&format!("```{language}\n")).nth(1).unwrap();
    inside.split("```").next().unwrap().to_owned()
}

#[test]
fn the_program_of_the_readme_builds_against_the_crate_and_runs() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("dependent");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("src")).unwrap();
    let dependency = block("Use it from Rust", "toml");
    let here = format!("path = \"{}\"", source().display());
    let dependency = dependency.replace("path = \"../plugalloc\"", &here);
    assert!(dependency.contains(&here), "{dependency}");
    let package = "[package]\nname = \"dependent\"\nversion = \"0.0.0\"\nedition = \"2024\"\n";
    std::fs::write(folder.join("Cargo.toml"), format!("{package}\n{dependency}\n[workspace]\n"))
        .unwrap();
    std::fs::write(folder.join("src/main.rs"), block("Use it from Rust", "rust")).unwrap();
    // The versions that are there already.
    std::fs::copy(source().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--offline"]).current_dir(&folder);
    cargo.env("CARGO_TARGET_DIR", cargo_target()).env_remove("PLUGALLOC_CONF");
    let text = run(&mut cargo);
    assert!(text.starts_with("67108864 bytes at 0x"), "{text}");
}
