//! Builds this workspace's own programs, for tests and benchmarks that run them as their users do.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A build of the binaries of `packages` of the root workspace, by the cargo and in the profile
/// that built the caller.
pub fn build(packages: &[&str]) -> Command {
    build_in(&workspace(), packages)
}

/// A build of the binaries of `packages` of the workspace at `folder`, as [`build`].
pub fn build_in(folder: &Path, packages: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--bins"]).current_dir(folder);
    for package in packages {
        cargo.args(["--package", package]);
    }
    // Cargo's variables about the caller's package would make build scripts run again and rebuild
    // most dependencies.
    for (name, _) in std::env::vars_os() {
        let of_the_caller =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(of_the_caller) {
            cargo.env_remove(name);
        }
    }
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo
}

/// The root workspace. The run-time variable comes first: if two checkouts share a target
/// directory, this crate may have been compiled in the other one.
fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let package = PathBuf::from(package);
    let is_root = |folder: &&Path| folder.join("crates/devservers/Cargo.toml").is_file();
    package.ancestors().find(is_root).unwrap_or(&package).to_owned()
}
