//! Compares the documents with the code, and tests the commands without real servers.

#![cfg(test)]

mod compose;
mod documents;
mod pages;
mod sources;
mod tools;
mod workflows;

/// Tests of the environment of the operator's command.
mod environment {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Output};

    /// Runs `slipstream check` with a variable `name` that is not UTF-8.
    fn check(name: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slipstream"));
        command.arg("check").env_clear().env(name, OsStr::from_bytes(b"caf\xe9"));
        command.output().unwrap()
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_an_error_only_if_a_command_reads_it() {
        let ours = check("CONSUMER_BASE_URL");
        let stderr = String::from_utf8_lossy(&ours.stderr).into_owned();
        assert_eq!(ours.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("CONSUMER_BASE_URL: is not UTF-8"), "{stderr}");
        let others = check("LESSOPEN");
        let stderr = String::from_utf8_lossy(&others.stderr).into_owned();
        // Only the missing variables are errors.
        assert_eq!(others.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("KAFKA_BROKER: not set") && !stderr.contains("LESSOPEN"), "{stderr}");
    }
}
