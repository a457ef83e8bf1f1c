//! Finds out what this machine offers to tests, once for the whole workspace.
//!
//! libtest cannot skip a test at run time, so the decision is made when the tests are compiled. For
//! each requirement that is not met this script sets the variable of that requirement to the
//! reason. It runs again when one of the variables that it reads changes.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The oldest Java release that runs Apache Kafka.
const MIN_JAVA_RELEASE: u32 = 17;
/// The hard limit of open files that a test of 10,000 connections needs.
const MIN_OPEN_FILES: u64 = 12_500;

fn main() {
    for name in ["PATH", "SLIPSTREAM_BROKER", "SLIPSTREAM_TEST_MONGODB_URI"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let requirements = [
        ("APACHE_KAFKA", apache_kafka()),
        ("PIP", pip()),
        ("OWN_MONGODB", own_mongodb()),
        ("OPEN_FILES", open_files()),
        ("USER_NAMESPACES", user_namespaces()),
    ];
    for (name, missing) in requirements {
        if let Some(reason) = missing {
            println!("cargo::rustc-env=TESTKIT_MISSING_{name}={reason}");
        }
    }
}

/// The same rule as `devservers::BrokerKind::from_env`: the variable decides, else Java and Maven.
fn apache_kafka() -> Option<String> {
    match env::var_os("SLIPSTREAM_BROKER").as_deref().and_then(OsStr::to_str) {
        Some("tansu") => Some("needs Apache Kafka: SLIPSTREAM_BROKER is tansu".into()),
        _ if !on_path("mvn") => Some("needs Apache Kafka: mvn is not on PATH".into()),
        _ if java_release().is_none_or(|release| release < MIN_JAVA_RELEASE) => {
            Some("needs Apache Kafka: Java 17 or later is not on PATH".into())
        }
        _ => None,
    }
}

fn pip() -> Option<String> {
    let found = succeeds(Command::new("python3").args(["-m", "pip", "--version"]));
    (!found).then(|| "needs python3 with pip on PATH".into())
}

/// A given MongoDB server is not the test's own: a test must not stop, pause or configure it.
fn own_mongodb() -> Option<String> {
    let given = env::var_os("SLIPSTREAM_TEST_MONGODB_URI").is_some_and(|uri| !uri.is_empty());
    given.then(|| "needs its own MongoDB server: SLIPSTREAM_TEST_MONGODB_URI names a given one".into())
}

fn open_files() -> Option<String> {
    let output = Command::new("sh").args(["-c", "ulimit -Hn"]).stdin(Stdio::null()).output().ok()?;
    // "unlimited" is no number, and no obstacle.
    let limit: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    let reason =
        format!("needs a hard limit of {MIN_OPEN_FILES} open files, here it is {limit} (ulimit -Hn)");
    (limit < MIN_OPEN_FILES).then_some(reason)
}

fn user_namespaces() -> Option<String> {
    let mount = "mount -t tmpfs -o size=1m none /mnt";
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount]);
    (!succeeds(&mut unshare)).then(|| "needs a user namespace that may mount a tmpfs (unshare)".into())
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder: PathBuf| folder.join(program)).any(|file| file.is_file())
}

/// `openjdk version "17.0.15"` is 17, `java version "1.8.0_402"` is 8.
fn java_release() -> Option<u32> {
    let output = Command::new("java").arg("-version").stdin(Stdio::null()).output().ok()?;
    let version = String::from_utf8_lossy(&output.stderr).into_owned();
    let quoted = version.split('"').nth(1)?;
    let quoted = quoted.strip_prefix("1.").unwrap_or(quoted);
    quoted.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
