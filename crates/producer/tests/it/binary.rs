//! The binary: its exit codes and what it says.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// The binary, with nothing but this in its environment.
pub fn producer(environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command.env_clear().envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The lines that the binary writes.
pub type Lines = tokio::io::Lines<BufReader<tokio::process::ChildStdout>>;

/// Reads on to the line with this message.
pub async fn said(lines: &mut Lines, message: &str) -> Value {
    let find = async {
        loop {
            let line = lines.next_line().await.unwrap().expect(message);
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == message {
                return line;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), find).await.expect(message)
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_code_2_and_every_wrong_variable() {
    let wrong = [
        ("KAFKA_BROKER", ""),
        ("MAX_PAYLOAD_BYTES", "abc"),
        ("KAFKA_PROPERTIES", "sasl.password=hunter2;no.such=hunter2"),
    ];
    let output = producer(&wrong).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["KAFKA_BROKER: not set", "MAX_PAYLOAD_BYTES: \"abc\"", "KAFKA_PROPERTIES: "] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn what_is_not_utf_8_is_a_fault_in_its_own_variables_and_nothing_in_those_of_others() {
    let not_text = OsStr::from_bytes(b"caf\xe9");
    let check = |name: &str, argument: &OsStr| {
        let mut command = producer(&[("KAFKA_BROKER", "k:9092")]);
        command.env(name, not_text).arg(argument);
        command
    };
    let others = check("LESSOPEN", "--check-config".as_ref()).output().await.unwrap();
    assert_eq!(others.status.code(), Some(0), "{others:?}");
    for name in ["KAFKA_BROKER", "API_KEYS_FILE", "RUST_LOG"] {
        let output = check(name, "--check-config".as_ref()).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches(name).count(), 1, "{said}");
        assert!(said.contains(&format!("{name}: is not UTF-8")), "{said}");
    }
    let argument = check("LESSOPEN", not_text).output().await.unwrap();
    assert_eq!(argument.status.code(), Some(2), "{argument:?}");
}

#[tokio::test]
async fn properties_that_do_not_fit_are_found_by_check_config() {
    let wrong = [("KAFKA_BROKER", "k:9092"), ("KAFKA_PROPERTIES", "linger.ms=20000")];
    let output = producer(&wrong).arg("--check-config").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("KAFKA_PROPERTIES: ") && said.contains("linger.ms"), "{said}");
}

#[tokio::test]
async fn sigterm_and_sigint_end_it_with_code_0_although_the_broker_is_away() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut child =
            producer(&[("KAFKA_BROKER", "127.0.0.1:9"), ("LISTEN_ADDR", "127.0.0.1:0")]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        said(&mut lines, "listening").await;
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let began = Instant::now();
        kill(Pid::from_raw(pid), signal).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}
