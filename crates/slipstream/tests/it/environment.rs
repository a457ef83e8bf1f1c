//! The environment of the operator's command.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

/// `slipstream check` where `name` has a value that is not UTF-8.
fn check(name: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipstream"));
    command.arg("check").env_clear().env(name, OsStr::from_bytes(b"caf\xe9"));
    command.output().unwrap()
}

#[test]
fn a_variable_that_is_not_utf_8_is_a_fault_if_it_is_ours_and_nothing_if_it_is_not() {
    let ours = check("CONSUMER_BASE_URL");
    let said = String::from_utf8_lossy(&ours.stderr).into_owned();
    assert_eq!(ours.status.code(), Some(2), "{said}");
    assert!(said.contains("CONSUMER_BASE_URL: is not UTF-8"), "{said}");
    let others = check("LESSOPEN");
    let said = String::from_utf8_lossy(&others.stderr).into_owned();
    // What is missing is all that is wrong.
    assert_eq!(others.status.code(), Some(2), "{said}");
    assert!(said.contains("KAFKA_BROKER: not set") && !said.contains("LESSOPEN"), "{said}");
}
