//! Reads events from Kafka and writes them to MongoDB. Every record ends with one outcome, which is
//! counted: stored, superseded, dead-lettered or skipped.
//!
//! - The `kafka::reader` thread polls Kafka and pushes each record to the `partition::worker` of
//!   its partition.
//! - A worker takes the queued records as its next `partition::batch` and decides what to do with
//!   each record (`Decision::of`, a pure function).
//! - It writes events to MongoDB and produces dead letters (`kafka::dead_letters`).
//! - It marks finished records in `partition::offsets`, and the thread of `kafka::commits` commits
//!   no offset beyond them.
//! - Workers run concurrently and do not wait for each other.
//!
//! Servers can be unavailable for any time: no record is dropped, the process continues, and memory
//! stays bounded (`partition::queue`). `health` reports what the consumer waits for.

mod admin;
mod app;
mod config;
mod configured_sources;
mod health;
/// Kafka clients of the consumer: reading, committing, rebalances, lag and dead letters.
mod kafka {
    pub mod commits;
    pub mod dead_letters;
    pub mod group;
    pub mod lag;
    pub mod reader;
    pub mod record;
}
mod metrics;
pub mod mongo;
/// Processing the records of one partition: queue, batch, progress and worker.
mod partition {
    pub mod batch;
    pub mod offsets;
    pub mod progress;
    pub mod queue;
    pub mod retry;
    pub mod worker;
    pub mod workers;
}

pub use app::{App, Counters, Failure};
pub use config::{Config, Settings, admin_token, database_name};
pub use configured_sources::{ConfiguredSources, ExpectedSources, SourceStore};
pub use metrics::{Snapshot, metrics_reference};
pub use partition::batch::BatchLimits;

use service::Program;

/// The process, as `main` and `--help` describe it.
pub const PROGRAM: Program = Program {
    name: "consumer",
    version: env!("CARGO_PKG_VERSION"),
    about: "Reads events from Kafka and keeps one MongoDB document per event id, which holds its newest event.",
    variables: Settings::VARIABLES,
};
