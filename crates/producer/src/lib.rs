//! The producer: it accepts events over HTTP and writes them to a Kafka topic.
//!
//! `POST /ingest` returns 202 only after Kafka acknowledged the record on all in-sync replicas
//! (G1). A 503 means that nothing was stored, a 504 that the outcome is unknown. A retry with the
//! same `id` is always safe (G4).
//!
//! [`App::build`] binds the address and needs no server to be available. [`App::run_until`] runs
//! until its stop token is cancelled.
//!
//! | module | content |
//! |---|---|
//! | `app`, `state` | wiring; the state that handlers receive |
//! | `config` | the variables and the validated configuration |
//! | `http` | server, middleware, authentication, bodies, TLS |
//! | `routes` | the route table and the handlers |
//! | `batch` | `POST /ingest/batch` |
//! | `openapi` | the OpenAPI document |
//! | `error` | every error response |
//! | `kafka` | the only use of librdkafka |
//! | `source_set`, `extraction` | the sources of the file, and their events |
//! | `pull` | the client of their APIs |
//! | `adsbdb`, `pull`, `traces` | the only uses of reqwest |

mod adsbdb;
mod app;
mod batch;
mod clock;
mod config;
mod error;
pub mod extraction;
mod http;
mod kafka;
mod metrics;
mod openapi;
mod poll_jobs;
pub mod pull;
mod routes;
mod source_set;
mod state;
mod traces;

use service::config::environment_value as value;
use service::health::TlsConnector;

pub use app::{App, BuildError, RunError};
pub use config::{Config, Settings};
pub use error::REJECTION_REASONS;
pub use metrics::{Counters, metrics_reference};

/// The TLS client of the process's own health check, if `environment` enables TLS.
pub fn secure(environment: &[(String, String)]) -> Option<TlsConnector> {
    let certificate = value(environment, "TLS_CERT_FILE")?;
    let key = value(environment, "TLS_KEY_FILE")?;
    Some(http::tls::secure(certificate, key))
}

/// The command line of the producer.
pub const PROGRAM: service::Program = service::Program {
    name: "producer",
    version: env!("CARGO_PKG_VERSION"),
    about: "HTTP to Kafka: returns 202 only after Kafka acknowledged the event.",
    variables: Settings::VARIABLES,
};
