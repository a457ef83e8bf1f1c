//! Reads events from Kafka and writes them to MongoDB. Every record ends with one outcome, which is
//! counted: stored, superseded, dead-lettered or skipped.
//!
//! - The `kafka::reader` thread polls Kafka and pushes each record to the `partition::worker` of
//!   its partition.
//! - A worker takes the queued records as its next `partition::batch` and decides what to do with
//!   each record (`partition::decision`, a pure function).
//! - It writes events to MongoDB and produces dead letters (`kafka::dead_letters`).
//! - It marks finished records in `partition::offsets`, and the `kafka::committer` thread commits
//!   no offset beyond them.
//! - Workers run concurrently and do not wait for each other.
//!
//! Servers can be unavailable for any time: no record is dropped, the process continues, and memory
//! stays bounded (`partition::queue`). `health` reports what the consumer waits for.

mod admin;
mod app;
mod config;
mod counters;
mod health;
mod kafka;
mod metrics;
pub mod mongo;
mod partition;
mod unlisted_code;

pub use app::{App, Failure};
pub use config::{Config, Settings, admin_token, database_name};
pub use counters::Counters;
pub use metrics::{Snapshot, metrics_reference};
pub use partition::batch::BatchLimits;
pub use partition::decision::ExpectedSources;

use service::Program;

/// The process, as `main` and `--help` describe it.
pub const PROGRAM: Program = Program {
    name: "consumer",
    version: env!("CARGO_PKG_VERSION"),
    about: "Reads events from Kafka and keeps one MongoDB document per event id, which holds its newest event.",
    variables: Settings::VARIABLES,
};
