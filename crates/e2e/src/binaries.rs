//! The binaries under test, built once by the same cargo and in the same profile as the test itself.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    for package in ["producer", "consumer", "poller", "slipstream"] {
        build.args(["--package", package, "--bin", package]);
    }
    // What cargo tells the test about its own package would make build scripts run again, and most of the
    // dependencies be built anew.
    for (name, _) in std::env::vars_os() {
        let of_the_test = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(of_the_test) {
            build.env_remove(name);
        }
    }
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
    // target/PROFILE/deps/it-HASH -> target/PROFILE
    let test = std::env::current_exe().expect("the test has a path");
    test.ancestors().nth(2).expect("it lies in deps").to_owned()
});

/// Where the binary `name` is.
pub fn path(name: &str) -> PathBuf {
    FOLDER.join(name)
}
