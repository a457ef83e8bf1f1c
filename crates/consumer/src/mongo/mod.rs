//! Events into MongoDB, one collection a source.

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
mod lookup;
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

pub use index::{IndexState, index_state, partial_filter};
pub use key::UpsertKeys;
pub use outcome::{Applied, Counts, Rejected, Trouble};
pub use server_state::{StoreState, read_hello};
pub use store::{CALL_DEADLINE, DOUBLINGS_MAX, Store, StoreConfig, StoreSetupError};
pub use uri::{check_uri, ignored_options, usable_uri, write_concern};
