//! The binaries under test. Each test binary builds them once, by the same cargo and in its own
//! profile.

use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = devservers::binaries::build(&["producer", "consumer", "poller", "slipstream"]);
    assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
    // target/PROFILE/deps/it-HASH -> target/PROFILE
    let test = std::env::current_exe().expect("the path of the test binary");
    test.ancestors().nth(2).expect("the folder of the profile").to_owned()
});

/// The path of the binary `name`.
pub fn path(name: &str) -> PathBuf {
    FOLDER.join(name)
}
