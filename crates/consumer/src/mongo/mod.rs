//! Writes events to MongoDB, one collection per source. [`Store`] is the only entry point of the
//! write path.
//!
//! Guarantees: a document changes only if the event's `(event_timestamp, ingested_at)` is not lower
//! than the stored pair (G3). An event is finished only if a reply confirmed it with the write
//! concern of the URI (G2). Every error of the server or the network becomes part of a
//! [`BatchOutcome`], which accounts for each event once.

mod accounting;
mod bson_writer;
mod collection;
mod command;
mod connection;
mod error;
mod error_codes;
mod extended_json;
mod index;
mod index_build;
mod key;
mod merged_write;
mod outcome;
mod plan;
mod reply;
mod server_state;
mod store;
mod uri;
mod version;
mod write;
mod write_strategy;

pub use error::TransientError;
pub use index::{IndexState, index_state, partial_filter};
pub use key::UpsertKeys;
pub use outcome::{BatchOutcome, Counts, Rejected};
pub use server_state::{StoreState, read_hello};
pub use store::{CALL_DEADLINE, MAX_DOUBLINGS, Store, StoreConfig, StoreSetupError};
pub use uri::{check_uri, ignored_options, usable_uri, write_concern};
