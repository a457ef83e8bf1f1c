//! The servers of a measurement: one broker for all, and for each side a database of its own that nobody used before.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use devservers::{Broker, BrokerKind, BrokerOptions, Database, DatabaseKind, DatabaseOptions, Progress};

use crate::Failure;

/// Room for all that a side stores, indexes included: with less the database evicts and reads back, which is neither the
/// pipeline's work nor what a server with half of the machine's memory does.
const CACHE_MIB: u32 = 1024;

/// A broker, and the folder in which everything of this run lies. Dropping it ends the one and removes the other.
#[derive(Debug)]
pub struct Stage {
    broker: Broker,
    folder: tempfile::TempDir,
    next: AtomicU32,
}

impl Stage {
    /// Starts Apache Kafka, whatever SLIPSTREAM_BROKER says; all lies in a new folder below `parent`.
    pub async fn start(parent: &Path) -> Result<Stage, Failure> {
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(parent)?;
        let options = BrokerOptions::new(BrokerKind::ApacheKafka, folder.path().join("kafka"));
        let broker = Broker::start(options, Progress::new(crate::say)).await?;
        Ok(Stage { broker, folder, next: AtomicU32::new(0) })
    }

    /// Kafka's bootstrap servers.
    pub fn kafka(&self) -> String {
        self.broker.bootstrap()
    }

    /// A new, empty folder.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.path().join(format!("{number}-{name}"));
        std::fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// A new database. It does not sync each commit: speed is what is measured.
    pub async fn database(&self) -> Result<Storage, Failure> {
        let folder = self.folder("database")?;
        let options = DatabaseOptions { cache_mib: CACHE_MIB, ..DatabaseOptions::new(&folder) };
        let database = Database::start(options, Progress::new(crate::say)).await?;
        Ok(Storage { database: Some(database), folder })
    }
}

/// A database whose data goes with it.
#[derive(Debug)]
pub struct Storage {
    database: Option<Database>,
    folder: PathBuf,
}

impl Storage {
    /// What MONGODB_URI takes.
    pub fn uri(&self) -> String {
        self.database.as_ref().map(Database::uri).unwrap_or_default()
    }

    /// What it calls itself.
    pub fn name(&self) -> &'static str {
        match self.database.as_ref().map(Database::kind) {
            Some(DatabaseKind::Mongod) => "mongod",
            _ => "SecantusDB 0.6.0b17 (MongoDB's protocol over WiredTiger)",
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // The process first: it must not write into a folder that is going away.
        drop(self.database.take());
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            crate::say(&format!("{} not removed: {error}", self.folder.display()));
        }
    }
}
