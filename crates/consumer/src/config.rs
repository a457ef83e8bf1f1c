//! The consumer's configuration, read from the environment and checked completely at startup.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::kafka::group::ASSIGNOR;
use ::kafka::topics::{BROKER_DEFAULT, TopicSpec, partitions, replication_factor};
use ::kafka::{KafkaProperties, check_consumer, check_producer, client_config, read_connection};
use events::Source;
use rdkafka::ClientConfig;
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};
use sources::{Secrets, Sources};

use crate::configured_sources::{ConfiguredSources, ExpectedSources};
use crate::mongo::{CALL_DEADLINE, RecheckTimes, StoreConfig, UpsertKeys, check_uri};
use crate::partition::batch::BatchLimits;
use crate::partition::retry::UNLISTED_GRACE;

/// A worker that finishes nothing for this long, while records wait, needs an operator.
const STUCK_AFTER: Duration = Duration::from_secs(300);

service::settings! {
    /// The environment variables of the consumer.
    pub struct Settings {
        /// Kafka bootstrap servers, `host:port`, separated by commas. A scheme, as in
        /// `SASL_SSL://host:port`, sets `security.protocol`.
        kafka_broker: Kind::Required,
        /// Topic to read, or several separated by commas.
        kafka_topic: Kind::Default("events.raw"),
        /// Consumer group. Members of one group share the partitions.
        kafka_group_id: Kind::Default("adsbdb-mongo-writer"),
        /// MongoDB connection string. Its write concern applies, by default `majority`; `w=0` is
        /// rejected.
        mongodb_uri: Kind::RequiredSecret,
        /// MongoDB database. Each source has its own collection in it.
        mongodb_db: Kind::Default("kafka_events_db"),
        /// Sources whose events are stored: one, several separated by commas, or `*` for all.
        /// Events of other sources are skipped. With SOURCES_FILE, the default is the sources of the
        /// file, and a record of another source is a dead letter.
        expected_source: Kind::Default("adsbdb"),
        /// Fields that identify a document, separated by commas. Dotted paths are allowed.
        upsert_keys: Kind::Default("event_id"),
        /// Sources file: APIs to fetch and senders of records, each with its own documents.
        sources_file: Kind::Optional("every setting is as without a file"),
        /// Maximum records in one write.
        batch_max_records: Kind::Default("1000"),
        /// Maximum bytes of encoded BSON in one write.
        batch_max_bytes: Kind::Default("8388608"),
        /// Topic for records that can never be stored.
        dead_letter_topic: Kind::Optional("the record's topic with `.dlq` added"),
        /// Partitions of topics that the consumer creates.
        kafka_partitions: Kind::Default("6"),
        /// Replication factor of topics that the consumer creates.
        kafka_replication_factor: Kind::Optional("the broker's default"),
        /// Additional librdkafka properties, `key=value` separated by semicolons, as for SASL_SSL.
        /// In a value, `\;` is a semicolon and `\\` a backslash. The file has one property per
        /// line.
        kafka_properties: Kind::OptionalSecret("none"),
        /// Bearer token for setting a record aside (`slipstream dead-letters add`).
        admin_token: Kind::OptionalSecret("setting records aside is off"),
        /// Address of the health, metrics and admin endpoints.
        listen_addr: Kind::Default("0.0.0.0:8081"),
    }
}

/// The configuration. Every value is valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bootstrap servers of Kafka.
    pub kafka_broker: String,
    /// Topics to read, at least one: KAFKA_TOPIC, then those of the sources file.
    pub topics: Vec<String>,
    /// How many of `topics` are those of KAFKA_TOPIC.
    pub kafka_topics: usize,
    /// Consumer group.
    pub group_id: String,
    /// Database, URI and UPSERT_KEYS.
    pub store: StoreConfig,
    /// Sources whose events are stored, and how.
    pub expected: ExpectedSources,
    /// The sources file.
    pub sources: Option<Arc<Sources>>,
    /// Limits of one write.
    pub limits: BatchLimits,
    /// The dead-letter topic of all topics, if configured.
    pub dead_letter_topic: Option<String>,
    /// Partitions of topics that the consumer creates.
    pub partitions: i32,
    /// Replication factor of topics that the consumer creates, or [`BROKER_DEFAULT`].
    pub replication_factor: i32,
    /// Additional librdkafka properties.
    pub properties: KafkaProperties,
    /// Bearer token for setting a record aside.
    pub admin_token: Option<Secret>,
    /// Address of the health, metrics and admin endpoints.
    pub listen_addr: SocketAddr,
    /// Time without progress after which a worker counts as stuck: 5 minutes. No variable sets it.
    pub stuck_after: Duration,
    /// Deadline of one call to MongoDB: 10 s. No variable sets it.
    pub call_deadline: Duration,
    /// How long a record is rejected with an unlisted code before it is dead-lettered: 60 s. No
    /// variable sets it.
    pub unlisted_grace: Duration,
    /// When tombstones are examined again. No variable sets it.
    pub recheck_times: RecheckTimes,
}

impl Config {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// Lists every wrong variable by name.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
        let connection = read_connection(&mut check, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let sources = Sources::of_process(&mut check, s.sources_file.as_ref(), &environment, Secrets::Skip);
        let sources = sources.flatten().map(Arc::new);
        let topics = check.value("kafka_topic", s.kafka_topic.as_ref(), topics);
        let kafka_topics = topics.as_ref().map(Vec::len);
        let topics = topics.map(|topics| with_topics_of(topics, sources.as_ref()));
        let group_id = check.value("kafka_group_id", s.kafka_group_id.as_ref(), parse::text);
        let uri = check.value("mongodb_uri", s.mongodb_uri.as_ref(), check_uri);
        let database = check.value("mongodb_db", s.mongodb_db.as_ref(), database_name);
        let expected = check.value("expected_source", s.expected_source.as_ref(), expected_sources);
        let upsert_keys = check.value("upsert_keys", s.upsert_keys.as_ref(), UpsertKeys::parse);
        let records =
            check.value("batch_max_records", s.batch_max_records.as_ref(), parse::number(1..=100_000));
        let bytes =
            check.value("batch_max_bytes", s.batch_max_bytes.as_ref(), parse::number(1024..=12 << 20));
        let dead_letter_topic =
            check.optional("dead_letter_topic", s.dead_letter_topic.as_ref(), parse::topic);
        let partitions = check.value("kafka_partitions", s.kafka_partitions.as_ref(), partitions);
        let replicas = s.kafka_replication_factor.as_ref();
        let replicas = check.optional("kafka_replication_factor", replicas, replication_factor);
        let admin_token = check.optional("admin_token", s.admin_token.as_ref(), admin_token);
        let listen_addr = check.value("listen_addr", s.listen_addr.as_ref(), parse::address);
        let is_selected = s.expected_source.is_some();
        let expected = with_file(&mut check, sources.as_deref(), expected, is_selected, upsert_keys.as_ref());
        if let (Some(topics), Some(dead_letter_topic)) = (&topics, &dead_letter_topic) {
            check_dead_letter_topic(topics, dead_letter_topic.as_deref(), &mut check);
        }
        let config = (|| {
            let (kafka_broker, properties) = connection?;
            Some(Self {
                kafka_broker,
                topics: topics?,
                kafka_topics: kafka_topics?,
                group_id: group_id?,
                store: StoreConfig {
                    uri: uri?,
                    database: database?,
                    upsert_keys: upsert_keys?,
                    batch_max_bytes: bytes?,
                },
                expected: expected?,
                sources,
                limits: BatchLimits { records: records?, bytes: bytes? },
                dead_letter_topic: dead_letter_topic?,
                partitions: partitions?,
                replication_factor: replicas?.unwrap_or(BROKER_DEFAULT),
                properties,
                admin_token: admin_token?,
                listen_addr: listen_addr?,
                stuck_after: STUCK_AFTER,
                call_deadline: CALL_DEADLINE,
                unlisted_grace: UNLISTED_GRACE,
                recheck_times: RecheckTimes::default(),
            })
        })();
        check_properties(config.as_ref(), &mut check);
        check.finish(config)
    }

    /// Properties of the group member.
    pub fn group_member(&self) -> ClientConfig {
        let defaults = [
            ("group.id", self.group_id.as_str()),
            // Only offsets of finished records are committed, explicitly: G2 depends on these two.
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            // A new group starts at the first record that Kafka still has.
            ("auto.offset.reset", "earliest"),
            // A rebalance does not interrupt partitions that stay with their member.
            ("partition.assignment.strategy", ASSIGNOR),
            // A dead member is detected after 10 s; three heartbeats fit into that time.
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "3000"),
            // A partition that was just assigned or resumed waits for the fetch that is in progress
            // at its broker. The default is 500 ms. Available records are sent at once in any case.
            ("fetch.wait.max.ms", "100"),
            // The default pauses a partition's fetches for a second whenever the local queue is
            // full.
            ("fetch.queue.backoff.ms", "20"),
            ("fetch.error.backoff.ms", "100"),
            // Memory limits: bytes per partition, bytes per response, and bytes and records that
            // wait for a poll, over all partitions.
            ("fetch.message.max.bytes", "1048576"),
            ("fetch.max.bytes", "8388608"),
            ("queued.max.messages.kbytes", "8192"),
            ("queued.min.messages", "20000"),
            // A topic or partition that is created later is found within this time.
            ("topic.metadata.refresh.interval.ms", "3000"),
        ];
        client_config(&self.kafka_broker, "slipstream-consumer", &defaults, &self.properties)
    }

    /// Properties of the producer of dead letters.
    pub fn dead_letter_producer(&self) -> ClientConfig {
        let defaults = [
            // A dead letter replaces its record: it must be on every replica, once.
            ("acks", "all"),
            ("enable.idempotence", "true"),
            // The dead letters of one batch share requests.
            ("linger.ms", "2"),
            // Bounds one attempt. The worker retries without limit and reports the cause meanwhile.
            ("message.timeout.ms", "5000"),
            // The topic decides which records are too large, not this client.
            ("message.max.bytes", "104857600"),
            // A record that fitted its topic only because it was compressed must fit here too.
            ("compression.type", "zstd"),
            // The same key goes to the same partition as with the original system's client.
            ("partitioner", "murmur2_random"),
        ];
        client_config(&self.kafka_broker, "slipstream-dead-letters", &defaults, &self.properties)
    }

    /// Properties of the client that creates topics.
    pub fn topic_admin(&self) -> ClientConfig {
        client_config(&self.kafka_broker, "slipstream-consumer-upkeep", &[], &self.properties)
    }

    /// The `client.id` of the consumers, which distinguishes them from foreign group members.
    pub fn client_id(&self) -> String {
        self.group_member().get("client.id").unwrap_or_default().to_owned()
    }

    /// The dead-letter topic of `topic`.
    pub fn dead_letters_of(&self, topic: &str) -> String {
        dead_letters_of(topic, self.dead_letter_topic.as_deref())
    }

    /// The topics that events of `source` are sent to: its own, else those of KAFKA_TOPIC.
    pub fn topics_of(&self, source: &str) -> Vec<String> {
        let Some(file) = &self.sources else { return self.topics.clone() };
        if let Some(topic) = file.get(source).and_then(|source| source.topic.clone()) {
            return vec![topic];
        }
        self.topics[..self.kafka_topics.min(self.topics.len())].to_vec()
    }

    /// The topics that must exist: first the source topics, then the dead-letter topics.
    pub fn topic_specs(&self) -> Vec<TopicSpec> {
        let spec = |name: String, dead_letters_of| TopicSpec {
            name,
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            dead_letters_of,
        };
        let mut specs: Vec<TopicSpec> = self.topics.iter().map(|topic| spec(topic.clone(), vec![])).collect();
        for topic in &self.topics {
            let name = self.dead_letters_of(topic);
            match specs.iter_mut().find(|spec| spec.name == name) {
                Some(shared) => shared.dead_letters_of.push(topic.clone()),
                None => specs.push(spec(name, vec![topic.clone()])),
            }
        }
        specs
    }
}

/// The rules of the sources file, if there is one. `expected` is EXPECTED_SOURCE, which selects only
/// if it is set.
fn with_file(
    check: &mut ConfigReader,
    file: Option<&Sources>,
    expected: Option<ExpectedSources>,
    is_selected: bool,
    keys: Option<&UpsertKeys>,
) -> Option<ExpectedSources> {
    let (Some(file), Some(keys)) = (file, keys) else { return expected };
    let selected = expected?;
    match ConfiguredSources::new(file, keys, is_selected.then_some(selected)) {
        Ok(configured) => Some(ExpectedSources::Configured(Arc::new(configured))),
        Err(why) => {
            check.add_error("EXPECTED_SOURCE", why);
            None
        }
    }
}

/// `topics`, and those of the sources that have one of their own.
fn with_topics_of(mut topics: Vec<String>, sources: Option<&Arc<Sources>>) -> Vec<String> {
    for topic in sources.iter().flat_map(|sources| sources.iter()).filter_map(|source| source.topic.as_ref())
    {
        if !topics.contains(topic) {
            topics.push(topic.clone());
        }
    }
    topics
}

/// Checks that KAFKA_PROPERTIES are compatible with the other properties of the clients.
fn check_properties(config: Option<&Config>, check: &mut ConfigReader) {
    let Some(config) = config.filter(|config| !config.properties.is_empty()) else { return };
    let properties = &config.properties;
    let checked = check_consumer(&config.group_member(), properties);
    if let Err(why) = checked.and_then(|()| check_producer(&config.dead_letter_producer(), properties)) {
        check.add_error("KAFKA_PROPERTIES", why);
    }
}

fn dead_letters_of(topic: &str, shared: Option<&str>) -> String {
    shared.map_or_else(|| format!("{topic}.dlq"), str::to_owned)
}

/// Rejects a dead-letter topic that the consumer reads: it would dead-letter its dead letters
/// without end.
fn check_dead_letter_topic(topics: &[String], shared: Option<&str>, check: &mut ConfigReader) {
    if let Some(read) = topics.iter().map(|topic| dead_letters_of(topic, shared)).find(|t| topics.contains(t))
    {
        check.add_error(
            "DEAD_LETTER_TOPIC",
            format!(
                "{read:?} is also in KAFKA_TOPIC or SOURCES_FILE; dead letters need a topic that is not read"
            ),
        );
    }
}

fn topics(text: &str) -> Result<Vec<String>, String> {
    let topics = text.split(',').map(|topic| parse::topic(topic.trim())).collect::<Result<Vec<_>, _>>()?;
    let distinct: BTreeSet<&String> = topics.iter().collect();
    if distinct.len() == topics.len() { Ok(topics) } else { Err("contains a topic twice".into()) }
}

fn expected_sources(text: &str) -> Result<ExpectedSources, String> {
    if text == "*" {
        return Ok(ExpectedSources::All);
    }
    let source =
        |name: &str| Source::new(name.trim()).map_err(|why| format!("is not a list of sources: {why}"));
    Ok(ExpectedSources::Listed(text.split(',').map(source).collect::<Result<_, _>>()?))
}

/// Parses ADMIN_TOKEN.
///
/// # Errors
/// The text has a space or another character that is not visible ASCII.
pub fn admin_token(text: &str) -> Result<Secret, String> {
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Secret::new(text)),
        false => Err("contains a space or another character that is not visible ASCII".into()),
    }
}

/// Parses MONGODB_DB.
///
/// # Errors
/// MongoDB rejects this name, or reserves it.
pub fn database_name(text: &str) -> Result<String, String> {
    let wrong = |c: char| {
        c.is_control() || matches!(c, '/' | '\\' | '.' | ' ' | '"' | '$' | '*' | '<' | '>' | ':' | '|' | '?')
    };
    if text.len() > 63 || text.contains(wrong) {
        return Err("is not a database name: up to 63 bytes without /\\. \"$*<>:|?".into());
    }
    // MongoDB does not allow two names that differ only in case.
    if ["admin", "config", "local"].iter().any(|own| own.eq_ignore_ascii_case(text)) {
        return Err("is a database that MongoDB reserves (admin, config, local); use another name".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let base = [("KAFKA_BROKER", "k:9092"), ("MONGODB_URI", "mongodb://u:hunter2@m:27017")];
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Config::from_environment(base.iter().chain(pairs).map(owned))
    }

    fn faulty(pairs: &[(&str, &str)]) -> Vec<String> {
        read(pairs).unwrap_err().0.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn defaults_equal_those_of_the_original_system() {
        let config = read(&[]).unwrap();
        assert_eq!(config.topics, ["events.raw"]);
        assert_eq!(config.group_id, "adsbdb-mongo-writer");
        assert_eq!(config.store.database, "kafka_events_db");
        assert!(config.expected.contains("adsbdb") && !config.expected.contains("manual"));
        let specs = config.topic_specs();
        let made: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.replication_factor)).collect();
        assert_eq!(made, [("events.raw", -1), ("events.raw.dlq", -1)]);
    }

    #[test]
    fn all_wrong_variables_are_reported_at_once_without_passwords() {
        let error = read(&[
            ("KAFKA_BROKER", "no-port"),
            ("KAFKA_TOPIC", "a,,b"),
            ("MONGODB_URI", "mongodb//u:hunter2@m"),
            ("MONGODB_DB", "a.b"),
            ("EXPECTED_SOURCE", "system.users"),
            ("UPSERT_KEYS", " , "),
            ("BATCH_MAX_RECORDS", "abc"),
            ("BATCH_MAX_BYTES", "1"),
            ("DEAD_LETTER_TOPIC", "no spaces"),
            ("KAFKA_PARTITIONS", "0"),
            ("KAFKA_REPLICATION_FACTOR", "x"),
            ("KAFKA_PROPERTIES", "enable.auto.commit=true"),
            ("LISTEN_ADDR", "8081"),
        ])
        .unwrap_err();
        assert_eq!(error.0.len(), 13, "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn properties_incompatible_with_either_client_are_rejected() {
        for (wrong, words) in [
            ("linger.ms=20000", "message.timeout.ms"),
            ("max.poll.interval.ms=9000", "session.timeout.ms"),
            ("reconnect.backoff.ms=500", "reconnect.backoff.max.ms"),
        ] {
            let error = read(&[("KAFKA_PROPERTIES", wrong)]).unwrap_err().to_string();
            assert!(error.contains("KAFKA_PROPERTIES: ") && error.contains(words), "{error}");
        }
        read(&[("KAFKA_PROPERTIES", "linger.ms=20;max.poll.interval.ms=400000")]).unwrap();
    }

    #[test]
    fn database_names_invalid_or_reserved_in_mongodb_are_rejected() {
        let long = "d".repeat(63);
        for right in ["kafka_events_db", "a-b", "9", "événements", "administration", "local2", &long] {
            assert_eq!(read(&[("MONGODB_DB", right)]).unwrap().store.database, right);
        }
        let too_long = "é".repeat(32);
        for wrong in [
            "a.b",
            "a b",
            "a/b",
            "a\\b",
            "a\"b",
            "$external",
            "a*",
            "a<",
            "a>",
            "a:b",
            "a|b",
            "a?",
            "a\0b",
            "a\tb",
            &too_long,
            "admin",
            "Admin",
            "config",
            "local",
            "LOCAL",
        ] {
            assert_eq!(faulty(&[("MONGODB_DB", wrong)]), ["MONGODB_DB"], "{wrong:?}");
        }
    }

    #[test]
    fn sources_invalid_as_collection_names_are_rejected() {
        for wrong in ["system.a", "a.system.b", "adsbdb,a.system.b", "a.", "a..b"] {
            assert_eq!(faulty(&[("EXPECTED_SOURCE", wrong)]), ["EXPECTED_SOURCE"], "{wrong}");
        }
    }

    #[test]
    fn dead_letter_topic_that_is_also_read_is_rejected() {
        assert_eq!(faulty(&[("DEAD_LETTER_TOPIC", "events.raw")]), ["DEAD_LETTER_TOPIC"]);
        assert_eq!(faulty(&[("KAFKA_TOPIC", "a,a.dlq")]), ["DEAD_LETTER_TOPIC"]);
        assert!(read(&[("KAFKA_TOPIC", "a,b"), ("DEAD_LETTER_TOPIC", "c")]).is_ok());
    }

    fn sources_file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        std::fs::write(&path, text).unwrap();
        (folder, path.display().to_string())
    }

    const TWO: &str = "
sources:
  a: {push: {}, event: {id: /id}, topic: a.raw}
  b: {push: {}, event: {id: /id}, store: {collection: other, keys: [x, y.z]}}
  c: {push: {}, event: {id: /id}, topic: events.raw}
";

    #[test]
    fn topics_of_the_sources_file_are_read_and_created_after_kafka_topic() {
        let (_folder, path) = sources_file(TWO);
        let config = read(&[("SOURCES_FILE", &path), ("KAFKA_TOPIC", "events.raw,second")]).unwrap();
        assert_eq!(config.topics, ["events.raw", "second", "a.raw"]);
        let names: Vec<String> = config.topic_specs().into_iter().map(|spec| spec.name).collect();
        let dead_letters = ["events.raw.dlq", "second.dlq", "a.raw.dlq"];
        assert_eq!(names, [&["events.raw", "second", "a.raw"], &dead_letters[..]].concat());
        assert_eq!(config.topics_of("a"), ["a.raw"]);
        assert_eq!(config.topics_of("b"), ["events.raw", "second"]);
        assert!(config.expected.contains("a") && !config.expected.contains("adsbdb"));
        let source = |name: &str| Source::new(name).unwrap();
        let store = config.expected.store_of(&source("b"), &config.store.upsert_keys);
        assert_eq!((store.collection.as_str(), store.keys.to_string().as_str()), ("other", "x,y.z"));
        let wrong = read(&[("SOURCES_FILE", &path), ("DEAD_LETTER_TOPIC", "a.raw")]).unwrap_err();
        let fault = ":3:42: sources.a.topic: is the dead-letter topic of events.raw";
        assert!(wrong.to_string().contains(fault), "{wrong}");
    }

    #[test]
    fn a_listed_source_may_not_have_the_collection_of_a_source_of_the_file() {
        let (_folder, path) = sources_file(TWO);
        assert_eq!(faulty(&[("SOURCES_FILE", &path), ("EXPECTED_SOURCE", "a,other")]), ["EXPECTED_SOURCE"]);
        let config = read(&[("SOURCES_FILE", &path), ("EXPECTED_SOURCE", "*")]).unwrap();
        assert!(config.expected.contains("new") && config.expected.contains("b"));
        assert!(!config.expected.contains("other"), "its collection is that of b");
    }

    #[test]
    fn all_faults_of_the_sources_file_are_reported_with_other_variables() {
        let (_folder, path) = sources_file("sources: {a: {push: {}, nonsense: 1}, b: 5}");
        let error = read(&[("SOURCES_FILE", &path), ("LISTEN_ADDR", "8081")]).unwrap_err();
        assert_eq!(error.0.len(), 2, "{error}");
        let lines = error.to_string();
        assert!(lines.lines().filter(|line| line.starts_with(&format!("{path}:1:"))).count() >= 2, "{lines}");
        assert_eq!(faulty(&[("SOURCES_FILE", "/nonexistent/file")]), ["SOURCES_FILE"]);
    }

    #[test]
    fn admin_token_invalid_in_a_header_is_rejected_and_not_shown() {
        assert!(read(&[]).unwrap().admin_token.is_none());
        let token = read(&[("ADMIN_TOKEN", " hunter2 ")]).unwrap().admin_token.unwrap();
        assert_eq!((token.expose(), format!("{token:?}").as_str()), ("hunter2", "***"));
        for wrong in ["hunter 2", "hunt\ter2", "h\u{fc}nter2"] {
            let error = read(&[("ADMIN_TOKEN", wrong)]).unwrap_err().to_string();
            assert!(error.contains("ADMIN_TOKEN: ") && !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn expected_sources_accept_a_list_and_a_star() {
        let list = read(&[("EXPECTED_SOURCE", "adsbdb, manual")]).unwrap().expected;
        assert!(list.contains("adsbdb") && list.contains("manual") && !list.contains("other"));
        assert!(read(&[("EXPECTED_SOURCE", "*")]).unwrap().expected.contains("other"));
    }
}
