//! The binary: exit codes and messages.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::application::Cluster;

/// A command that runs the binary with only these variables.
pub fn producer(environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command.env_clear().envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The log lines of the binary.
pub type Lines = tokio::io::Lines<BufReader<tokio::process::ChildStdout>>;

/// Reads until the line with this message.
pub async fn read_until(lines: &mut Lines, message: &str) -> Value {
    loop {
        let line = next(lines).await;
        if line["message"] == message {
            return line;
        }
    }
}

async fn next(lines: &mut Lines) -> Value {
    let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
    serde_json::from_str(&line.expect("a line in time").unwrap().expect("a line")).unwrap()
}

#[tokio::test]
async fn an_invalid_configuration_exits_with_2_and_names_every_variable() {
    let wrong = [
        ("KAFKA_BROKER", ""),
        ("MAX_PAYLOAD_BYTES", "abc"),
        ("KAFKA_PROPERTIES", "sasl.password=hunter2;no.such=hunter2"),
    ];
    let output = producer(&wrong).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in ["KAFKA_BROKER: not set", "MAX_PAYLOAD_BYTES: \"abc\"", "KAFKA_PROPERTIES: "] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    assert!(!stderr.contains("hunter2"), "{stderr}");
}

#[tokio::test]
async fn a_variable_that_is_not_utf_8_is_an_error_only_if_it_is_declared() {
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
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.matches(name).count(), 1, "{stderr}");
        assert!(stderr.contains(&format!("{name}: is not UTF-8")), "{stderr}");
    }
    let argument = check("LESSOPEN", not_text).output().await.unwrap();
    assert_eq!(argument.status.code(), Some(2), "{argument:?}");
}

#[tokio::test]
async fn check_config_finds_properties_that_contradict_each_other() {
    let wrong = [("KAFKA_BROKER", "k:9092"), ("KAFKA_PROPERTIES", "linger.ms=20000")];
    let output = producer(&wrong).arg("--check-config").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("KAFKA_PROPERTIES: ") && stderr.contains("linger.ms"), "{stderr}");
}

#[tokio::test]
async fn sigterm_and_sigint_exit_with_0_while_kafka_is_unavailable() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut child =
            producer(&[("KAFKA_BROKER", "127.0.0.1:9"), ("LISTEN_ADDR", "127.0.0.1:0")]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        read_until(&mut lines, "listening").await;
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let began = Instant::now();
        kill(Pid::from_raw(pid), signal).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

/// A producer that waits for the body of a request, so that its shutdown takes as long.
async fn busy_producer(cluster: &Cluster) -> (Child, Lines, TcpStream) {
    let broker = cluster.mock.bootstrap_servers();
    let settings =
        [("KAFKA_BROKER", &*broker), ("KAFKA_TOPIC", &cluster.topic), ("LISTEN_ADDR", "127.0.0.1:0")];
    let mut child = producer(&settings).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut address, mut kafka_answers) = (None, false);
    // The two lines come in either order.
    while address.is_none() || !kafka_answers {
        let line = next(&mut lines).await;
        kafka_answers |= line["message"] == "kafka is available";
        address = address.or_else(|| line["address"].as_str()?.parse::<SocketAddr>().ok());
    }
    let address = address.unwrap();
    let mut request = TcpStream::connect(address).await.unwrap();
    let head = "POST /ingest HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    request.write_all(head.as_bytes()).await.unwrap();
    // The producer sends this when it starts to read the body.
    let mut interim = [0; 25];
    request.read_exact(&mut interim).await.unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100"), "{interim:?}");
    (child, lines, request)
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

#[tokio::test]
async fn g7_signals_within_500_ms_of_the_first_are_ignored() {
    for second in [Signal::SIGINT, Signal::SIGTERM] {
        let cluster = Cluster::start();
        let (mut child, mut lines, mut request) = busy_producer(&cluster).await;
        send(&child, Signal::SIGTERM);
        read_until(&mut lines, "stop signal received").await;
        send(&child, second);
        request.write_all(b"{}").await.unwrap();
        let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{second}");
    }
}

#[tokio::test]
async fn g7_a_second_signal_after_500_ms_exits_with_130() {
    for second in [Signal::SIGINT, Signal::SIGTERM] {
        let cluster = Cluster::start();
        let (mut child, mut lines, _request) = busy_producer(&cluster).await;
        send(&child, Signal::SIGTERM);
        read_until(&mut lines, "stop signal received").await;
        tokio::time::sleep(Duration::from_millis(550)).await;
        let began = Instant::now();
        send(&child, second);
        read_until(&mut lines, "second stop signal received, exiting at once").await;
        let status = tokio::time::timeout(Duration::from_secs(5), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(130), "{second}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn tls_without_ca_location_uses_the_certificates_of_the_system() {
    let detail = "CACERTS";
    for (properties, expected) in [
        ("security.protocol=ssl;debug=security", true),
        ("security.protocol=ssl;ssl.ca.location=/etc;debug=security", false),
    ] {
        let settings = [
            ("KAFKA_BROKER", "127.0.0.1:9"),
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("KAFKA_PROPERTIES", properties),
            ("RUST_LOG", "info,librdkafka=debug"),
        ];
        let mut child = producer(&settings).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut details = String::new();
        loop {
            let line = next(&mut lines).await;
            details.push_str(line["facility"].as_str().unwrap_or_default());
            if line["message"] == "listening" {
                break;
            }
        }
        assert_eq!(details.contains(detail), expected, "{properties}: {details}");
    }
}

#[tokio::test]
async fn an_invalid_broker_list_exits_with_2_and_names_the_entry() {
    for (broker, properties, words) in [
        ("a:1,b", "", "\"b\""),
        ("a:1;b:2", "", "comma"),
        ("SASL_SSL://a:1", "security.protocol=plaintext", "security.protocol"),
        ("SASL_SSL://a:1", "", "sasl.mechanism"),
    ] {
        let settings = [("KAFKA_BROKER", broker), ("KAFKA_PROPERTIES", properties)];
        let output = producer(&settings).arg("--check-config").output().await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{broker}: {stderr}");
        assert!(stderr.contains(words), "{broker}: {stderr}");
    }
    let login = "sasl.mechanism=PLAIN;sasl.username=u;sasl.password=p";
    let right = [("KAFKA_BROKER", "SASL_SSL://a:1"), ("KAFKA_PROPERTIES", login)];
    let output = producer(&right).arg("--check-config").output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
