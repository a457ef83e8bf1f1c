//! The binary: exit codes, summary line, signals, configuration.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::until;
use crate::harness::{Response, ScriptedProducer};

/// The binary with only `variables` as its environment.
fn poller(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_poller"));
    command.env_clear().envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits on a blocking thread, so that the server of the test keeps running.
async fn output(child: Child) -> Output {
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    tokio::time::timeout(Duration::from_secs(15), waiting).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_run_ends_with_code_0_and_one_summary_line() {
    let producer =
        ScriptedProducer::start([Response::accepted(), Response::rejected(502), Response::accepted()]).await;
    let url = format!("http://{}", producer.address);
    let variables = [("PRODUCER_BASE_URL", url.as_str()), ("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "2")];
    let child = poller(&variables).env("LISTEN_ADDR", "127.0.0.1:0").spawn().unwrap();
    let output = output(child).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let summaries: Vec<&str> = text.lines().filter(|line| line.contains("polling ended")).collect();
    let [summary] = summaries.as_slice() else { panic!("one summary: {text}") };
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!(count("failed"), 1);
    assert_eq!(count("sent"), producer.calls().len() as u64 - 1);
    assert_eq!(count("sent") + count("failed") + count("skipped"), 20, "every tick: {summary}");
}

#[tokio::test]
async fn calls_without_one_success_end_with_code_1() {
    let producer = ScriptedProducer::start([Response::rejected(503).retry_after(1)]).await;
    let url = format!("http://{}", producer.address);
    let variables = [("PRODUCER_BASE_URL", url.as_str()), ("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0.5")];
    let child = poller(&variables).env("LISTEN_ADDR", "127.0.0.1:0").spawn().unwrap();
    assert_eq!(output(child).await.status.code(), Some(1));
}

#[tokio::test]
async fn sigterm_is_a_clean_end_and_no_log_line_shows_the_key() {
    let mut file = std::env::temp_dir();
    file.push(format!("poller-key-{}", std::process::id()));
    std::fs::File::create(&file).unwrap().write_all(b"s3cret-key\n").unwrap();
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let url = format!("http://{}", producer.address);
    let variables = [("PRODUCER_BASE_URL", url.as_str()), ("DURATION_SEC", "0"), ("RUST_LOG", "trace")];
    let mut command = poller(&variables);
    command.env("LISTEN_ADDR", "127.0.0.1:0").env("PRODUCER_API_KEY_FILE", &file);
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let output = tokio::spawn(output(child));
    until("a call", || !producer.calls().is_empty()).await;
    std::fs::remove_file(&file).unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(producer.calls()[0].authorization.as_deref(), Some("Bearer s3cret-key"));
    let text = format!("{output:?}");
    assert!(text.contains("polling ended") && !text.contains("s3cret-key"), "{text}");
}

#[tokio::test]
async fn a_wrong_configuration_names_every_variable_and_exits_with_2() {
    let child = poller(&[
        ("PRODUCER_BASE_URL", ""),
        ("INTERVAL_SEC", "0"),
        ("DURATION_SEC", "-1"),
        ("CALL_TIMEOUT_SEC", "soon"),
        ("PRODUCER_API_KEY", "two words"),
        ("LISTEN_ADDR", "8082"),
        ("LOG_FORMAT", "yaml"),
    ])
    .spawn()
    .unwrap();
    let output = output(child).await;
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    for name in [
        "PRODUCER_BASE_URL",
        "INTERVAL_SEC",
        "DURATION_SEC",
        "CALL_TIMEOUT_SEC",
        "PRODUCER_API_KEY",
        "LISTEN_ADDR",
        "LOG_FORMAT",
    ] {
        assert!(text.contains(&format!("\n  {name}: ")), "{name} in {text}");
    }
    assert!(!text.contains("two words"), "{text}");
}

#[tokio::test]
async fn a_password_in_the_url_is_rejected_and_not_shown() {
    for (url, remedy) in
        [("http://u:hunter2@h:1", "PRODUCER_API_KEY"), ("htp://u:hunter2@h:1", "is not a URL")]
    {
        let output = output(poller(&[("PRODUCER_BASE_URL", url)]).spawn().unwrap()).await;
        assert_eq!(output.status.code(), Some(2));
        let text = format!("{output:?}");
        assert!(text.contains(remedy) && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_named_and_exits_with_1() {
    let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let variables = [("PRODUCER_BASE_URL", "http://127.0.0.1:1"), ("LISTEN_ADDR", address.as_str())];
    let output = output(poller(&variables).spawn().unwrap()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&address));
}
