//! A broker, a database and an ADSBDB simulator on loopback, for `slipstream up` and for tests.
//!
//! The broker and the database are real servers: children of this process, from packages that are
//! pinned by version and hash and fetched once. They listen on 127.0.0.1 only, keep their data in
//! the folder that the caller names, and die with this process, also when it is killed.

mod address;
pub mod binaries;
mod broker;
mod child;
mod database;
mod error;
mod folder;
mod interleavings;
mod machine;
mod packages;
mod progress;
mod server;
mod simulator;
pub mod usage;

pub use broker::{Broker, BrokerKind, BrokerOptions, Sasl};
pub use child::Child;
pub use database::{Credentials, Database, DatabaseKind, DatabaseOptions};
pub use error::ServerError;
pub use folder::FolderLock;
pub use interleavings::interleavings;
pub use machine::Machine;
pub use packages::{Package, python_packages};
pub use progress::Progress;
pub use simulator::{Fault, Simulator};
