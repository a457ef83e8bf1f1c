//! A broker and a MongoDB server, and the names that isolate tests on them.

use devservers::Broker;
use tokio::sync::OnceCell;

use crate::Process;
use crate::servers::{self, MongoServer, OwnBroker};

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
        let (broker, mongodb) = tokio::join!(servers::start_broker(), servers::start_mongodb(sync_on_commit));
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
        [&own, more].concat()
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
