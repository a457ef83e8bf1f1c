//! The listener for health and metrics, with the same routes in every process.
//!
//! - `/livez`: 200 while the process works, else 503 with the reason.
//! - `/readyz`: 200 if the process can do its work now, else 503 with the reason.
//! - `/health`: details for people, always 200.
//! - `/metrics`: OpenMetrics text with the metrics of the application and of the process.

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
    let process = Arc::new(process::registry());
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
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let with_address = |error: std::io::Error| {
            std::io::Error::new(error.kind(), format!("cannot listen on {address} (LISTEN_ADDR): {error}"))
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
    pub async fn serve(self, router: Router, stop: CancellationToken) -> std::io::Result<()> {
        axum::serve(self.socket, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
