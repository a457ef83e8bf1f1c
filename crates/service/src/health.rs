//! The listener for health and metrics, and the routes that every process answers alike:
//! `/livez` (the process runs), `/readyz` (it can do its work now, else 503 and why), `/health` (for people,
//! always 200), `/metrics` (Prometheus text: the process' own, and what the kernel knows of it).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::problem::Problem;
use crate::process;

/// What a process says of itself.
pub trait HealthSource: Send + Sync + 'static {
    /// Whether the process works.
    ///
    /// # Errors
    /// Why it cannot go on.
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }
    /// Whether it can do its work now.
    ///
    /// # Errors
    /// The reason, in words, with the remedy where one is known.
    fn ready(&self) -> Result<(), String>;
    /// The body of `/health`.
    fn health(&self) -> serde_json::Value;
    /// The metrics.
    fn registry(&self) -> &Registry;
}

/// The routes above.
pub fn routes<R: HealthSource>(report: Arc<R>) -> Router {
    let [alive, ready, health] = [(); 3].map(|()| Arc::clone(&report));
    let metrics = report;
    let process = Arc::new(process::registry());
    Router::new()
        .route("/livez", get(move || async move { answer("alive", alive.alive()) }))
        .route("/readyz", get(move || async move { answer("ready", ready.ready()) }))
        .route("/health", get(move || async move { Json(health.health()) }))
        .route("/metrics", get(move || async move { exposition(metrics.registry(), &process) }))
}

fn answer(status: &str, result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Json(json!({"status": status})).into_response(),
        Err(why) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
            .retryable(Duration::from_secs(1))
            .into_response(),
    }
}

fn exposition(own: &Registry, process: &Registry) -> Response {
    let mut text = String::new();
    let encoded = encode_registry(&mut text, own)
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

/// A bound socket, so that port 0 works and the real port can be asked for before anything runs.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`.
    ///
    /// # Errors
    /// The address is in use or not this machine's; the error names it.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let named = |error: std::io::Error| {
            std::io::Error::new(error.kind(), format!("cannot listen on {address} (LISTEN_ADDR): {error}"))
        };
        let socket = TcpListener::bind(address).await.map_err(named)?;
        let address = socket.local_addr().map_err(named)?;
        Ok(Self { socket, address })
    }

    /// The address with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket, for a process that accepts connections itself.
    pub fn into_socket(self) -> TcpListener {
        self.socket
    }

    /// Answers until `stop`, then lets the requests in flight end.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> std::io::Result<()> {
        axum::serve(self.socket, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
