//! Real servers for tests: shared ones, and ones of a test's own.
//!
//! Shared servers run until the test binary ends. Statics are never dropped, so the next test
//! binary removes the folders of test binaries that have ended.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use devservers::{Broker, BrokerKind, BrokerOptions, Database, DatabaseOptions, Progress};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The folder of this test binary's servers: `target/tmp/servers/PID`.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("the path of the test binary");
    // target/PROFILE/deps/it-HASH -> target
    let target = test.ancestors().nth(3).expect("the target directory");
    let all = target.join("tmp").join("servers");
    for folder in std::fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(folder.file_name()).exists() {
            _ = std::fs::remove_dir_all(folder.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    std::fs::create_dir_all(&own).expect("a folder for servers");
    own
});

/// A new folder for a server.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(&*FOLDER).expect("a folder for a server")
}

/// The broker that SLIPSTREAM_BROKER names, or the best that this machine can run.
pub fn broker_kind() -> BrokerKind {
    BrokerKind::from_env().expect("SLIPSTREAM_BROKER names a broker")
}

/// A broker of a test's own.
#[derive(Debug)]
pub struct OwnBroker {
    broker: Broker,
    _folder: TempDir,
}

impl Deref for OwnBroker {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.broker
    }
}

/// Starts a broker of the test's own.
pub async fn start_broker() -> OwnBroker {
    let folder = folder();
    let options = BrokerOptions::new(broker_kind(), folder.path());
    let broker = Broker::start(options, Progress::silent()).await.expect("a broker");
    OwnBroker { broker, _folder: folder }
}

/// The broker that all tests of this binary share. Tests must not stop it.
pub async fn shared_broker() -> &'static Broker {
    static SHARED: OnceCell<OwnBroker> = OnceCell::const_new();
    SHARED.get_or_init(start_broker).await
}

/// A MongoDB server: one that this process started, or the one that SLIPSTREAM_TEST_MONGODB_URI
/// names.
#[derive(Debug)]
pub enum MongoServer {
    /// A server that this process started.
    Started {
        /// The server.
        database: Box<Database>,
        /// Its folder.
        _folder: Option<TempDir>,
    },
    /// The server of SLIPSTREAM_TEST_MONGODB_URI.
    Given(String),
}

impl MongoServer {
    /// The value for MONGODB_URI.
    pub fn uri(&self) -> String {
        match self {
            Self::Started { database, .. } => database.uri(),
            Self::Given(uri) => uri.clone(),
        }
    }
}

impl Deref for MongoServer {
    type Target = Database;

    /// Panics for a given server: a test that controls its server must have
    /// `#[needs(own_mongodb)]`.
    fn deref(&self) -> &Database {
        match self {
            Self::Started { database, .. } => database,
            Self::Given(_) => panic!("a given MongoDB cannot be controlled: add #[needs(own_mongodb)]"),
        }
    }
}

/// The server that SLIPSTREAM_TEST_MONGODB_URI names.
fn given_mongodb() -> Option<MongoServer> {
    let uri = std::env::var_os("SLIPSTREAM_TEST_MONGODB_URI")?.into_string().expect("a URI in UTF-8");
    (!uri.is_empty()).then_some(MongoServer::Given(uri))
}

/// Starts a MongoDB server of the test's own that keeps acknowledged writes over SIGKILL, unless a
/// server is given.
pub async fn start_durable_mongodb() -> MongoServer {
    start_mongodb(true).await
}

/// Starts a MongoDB server of the test's own, unless a server is given.
///
/// With `sync_on_commit` the server syncs each commit, so that SIGKILL loses no acknowledged write.
/// That is five times slower.
pub(crate) async fn start_mongodb(sync_on_commit: bool) -> MongoServer {
    if let Some(given) = given_mongodb() {
        return given;
    }
    let folder = folder();
    let options = DatabaseOptions { sync_on_commit, ..DatabaseOptions::new(folder.path()) };
    let database = Database::start(options, Progress::silent()).await.expect("a MongoDB server");
    MongoServer::Started { database: Box::new(database), _folder: Some(folder) }
}

/// The MongoDB server that all tests of this binary share. Tests must not stop it.
pub async fn shared_mongodb() -> &'static MongoServer {
    static SHARED: OnceCell<MongoServer> = OnceCell::const_new();
    SHARED.get_or_init(|| start_mongodb(false)).await
}
