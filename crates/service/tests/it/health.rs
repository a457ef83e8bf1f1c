//! The listener's answers, read from the socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::{Listener, Report, routes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

struct Process {
    ready: AtomicBool,
    registry: Registry,
}

impl Report for Process {
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
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_process_that_is_not_ready_says_why_and_that_trying_again_helps() {
    let mut registry = Registry::default();
    registry.register("slipstream_tests", "Tests run", Counter::<u64>::default());
    let process = Arc::new(Process { ready: AtomicBool::new(false), registry });
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, stop) = (listener.address(), CancellationToken::new());
    let serving = tokio::spawn(listener.serve(routes(Arc::clone(&process)), stop.clone()));

    let answer = get(address, "/readyz").await.to_lowercase();
    assert!(answer.starts_with("http/1.1 503"), "{answer}");
    for part in
        ["retry-after: 1", "application/problem+json", "\"retryable\":true", "kafka does not answer: refused"]
    {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/metrics").await.contains("slipstream_tests_total 0"));

    process.ready.store(true, Ordering::Relaxed);
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_variable() {
    let first = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let error = Listener::bind(first.address()).await.unwrap_err().to_string();
    assert!(error.contains(&first.address().to_string()) && error.contains("LISTEN_ADDR"), "{error}");
}
