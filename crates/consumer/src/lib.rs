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
mod aside;
mod batch;
mod clients;
mod commit;
mod config;
mod dead_letters;
mod group;
mod health;
mod inbox;
mod lag;
mod lane;
mod lanes;
mod metrics;
pub mod mongo;
mod offset;
mod pace;
mod progress;
mod reader;
mod rebalance;
mod record;
mod step;
mod unlisted_code;

pub use app::{App, Failure};
pub use batch::Limits;
pub use config::{Config, Settings, admin_token, database_name};
pub use metrics::{Counters, Snapshot};
pub use step::Expected;

use service::Program;

/// The process, as its `main` and its manual describe it.
pub const PROGRAM: Program = Program {
    name: "consumer",
    version: env!("CARGO_PKG_VERSION"),
    about: "Reads events from Kafka and keeps one MongoDB document for each event id: none lost, none stale.",
    variables: Settings::VARIABLES,
};
