//! The responses of the health listener, read from a socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::{HealthSource, Listener, routes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

struct Process {
    ready: AtomicBool,
    registry: Registry,
}

impl HealthSource for Process {
    fn ready(&self) -> Result<(), String> {
        if self.ready.load(Ordering::Relaxed) { Ok(()) } else { Err("kafka does not answer: refused".into()) }
    }
    fn health(&self) -> serde_json::Value {
        json!({"status": "ok"})
    }
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn readyz_of_a_process_that_is_not_ready_is_a_retryable_problem() {
    let mut registry = Registry::default();
    registry.register("slipstream_tests", "Tests run", Counter::<u64>::default());
    let process = Arc::new(Process { ready: AtomicBool::new(false), registry });
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, stop) = (listener.address(), CancellationToken::new());
    let serving = tokio::spawn(listener.serve(routes(Arc::clone(&process)), stop.clone()));

    let response = get(address, "/readyz").await.to_lowercase();
    assert!(response.starts_with("http/1.1 503"), "{response}");
    for part in
        ["retry-after: 1", "application/problem+json", "\"retryable\":true", "kafka does not answer: refused"]
    {
        assert!(response.contains(part), "{part} in {response}");
    }
    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("slipstream_tests_total 0"), "{metrics}");
    assert_eq!(metrics.matches("# EOF").count(), 1, "{metrics}");

    process.ready.store(true, Ordering::Relaxed);
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_an_error_with_address_and_variable() {
    let first = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let error = Listener::bind(first.address()).await.unwrap_err().to_string();
    assert!(error.contains(&first.address().to_string()) && error.contains("LISTEN_ADDR"), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn metrics_contain_the_process_metrics() {
    let process = Process { ready: AtomicBool::new(true), registry: Registry::default() };
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, stop) = (listener.address(), CancellationToken::new());
    let serving = tokio::spawn(listener.serve(routes(Arc::new(process)), stop.clone()));
    let metrics = get(address, "/metrics").await;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    // The kernel reports the boot time in whole seconds.
    assert!((-1.5..3600.0).contains(&age), "{age} s old");
    assert!((0.0..3600.0).contains(&value("process_cpu_seconds_total")), "{metrics}");
    assert!(value("process_resident_memory_bytes") > 1e6, "{metrics}");
    assert!(value("process_open_fds") > 3.0, "{metrics}");
    assert!(metrics.contains("# TYPE process_cpu_seconds counter"), "{metrics}");
    stop.cancel();
    serving.await.unwrap().unwrap();
}
