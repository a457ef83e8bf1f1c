//! Load generator, ledger and verifier: `slipstream load` and `slipstream verify`, as a library.
//!
//! [`load::run`] sends events to a producer and writes the outcome of each event to a [`ledger`].
//! [`verify::run`] compares a ledger with the documents in MongoDB and with the dead letters. Tests
//! and benchmarks can also use the parts: [`workload::Events`] generates the same events from the
//! same seed, and [`verify::expected_document`] makes the document of an event with code that is
//! independent of the pipeline's.

pub mod ledger;
pub mod load;
pub mod mongo;
pub mod options;
mod payload;
mod progress;
pub mod verify;
pub mod workload;

pub use options::{LoadOptions, VerifyOptions, Wait, parse_duration};
pub use payload::Payload;
