//! The consumer's configuration: what the environment must say, checked whole before anything starts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use events::Source;
use kafka::topics::{BROKER_DEFAULT, TopicSpec, partitions, replication_factor};
use kafka::{KafkaProperties, check_consumer, check_producer, read_connection};
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};

use crate::kafka::clients;
use crate::mongo::{CALL_DEADLINE, StoreConfig, UpsertKeys, check_uri};
use crate::partition::batch::Limits;
use crate::partition::decision::Expected;
use crate::unlisted_code::UNLISTED_GRACE;

/// A lane that finishes nothing for this long, while records wait, needs a person.
const STUCK_AFTER: Duration = Duration::from_secs(300);

service::settings! {
    /// What the consumer reads from its environment.
    pub struct Settings {
        /// Kafka bootstrap servers, `host:port`, separated by commas. A scheme, as in
        /// `SASL_SSL://host:port`, sets `security.protocol`.
        kafka_broker: Kind::Required,
        /// Topic to read, or several separated by commas.
        kafka_topic: Kind::Default("events.raw"),
        /// Consumer group. Members of one group share the partitions.
        kafka_group_id: Kind::Default("adsbdb-mongo-writer"),
        /// MongoDB connection string. Its write concern counts (`majority` where it names none); `w=0` is refused.
        mongodb_uri: Kind::RequiredSecret,
        /// MongoDB database; each source has its own collection in it.
        mongodb_db: Kind::Default("kafka_events_db"),
        /// Source whose events are stored: one, several separated by commas, or `*` for all. Others are skipped.
        expected_source: Kind::Default("adsbdb"),
        /// Fields that make a document unique, separated by commas; dotted paths are allowed.
        upsert_keys: Kind::Default("event_id"),
        /// Most records in one write.
        batch_max_records: Kind::Default("1000"),
        /// Most bytes of encoded BSON in one write.
        batch_max_bytes: Kind::Default("8388608"),
        /// Topic for records that can never be stored.
        dead_letter_topic: Kind::Optional("the record's topic with `.dlq` added"),
        /// Partitions of topics that have to be made.
        kafka_partitions: Kind::Default("6"),
        /// Replication factor of topics that have to be made.
        kafka_replication_factor: Kind::Optional("the broker's default"),
        /// Further librdkafka properties, `key=value` separated by semicolons, as for SASL_SSL;
        /// in a value, `\;` is a semicolon and `\\` a backslash. The file has one property a line.
        kafka_properties: Kind::OptionalSecret("none"),
        /// Token of those who may set a record aside (`slipstream dead-letters add`).
        admin_token: Kind::OptionalSecret("nobody may"),
        /// Address for health and metrics.
        listen_addr: Kind::Default("0.0.0.0:8081"),
    }
}

/// The configuration, every value valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Rebootstrap servers.
    pub kafka_broker: String,
    /// Topics to read; at least one.
    pub topics: Vec<String>,
    /// Consumer group.
    pub group_id: String,
    /// Where documents go.
    pub store: StoreConfig,
    /// Sources that are stored.
    pub expected: Expected,
    /// Bounds of one write.
    pub limits: Limits,
    /// One dead-letter topic for all topics, if named.
    pub dead_letter_topic: Option<String>,
    /// Partitions of topics that have to be made.
    pub partitions: i32,
    /// Replication factor of topics that have to be made, or [`BROKER_DEFAULT`].
    pub replication_factor: i32,
    /// Further librdkafka properties.
    pub properties: KafkaProperties,
    /// The token of those who may set a record aside.
    pub admin_token: Option<Secret>,
    /// Address for health and metrics.
    pub listen_addr: SocketAddr,
    /// When a lane counts as stuck: 5 minutes. Not for the environment to say.
    pub stuck_after: Duration,
    /// The most that one call to the database may take: 10 s. Not for the environment to say.
    pub call_deadline: Duration,
    /// How long a record is refused with an unlisted code before it is dead-lettered: 60 s. Not for
    /// the environment to say.
    pub unlisted_grace: Duration,
}

impl Config {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// Every wrong variable, by name.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let connection = read_connection(&mut check, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let topics = check.value("kafka_topic", s.kafka_topic.as_ref(), topics);
        let group_id = check.value("kafka_group_id", s.kafka_group_id.as_ref(), parse::text);
        let uri = check.value("mongodb_uri", s.mongodb_uri.as_ref(), check_uri);
        let database = check.value("mongodb_db", s.mongodb_db.as_ref(), database_name);
        let expected = check.value("expected_source", s.expected_source.as_ref(), expected);
        let upsert_keys = check.value("upsert_keys", s.upsert_keys.as_ref(), UpsertKeys::parse);
        let records =
            check.value("batch_max_records", s.batch_max_records.as_ref(), parse::number(1..=100_000));
        let bytes =
            check.value("batch_max_bytes", s.batch_max_bytes.as_ref(), parse::number(1024..=12 << 20));
        let named = check.optional("dead_letter_topic", s.dead_letter_topic.as_ref(), parse::topic);
        let partitions = check.value("kafka_partitions", s.kafka_partitions.as_ref(), partitions);
        let replicas = s.kafka_replication_factor.as_ref();
        let replicas = check.optional("kafka_replication_factor", replicas, replication_factor);
        let admin_token = check.optional("admin_token", s.admin_token.as_ref(), admin_token);
        let listen_addr = check.value("listen_addr", s.listen_addr.as_ref(), parse::address);
        if let (Some(topics), Some(named)) = (&topics, &named) {
            refuse_a_circle(topics, named.as_deref(), &mut check);
        }
        let config = (|| {
            let (kafka_broker, properties) = connection?;
            Some(Self {
                kafka_broker,
                topics: topics?,
                group_id: group_id?,
                store: StoreConfig {
                    uri: uri?,
                    database: database?,
                    upsert_keys: upsert_keys?,
                    batch_max_bytes: bytes?,
                },
                expected: expected?,
                limits: Limits { records: records?, bytes: bytes? },
                dead_letter_topic: named?,
                partitions: partitions?,
                replication_factor: replicas?.unwrap_or(BROKER_DEFAULT),
                properties,
                admin_token: admin_token?,
                listen_addr: listen_addr?,
                stuck_after: STUCK_AFTER,
                call_deadline: CALL_DEADLINE,
                unlisted_grace: UNLISTED_GRACE,
            })
        })();
        check_properties(config.as_ref(), &mut check);
        check.finish(config)
    }

    /// The `client.id` of the consumers, by which they are told from other members of their group.
    pub fn client_id(&self) -> String {
        clients::client_id(self)
    }

    /// The dead-letter topic of `topic`.
    pub fn dead_letters_of(&self, topic: &str) -> String {
        dead_letters_of(topic, self.dead_letter_topic.as_deref())
    }

    /// The topics that must exist: those that are read first, then those for dead letters.
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

/// Properties that are right by themselves may not fit those that the clients have besides.
fn check_properties(config: Option<&Config>, check: &mut ConfigReader) {
    let Some(config) = config.filter(|config| !config.properties.is_empty()) else { return };
    let properties = &config.properties;
    let checked = check_consumer(&clients::reader(config), properties);
    if let Err(why) = checked.and_then(|()| check_producer(&clients::dead_letters(config), properties)) {
        check.add_error("KAFKA_PROPERTIES", why);
    }
}

fn dead_letters_of(topic: &str, named: Option<&str>) -> String {
    named.map_or_else(|| format!("{topic}.dlq"), str::to_owned)
}

/// A dead letter that is read again would be dead-lettered again, for ever.
fn refuse_a_circle(topics: &[String], named: Option<&str>, check: &mut ConfigReader) {
    if let Some(circle) =
        topics.iter().map(|topic| dead_letters_of(topic, named)).find(|t| topics.contains(t))
    {
        check.add_error(
            "DEAD_LETTER_TOPIC",
            format!("{circle:?} is one of KAFKA_TOPIC: dead letters would be read again"),
        );
    }
}

fn topics(text: &str) -> Result<Vec<String>, String> {
    let topics = text.split(',').map(|topic| parse::topic(topic.trim())).collect::<Result<Vec<_>, _>>()?;
    let distinct: BTreeSet<&String> = topics.iter().collect();
    if distinct.len() == topics.len() { Ok(topics) } else { Err("names a topic twice".into()) }
}

fn expected(text: &str) -> Result<Expected, String> {
    if text == "*" {
        return Ok(Expected::Any);
    }
    let source =
        |name: &str| Source::new(name.trim()).map_err(|why| format!("is not a list of sources: {why}"));
    Ok(Expected::Of(text.split(',').map(source).collect::<Result<_, _>>()?))
}

/// The parser of ADMIN_TOKEN.
///
/// # Errors
/// A text that an HTTP header cannot hold.
pub fn admin_token(text: &str) -> Result<Secret, String> {
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Secret::new(text)),
        false => Err("has characters other than visible ASCII, as a space".into()),
    }
}

/// The parser of MONGODB_DB.
///
/// # Errors
/// A name that MongoDB refuses.
pub fn database_name(text: &str) -> Result<String, String> {
    let wrong = |c: char| {
        c.is_control() || matches!(c, '/' | '\\' | '.' | ' ' | '"' | '$' | '*' | '<' | '>' | ':' | '|' | '?')
    };
    if text.len() > 63 || text.contains(wrong) {
        return Err("is not a database name: up to 63 bytes without /\\. \"$*<>:|?".into());
    }
    // Names that differ in case only cannot exist side by side.
    if ["admin", "config", "local"].iter().any(|own| own.eq_ignore_ascii_case(text)) {
        return Err("is one of MongoDB's own databases (admin, config, local): name another".into());
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
    fn the_defaults_are_those_of_the_original() {
        let config = read(&[]).unwrap();
        assert_eq!(config.topics, ["events.raw"]);
        assert_eq!(config.group_id, "adsbdb-mongo-writer");
        assert_eq!(config.store.database, "kafka_events_db");
        assert!(config.expected.takes("adsbdb") && !config.expected.takes("manual"));
        let specs = config.topic_specs();
        let made: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.replication_factor)).collect();
        assert_eq!(made, [("events.raw", -1), ("events.raw.dlq", -1)]);
    }

    #[test]
    fn every_wrong_variable_is_named_at_once_and_no_password_is_shown() {
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
    fn properties_that_do_not_fit_those_of_either_client_are_a_fault() {
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
    fn a_database_that_mongodb_refuses_or_keeps_for_itself_is_a_fault() {
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
    fn a_source_that_cannot_be_a_collection_is_a_fault() {
        for wrong in ["system.a", "a.system.b", "adsbdb,a.system.b", "a.", "a..b"] {
            assert_eq!(faulty(&[("EXPECTED_SOURCE", wrong)]), ["EXPECTED_SOURCE"], "{wrong}");
        }
    }

    #[test]
    fn dead_letters_never_go_to_a_topic_that_is_read() {
        assert_eq!(faulty(&[("DEAD_LETTER_TOPIC", "events.raw")]), ["DEAD_LETTER_TOPIC"]);
        assert_eq!(faulty(&[("KAFKA_TOPIC", "a,a.dlq")]), ["DEAD_LETTER_TOPIC"]);
        assert!(read(&[("KAFKA_TOPIC", "a,b"), ("DEAD_LETTER_TOPIC", "c")]).is_ok());
    }

    #[test]
    fn a_token_that_no_header_can_hold_is_a_fault_and_not_shown() {
        assert!(read(&[]).unwrap().admin_token.is_none());
        let token = read(&[("ADMIN_TOKEN", " hunter2 ")]).unwrap().admin_token.unwrap();
        assert_eq!((token.expose(), format!("{token:?}").as_str()), ("hunter2", "***"));
        for wrong in ["hunter 2", "hunt\ter2", "h\u{fc}nter2"] {
            let error = read(&[("ADMIN_TOKEN", wrong)]).unwrap_err().to_string();
            assert!(error.contains("ADMIN_TOKEN: ") && !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_list_of_sources_and_the_star_are_understood() {
        let list = read(&[("EXPECTED_SOURCE", "adsbdb, manual")]).unwrap().expected;
        assert!(list.takes("adsbdb") && list.takes("manual") && !list.takes("other"));
        assert!(read(&[("EXPECTED_SOURCE", "*")]).unwrap().expected.takes("other"));
    }
}
