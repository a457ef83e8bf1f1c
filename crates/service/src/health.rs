//! Health and metrics of a process: the listener with the same routes in every process, the metrics
//! of the process itself, and the probe that the command `healthcheck` runs.
//!
//! - `/livez`: 200 while the process works, else 503 with the reason.
//! - `/readyz`: 200 if the process can do its work now, else 503 with the reason.
//! - `/health`: details for people, always 200.
//! - `/metrics`: OpenMetrics text with the metrics of the application and of the process.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http::Problem;

/// Source of the health, readiness and metrics responses.
pub trait HealthSource: Send + Sync + 'static {
    /// Liveness: whether the process works.
    ///
    /// # Errors
    /// The reason why only a restart helps.
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }
    /// Readiness: whether the process can do its work now.
    ///
    /// # Errors
    /// The reason, with the remedy if it is known.
    fn ready(&self) -> Result<(), String>;
    /// Body of `/health`.
    fn health(&self) -> serde_json::Value;
    /// Metrics of the application.
    fn registry(&self) -> &Registry;
}

/// The routes `/livez`, `/readyz`, `/health` and `/metrics`.
pub fn routes<S: HealthSource>(source: Arc<S>) -> Router {
    let [alive, ready, health] = [(); 3].map(|()| Arc::clone(&source));
    let metrics = source;
    let process = Arc::new(process_registry());
    Router::new()
        .route("/livez", get(move || async move { status_response("alive", alive.alive()) }))
        .route("/readyz", get(move || async move { status_response("ready", ready.ready()) }))
        .route("/health", get(move || async move { Json(health.health()) }))
        .route("/metrics", get(move || async move { metrics_response(metrics.registry(), &process) }))
}

fn status_response(status: &str, result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Json(json!({"status": status})).into_response(),
        Err(reason) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason)
            .retryable(Duration::from_secs(1))
            .into_response(),
    }
}

fn metrics_response(application: &Registry, process: &Registry) -> Response {
    let mut text = String::new();
    let encoded = encode_registry(&mut text, application)
        .and_then(|()| encode_registry(&mut text, process))
        .and_then(|()| encode_eof(&mut text));
    match encoded {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(_) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded").into_response()
        }
    }
}

/// A bound socket. Port 0 becomes a free port, which [`Listener::address`] returns.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`.
    ///
    /// # Errors
    /// The address is in use or belongs to another machine. The error contains it.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let with_address = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {address} (LISTEN_ADDR): {error}"))
        };
        let socket = TcpListener::bind(address).await.map_err(with_address)?;
        let address = socket.local_addr().map_err(with_address)?;
        Ok(Self { socket, address })
    }

    /// The address with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket, for a process with an accept loop of its own.
    pub fn into_socket(self) -> TcpListener {
        self.socket
    }

    /// Serves until `stop`, then completes the requests in flight.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> io::Result<()> {
        axum::serve(self.socket, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

/// Clock ticks per second in `/proc` (`USER_HZ`). It is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The metrics `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds` and
/// `process_start_time_seconds`, as every Prometheus client names them.
///
/// They have a registry of their own because their names have no prefix. A value that `/proc` does
/// not have is left out.
fn process_registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector));
    registry
}

#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let times = read_proc("/proc/self/stat").as_deref().and_then(Times::parse);
        if let Some(times) = &times {
            let cpu = ConstCounter::new(times.cpu_seconds);
            let help = "User and system CPU time of this process";
            let unit = Some(&Unit::Seconds);
            cpu.encode(encoder.encode_descriptor("process_cpu", help, unit, cpu.metric_type())?)?;
        }
        let boot = read_proc("/proc/stat").as_deref().and_then(boot_seconds);
        let start = times.zip(boot).map(|(times, boot)| boot + times.started_seconds);
        let memory = read_proc("/proc/self/status").as_deref().and_then(resident_bytes);
        for (name, help, unit, value) in [
            (
                "process_start_time",
                "Start time of this process in epoch seconds",
                Some(&Unit::Seconds),
                start,
            ),
            ("process_resident_memory", "Resident memory of this process", Some(&Unit::Bytes), memory),
            ("process_open_fds", "Open file descriptors of this process", None, open_files()),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn read_proc(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Times from `/proc/self/stat`.
struct Times {
    cpu_seconds: f64,
    /// Seconds from the boot of the machine to the start of the process.
    started_seconds: f64,
}

impl Times {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program name, which can contain spaces and brackets.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // proc(5) numbers the fields from 1. `fields` starts at the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            started_seconds: field(22)? / TICKS_PER_SECOND,
        })
    }
}

fn boot_seconds(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident_bytes(status: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// The count leaves out the descriptor that reads the directory.
fn open_files() -> Option<f64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0).max(0.0))
}

/// Timeout of the connection of a probe, and of each read and write.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Size at which the status line is cut. A valid one is shorter.
const MAX_STATUS_LINE_BYTES: u64 = 4096;

/// A connection that can be read and written.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Opens TLS on a connection.
pub type TlsConnector = Box<dyn FnOnce(TcpStream) -> io::Result<Box<dyn Stream>>>;

/// Requests `/livez` of the process that listens on `listen`. An unspecified address becomes
/// loopback.
///
/// # Errors
/// The process does not answer within 3 s, or the status is not 200.
pub(crate) fn probe(listen: SocketAddr, tls: Option<TlsConnector>) -> Result<(), String> {
    let ip = if listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen.ip() };
    match status_line(SocketAddr::new(ip, listen.port()), tls) {
        Ok(status) if status.contains(" 200 ") => Ok(()),
        Ok(status) => Err(format!("/livez answered {status:?}")),
        Err(error) => Err(format!("/livez does not answer: {error}")),
    }
}

fn status_line(address: SocketAddr, tls: Option<TlsConnector>) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    let mut stream: Box<dyn Stream> = match tls {
        Some(connect) => connect(stream)?,
        None => Box::new(stream),
    };
    stream.write_all(
        format!("GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_STATUS_LINE_BYTES)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net;

    use super::*;

    fn probe_of(response: &'static str) -> Result<(), String> {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 256]).unwrap(), 0);
            stream.write_all(response.as_bytes()).unwrap();
        });
        let result = probe(address, None);
        server.join().unwrap();
        result
    }

    #[test]
    fn a_probe_succeeds_only_on_a_200() {
        assert_eq!(probe_of("HTTP/1.1 200 OK\r\n\r\n"), Ok(()));
        assert!(probe_of("HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap_err().contains("503"));
        assert!(probe_of("").unwrap_err().contains("answered"));
    }

    #[test]
    fn a_refused_connection_is_an_error_with_the_path() {
        let address = net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(probe(address, None).unwrap_err().starts_with("/livez does not answer"));
    }

    #[test]
    fn a_program_name_with_brackets_and_spaces_is_parsed() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 9 0 12345 1000 20 18446744";
        let times = Times::parse(stat).unwrap();
        assert_eq!((times.cpu_seconds, times.started_seconds), (2.0, 123.45));
        assert!(Times::parse("7 (cut) S 1 7").is_none() && Times::parse("").is_none());
    }

    #[test]
    fn memory_and_boot_time_are_found_among_other_lines() {
        assert_eq!(resident_bytes("VmHWM:\t   90 kB\nVmRSS:\t      20 kB\n"), Some(20_480.0));
        assert_eq!(resident_bytes("Name:\tkernel thread\n"), None);
        assert_eq!(boot_seconds("cpu 1 2 3\nbtime 1730000000\nprocesses 5\n"), Some(1_730_000_000.0));
    }
}
