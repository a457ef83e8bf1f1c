//! Load generator, ledger and verifier: `slipstream load` and `slipstream verify`, as a library.
//!
//! [`load::run`] sends events to a producer and writes the outcome of each event to a ledger.
//! [`verify::run`] compares a ledger with the documents in MongoDB and with the dead letters. It
//! generates the same events from the same seed again.

mod ledger;
pub mod load;
pub mod mongo;
mod options;
mod payload;
mod progress;
pub mod verify;
mod workload;

pub use options::{LoadOptions, VerifyOptions, parse_duration};
pub use payload::RecordForm;
pub use progress::{PlainLines, Progress};
