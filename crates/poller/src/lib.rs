//! Clock to `POST /ingest/adsbdb`: asks the producer, on a fixed schedule, to fetch one aircraft.
//!
//! It waits for the producer's `/readyz` first, for as long as that takes. Then a call starts at each tick of the
//! schedule ([`schedule`]); calls never overlap, so a slow answer skips ticks. After a failure the next call waits
//! for the answer's `Retry-After` and for a jittered backoff ([`poll_loop`]). It keeps nothing: what the producer
//! answered with 202 is the producer's promise.
//!
//! Exit codes: 0 a clean end, 1 if calls were made and not one succeeded, 2 a wrong configuration.

pub mod app;
pub mod client;
pub mod config;
pub mod metrics;
pub mod poll_loop;
pub mod schedule;
pub mod tls;

pub use app::{App, Error};
pub use config::{Config, Settings};

/// The poller as its binary runs it.
pub const PROGRAM: service::Program = service::Program {
    name: "poller",
    version: env!("CARGO_PKG_VERSION"),
    about: "Asks the producer for one aircraft of ADSBDB every INTERVAL_SEC.",
    variables: Settings::VARIABLES,
};
