//! Writes events to MongoDB, one collection per source. [`Store`] is the only entry point of the
//! write path.
//!
//! Guarantees: a document changes only if the event's `(event_timestamp, ingested_at)` is not lower
//! than the stored pair (G3). An event is finished only if a reply confirmed it with the write
//! concern of the URI (G2). Every error of the server or the network becomes part of a
//! [`BatchOutcome`], which accounts for each event once.

mod collection;
mod command;
mod connection;
mod error;
mod index;
mod index_build;
mod key;
mod plan;
mod reply;
mod store;
mod uri;
mod write;

pub use connection::{StoreState, read_hello};
pub use error::TransientError;
pub use index::{IndexState, index_state, partial_filter};
pub use key::UpsertKeys;
pub use reply::{BatchOutcome, Counts, Rejected};
pub use store::{CALL_DEADLINE, MAX_DOUBLINGS, Store, StoreConfig, StoreSetupError};
pub use uri::{check_uri, ignored_options, usable_uri, write_concern};
