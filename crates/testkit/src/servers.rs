//! Real servers for tests: shared ones, ones of a test's own, and the names that isolate tests on
//! them.
//!
//! Shared servers run until the test binary ends. Statics are never dropped, so the next test
//! binary removes the folders of test binaries that have ended.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use devservers::{Broker, BrokerKind, BrokerOptions, Database, DatabaseOptions, Progress};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::Process;

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
async fn start_mongodb(sync_on_commit: bool) -> MongoServer {
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

static SHARED: OnceCell<Stack> = OnceCell::const_new();
static SHARED_WITHOUT_SYNC: OnceCell<Stack> = OnceCell::const_new();

/// A broker and a MongoDB server.
#[derive(Debug)]
pub struct Stack {
    /// The broker.
    pub broker: OwnBroker,
    /// The MongoDB server.
    pub mongodb: MongoServer,
}

impl Stack {
    /// Starts servers of the test's own. MongoDB syncs each commit, so that SIGKILL loses no
    /// acknowledged write.
    pub async fn start() -> Self {
        Self::start_with(true).await
    }

    /// Starts servers of the test's own. MongoDB syncs nothing: it is five times faster, and must
    /// not be killed.
    pub async fn start_without_sync() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(sync_on_commit: bool) -> Self {
        let (broker, mongodb) = tokio::join!(start_broker(), start_mongodb(sync_on_commit));
        Self { broker, mongodb }
    }

    /// The servers that tests share, with sync on commit. Tests must not stop them.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// The servers that tests share, without sync. Tests must not stop them.
    pub async fn shared_without_sync() -> &'static Self {
        SHARED_WITHOUT_SYNC.get_or_init(Self::start_without_sync).await
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Starts a producer for `names`. `more` variables override the usual ones.
    pub fn producer(&self, names: &Names, more: &[(&str, &str)]) -> Process {
        Process::start("producer", &names.for_every_source(more))
    }

    /// Starts a consumer for `names`. `more` variables override the usual ones.
    pub fn consumer(&self, names: &Names, more: &[(&str, &str)]) -> Process {
        Process::start("consumer", &names.for_every_source(more))
    }

    /// Unique names on these servers.
    pub fn names(&self) -> Names {
        Names::new(self.broker.bootstrap(), self.mongodb.uri())
    }
}

/// The servers' addresses, and the topic, group and database of one test.
#[derive(Debug, Clone)]
pub struct Names {
    /// The bootstrap servers of Kafka.
    pub kafka: String,
    /// The URI of MongoDB.
    pub mongodb: String,
    /// The topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// The database.
    pub database: String,
    /// SOURCES_FILE of every process, if any.
    pub sources_file: Option<String>,
}

impl Names {
    /// Unique names on these servers.
    pub fn new(kafka: String, mongodb: String) -> Self {
        // Random: a given MongoDB may keep the databases of earlier runs.
        let own = format!("{:016x}", fastrand::u64(..));
        Self {
            kafka,
            mongodb,
            topic: format!("events-{own}"),
            group: format!("group-{own}"),
            database: format!("test-{own}"),
            sources_file: None,
        }
    }

    /// The variables of a process that uses these names. `more` variables override the usual ones.
    pub fn environment<'k, 'v>(&'v self, more: &[(&'k str, &'v str)]) -> Vec<(&'k str, &'v str)> {
        let own = [
            ("KAFKA_BROKER", self.kafka.as_str()),
            ("KAFKA_TOPIC", self.topic.as_str()),
            ("KAFKA_GROUP_ID", self.group.as_str()),
            ("MONGODB_URI", self.mongodb.as_str()),
            ("MONGODB_DB", self.database.as_str()),
        ];
        let file = self.sources_file.as_deref().map(|file| ("SOURCES_FILE", file));
        own.iter().copied().chain(file).chain(more.iter().copied()).collect()
    }

    /// The variables of a process that accepts every source.
    pub fn for_every_source<'k, 'v>(&'v self, more: &[(&'k str, &'v str)]) -> Vec<(&'k str, &'v str)> {
        self.environment(&[&[("EXPECTED_SOURCE", "*")], more].concat())
    }

    /// The dead-letter topic.
    pub fn dead_letter_topic(&self) -> String {
        format!("{}.dlq", self.topic)
    }
}
