//! Builds this workspace's own programs, for tests and benchmarks that run them as their users do.

use std::process::Command;

/// The build of the binaries of `packages`, by the cargo and in the profile that built the caller.
pub fn build(packages: &[&str]) -> Command {
    // Where two checkouts share a target directory, this may have been compiled in the other one.
    let checkout =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--bins"]).current_dir(checkout);
    for package in packages {
        cargo.args(["--package", package]);
    }
    // What cargo tells a program about its own package would make build scripts run again, and most of the
    // dependencies be built anew.
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
