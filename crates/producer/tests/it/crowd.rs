//! Many connections to one process: its memory, and its behavior at the limit of open files.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::application::{Cluster, PATIENCE};
use crate::binary::{Lines, producer, read_until};

const CONNECTIONS: usize = 10_000;
/// Further open files of this process, its other tests and their brokers.
const OTHER_FILES: u64 = 2_500;

struct Process {
    child: Child,
    lines: Lines,
    address: SocketAddr,
}

impl Process {
    async fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(BufReader::new(child.stdout.take().unwrap()));
        let address = read_until(&mut lines, "listening").await["address"].as_str().unwrap().parse().unwrap();
        Self { child, lines, address }
    }

    /// The value of a line in /proc/…/status, in KiB.
    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap()
    }

    /// CPU time so far, in clock ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id().unwrap())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }
}

/// Sends a request on a persistent connection and returns the status.
async fn ask(connection: &mut TcpStream, request: &str) -> u16 {
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 8192];
    let read = tokio::time::timeout(PATIENCE, connection.read(&mut answer)).await.expect("an answer in time");
    let text = String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: t\r\n\r\n";

async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let some = (count - connections.len()).min(250);
        let open = (0..some).map(|_| async {
            let mut connection = TcpStream::connect(address).await.unwrap();
            assert_eq!(ask(&mut connection, LIVEZ).await, 200);
            connection
        });
        connections.extend(futures::future::join_all(open).await);
    }
    connections
}

#[testkit::needs(open_files)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_cost_little_memory_and_fail_no_busy_one() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let needed = CONNECTIONS as u64 + OTHER_FILES;
    assert!(
        hard >= needed,
        "{CONNECTIONS} connections need a hard limit of {needed} open files, and it is {hard}: raise it (ulimit -Hn)"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let cluster = Cluster::start();
    let broker = cluster.mock.bootstrap_servers();
    let process = Process::start(producer(&[
        ("KAFKA_BROKER", &broker),
        ("KAFKA_TOPIC", &cluster.topic),
        ("LISTEN_ADDR", "127.0.0.1:0"),
    ]));
    let process = process.await;
    let mut idle = idle(process.address, CONNECTIONS).await;

    let event = format!(r#"{{"source":"manual","payload":{{"text":"{}"}}}}"#, "x".repeat(1000));
    let request =
        format!("POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{event}", event.len());
    let busy = (0..200).map(|_| async {
        let mut connection = TcpStream::connect(process.address).await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&mut connection, &request).await, 202);
        }
    });
    futures::future::join_all(busy).await;

    let memory_kib = process.status_kib("VmHWM");
    assert!(memory_kib < 300 * 1024, "{memory_kib} KiB for {CONNECTIONS} connections");
    for connection in idle.iter_mut().step_by(CONNECTIONS / 100) {
        assert_eq!(ask(connection, LIVEZ).await, 200, "an idle connection is still served");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_out_of_files_waits_without_spinning_and_goes_on() {
    let program = producer(&[]).as_std().get_program().to_owned();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 60; exec \"$0\""]).arg(program).env_clear();
    limited.env("KAFKA_BROKER", "127.0.0.1:9").env("LISTEN_ADDR", "127.0.0.1:0").kill_on_drop(true);
    limited.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut process = Process::start(limited).await;
    // The kernel completes connections that the process has not accepted.
    let connections = (0..80).map(|_| TcpStream::connect(process.address));
    let mut connections = futures::future::try_join_all(connections).await.unwrap();
    let warning = read_until(&mut process.lines, "connections cannot be accepted").await;
    assert_eq!(warning["level"], "WARN", "{warning}");

    let (began, ticks) = (Instant::now(), process.ticks());
    let mut last = connections.pop().unwrap();
    let silence = tokio::time::timeout(Duration::from_secs(1), ask(&mut last, LIVEZ)).await;
    assert!(silence.is_err(), "no file descriptor is free");
    let (used, passed) = (process.ticks() - ticks, began.elapsed());
    assert!(used < 30, "{used} ticks of 10 ms in {passed:?}");

    connections.truncate(10);
    let mut buffer = [0; 1024];
    let answer = tokio::time::timeout(PATIENCE, last.read(&mut buffer)).await.expect("an answer").unwrap();
    assert!(buffer[..answer].starts_with(b"HTTP/1.1 200 "));
    let mut next = String::new();
    while next != "connections are accepted again" {
        let line = process.lines.next_line().await.unwrap().expect("more lines");
        next = serde_json::from_str::<serde_json::Value>(&line).unwrap()["message"].as_str().unwrap().into();
        assert_ne!(next, "connections cannot be accepted", "logged once");
    }
}
