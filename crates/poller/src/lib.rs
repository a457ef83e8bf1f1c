//! Calls the producer's `POST /ingest/{source}` on a fixed schedule for each source.
//!
//! The poller first waits until the producer's `/readyz` is 200. Then one call starts at each tick
//! of a schedule. Calls of one source never overlap, so a slow response skips ticks; sources do not
//! wait for each other. After a failure, the next call of the source waits for the response's `Retry-After` and for a jittered backoff. The poller stores
//! nothing: after a 202, the producer guarantees that the event is stored.
//!
//! Exit codes: 0 for a clean end, 1 if calls failed and none succeeded or if a task failed, 2 for
//! a wrong configuration.

mod app;
pub mod client;
pub mod config;
pub mod metrics;
mod poll_loop;
pub mod tls;

pub use app::{App, Error};
pub use config::{Config, Settings};
pub use metrics::metrics_reference;

/// The command line of the binary.
pub const PROGRAM: service::Program = service::Program {
    name: "poller",
    version: env!("CARGO_PKG_VERSION"),
    about: "Calls the producer every INTERVAL_SEC to ingest one aircraft of ADSBDB, and to fetch other sources.",
    variables: Settings::VARIABLES,
};
