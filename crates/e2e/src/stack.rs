//! The servers of a test, and the names that keep tests apart on them.

use std::sync::atomic::{AtomicU32, Ordering};

use devservers::{Broker, BrokerKind, BrokerOptions, Database, DatabaseOptions};
use tokio::sync::OnceCell;

use crate::Process;

static SHARED: OnceCell<Stack> = OnceCell::const_new();
static SHARED_QUICK: OnceCell<Stack> = OnceCell::const_new();

/// A broker and a database.
#[derive(Debug)]
pub struct Stack {
    /// The broker.
    pub broker: Broker,
    /// The database.
    pub database: Database,
    _folder: tempfile::TempDir,
}

impl Stack {
    /// Servers of the test's own, for a test that stops them. The database syncs each commit, so that a kill
    /// loses nothing that it acknowledged.
    pub async fn start() -> Self {
        Self::start_with(true).await
    }

    /// As [`Stack::start`], but the database syncs nothing: five times as fast, and not to be killed.
    pub async fn start_quick() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(sync_on_commit: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let kind = BrokerKind::from_env().expect("SLIPSTREAM_BROKER names a broker");
        let broker = BrokerOptions::new(kind, folder.path().join("kafka"));
        let database =
            DatabaseOptions { sync_on_commit, ..DatabaseOptions::new(folder.path().join("mongodb")) };
        let (broker, database) = tokio::join!(
            Broker::start(broker, devservers::Progress::silent()),
            Database::start(database, devservers::Progress::silent())
        );
        Self { broker: broker.expect("a broker"), database: database.expect("a database"), _folder: folder }
    }

    /// Servers that tests share; they die with the test binary.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Quick servers that tests share; they die with the test binary.
    pub async fn shared_quick() -> &'static Self {
        SHARED_QUICK.get_or_init(Self::start_quick).await
    }

    /// Whether the broker does what Apache Kafka does about groups and sessions; a test that needs that has nothing to
    /// say without it.
    pub fn is_apache_kafka() -> bool {
        BrokerKind::from_env().expect("SLIPSTREAM_BROKER names a broker") == BrokerKind::ApacheKafka
    }

    /// A producer for `names`, with more variables.
    pub fn producer(&self, names: &Names, more: &[(&str, &str)]) -> Process {
        Process::start("producer", &names.for_every_source(more))
    }

    /// A consumer for `names`, with more variables.
    pub fn consumer(&self, names: &Names, more: &[(&str, &str)]) -> Process {
        Process::start("consumer", &names.for_every_source(more))
    }

    /// Names that no other test has.
    pub fn names(&self) -> Names {
        Names::new(self.broker.bootstrap(), self.database.uri())
    }
}

/// Where a test's events go.
#[derive(Debug, Clone)]
pub struct Names {
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// MongoDB's URI.
    pub mongodb: String,
    /// The topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// The database.
    pub database: String,
}

impl Names {
    /// The variables of a process that works with these names; of two that are the same the later one wins.
    pub fn environment<'k, 'v>(&'v self, more: &[(&'k str, &'v str)]) -> Vec<(&'k str, &'v str)> {
        let own = [
            ("KAFKA_BROKER", self.kafka.as_str()),
            ("KAFKA_TOPIC", self.topic.as_str()),
            ("KAFKA_GROUP_ID", self.group.as_str()),
            ("MONGODB_URI", self.mongodb.as_str()),
            ("MONGODB_DB", self.database.as_str()),
        ];
        [&own, more].concat()
    }

    /// The same of a process to which every source is its own.
    pub fn for_every_source<'k, 'v>(&'v self, more: &[(&'k str, &'v str)]) -> Vec<(&'k str, &'v str)> {
        self.environment(&[&[("EXPECTED_SOURCE", "*")], more].concat())
    }

    /// Names on these servers that no other test has.
    pub fn new(kafka: String, mongodb: String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self {
            kafka,
            mongodb,
            topic: format!("events-{own}"),
            group: format!("group-{own}"),
            database: format!("db-{own}"),
        }
    }

    /// The topic of dead letters.
    pub fn dead_letter_topic(&self) -> String {
        format!("{}.dlq", self.topic)
    }
}
