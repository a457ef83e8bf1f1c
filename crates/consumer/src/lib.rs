//! Topic to MongoDB: every record stored, superseded, dead-lettered or skipped, and counted.
//!
//! A thread of its own, the `reader`, polls Kafka and hands each record to the `lane` of its partition. A lane
//! takes what has arrived as its next `batch`, decides on each record (`step`, pure), writes the events
//! (`mongo`), produces the `dead_letters`, and marks what is finished (`offset`); the reader commits that and
//! never more. Lanes work at the same time and wait for nothing but their own records.
//!
//! Servers may be away for any time: nothing is dropped, nothing exits, memory stays bounded (`inbox`), and
//! `health` says in words what is waited for.

mod admin;
mod app;
mod config;
mod health;
mod kafka;
mod metrics;
pub mod mongo;
mod partition;
mod unlisted_code;

pub use app::{App, Failure};
pub use config::{Config, Settings, admin_token, database_name};
pub use metrics::{Counters, Snapshot};
pub use partition::batch::Limits;
pub use partition::decision::Expected;

use service::Program;

/// The process, as its `main` and its manual describe it.
pub const PROGRAM: Program = Program {
    name: "consumer",
    version: env!("CARGO_PKG_VERSION"),
    about: "Reads events from Kafka and keeps one MongoDB document for each event id: none lost, none stale.",
    variables: Settings::VARIABLES,
};
