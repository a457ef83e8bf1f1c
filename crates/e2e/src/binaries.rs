//! The binaries under test, built once by the same cargo and in the same profile as the test itself.

use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = devservers::binaries::build(&["producer", "consumer", "poller", "slipstream"]);
    assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
    // target/PROFILE/deps/it-HASH -> target/PROFILE
    let test = std::env::current_exe().expect("the test has a path");
    test.ancestors().nth(2).expect("it lies in deps").to_owned()
});

/// Where the binary `name` is.
pub fn path(name: &str) -> PathBuf {
    FOLDER.join(name)
}
