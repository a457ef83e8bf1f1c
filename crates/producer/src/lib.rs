//! HTTP to topic. The guarantee (G1): `POST /ingest` answers 202 only after the broker has acknowledged the event
//! (all in-sync replicas, idempotent client). Whatever else it answers says whether trying again helps, and is true:
//! 503 means that nothing was stored, 504 that nobody knows; sending the same `id` again is always safe.
//!
//! [`App::build`] binds and wires, and needs no server to be up; [`App::run_until`] runs until its stop token is
//! cancelled. The route table is `routes.rs`; the statuses and their bodies are `error.rs`; librdkafka is used in
//! `kafka/` only, reqwest in `adsbdb/client.rs` and `traces/export.rs` only.

mod adsbdb;
mod app;
mod batch;
mod clock;
mod config;
mod error;
mod http;
mod kafka;
mod metrics;
mod openapi;
mod poll_jobs;
mod routes;
mod shutdown;
mod traces;

use service::environment::value;
use service::healthcheck::TlsConnector;

pub use app::{App, BuildError, RunError};
pub use config::{Config, Settings};
pub use metrics::Counters;

/// How its own health check speaks to a producer of this environment, if that is not in the clear.
pub fn secure(environment: &[(String, String)]) -> Option<TlsConnector> {
    let certificate = value(environment, "TLS_CERT_FILE")?;
    let key = value(environment, "TLS_KEY_FILE")?;
    Some(http::tls::secure(certificate, key))
}

/// The producer as its binary runs it.
pub const PROGRAM: service::Program = service::Program {
    name: "producer",
    version: env!("CARGO_PKG_VERSION"),
    about: "HTTP to Kafka topic: answers 202 only once the broker has acknowledged the event.",
    variables: Settings::VARIABLES,
};
