//! The kinds of MongoDB servers, and the options to start one.

use std::fmt;
use std::path::PathBuf;

use crate::Machine;

/// The kind of a MongoDB server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// The `mongod` on PATH.
    Mongod,
    /// The packaged SecantusDB.
    SecantusDb,
}

/// A user with the role `root`.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password; `Debug` does not show it.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Options of a MongoDB server.
#[derive(Clone, Debug)]
pub struct DatabaseOptions {
    /// The kind; `None` is a `mongod` on PATH, else SecantusDB.
    pub kind: Option<DatabaseKind>,
    /// The folder for data and log. It is created if missing.
    pub data_dir: PathBuf,
    /// Its port; 0 is a free port.
    pub port: u16,
    /// Whether an acknowledged write survives SIGKILL, which costs four fifths of the speed.
    pub sync_on_commit: bool,
    /// Size of its cache in MiB. Eviction beyond it costs more than the writes.
    pub cache_mib: u32,
    /// The user with which clients must authenticate; `None` is no authentication.
    pub auth: Option<Credentials>,
    /// The machine with its programs.
    pub machine: Machine,
}

impl DatabaseOptions {
    /// On a free port, without authentication and sync, with the programs on PATH.
    pub fn new(data_dir: impl Into<PathBuf>) -> DatabaseOptions {
        DatabaseOptions {
            kind: None,
            data_dir: data_dir.into(),
            port: 0,
            sync_on_commit: false,
            cache_mib: 256,
            auth: None,
            machine: Machine::from_env(),
        }
    }
}
