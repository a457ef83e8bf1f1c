//! KAFKA_BROKER and KAFKA_PROPERTIES: the connection of every client to Kafka, and the properties
//! that every client has, each with its reason. The properties of one particular client are in the
//! crate that uses it.
//!
//! No error text shows a property value or text that may belong to one.

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::{Delivery, OwnedDeliveryResult};
use rdkafka::types::RDKafkaConfRes;

use service::{ConfigReader, Secret};

use crate::bootstrap_servers::{BootstrapServers, upper};
use crate::context::QuietContext;

/// Properties that the guarantees need. KAFKA_PROPERTIES must not contain them.
const RESERVED: &[&str] = &[
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.auto.commit",
    "auto.commit.enable",
    "enable.auto.offset.store",
    "partition.assignment.strategy",
    "partitioner",
    "auto.offset.reset",
    "allow.auto.create.topics",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "transactional.id",
    "group.protocol",
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    // A member with a static id does not leave the group when it stops. Its partitions would wait
    // until the session expires.
    "group.instance.id",
    // Without reports of successful deliveries, no event could be accepted.
    "delivery.report.only.error",
    // Closed connections show that a broker is unavailable.
    "log.connection.close",
    // Statistics show that a client has lost all brokers.
    "statistics.interval.ms",
];

/// Parts of the names of properties whose values are or contain secrets.
const SECRET: &[&str] = &["password", "secret", "pem", "username", "jaas", "oauthbearer", "ssl.key", "token"];

/// KAFKA_PROPERTIES: librdkafka properties of every client. `Debug` does not show the values.
#[derive(Debug, Clone, Default)]
pub struct KafkaProperties(Vec<(String, Secret)>);

/// The bootstrap servers without schemes, and the properties.
pub type Connection = (String, KafkaProperties);

/// Reads KAFKA_BROKER and KAFKA_PROPERTIES. Returns `None` and adds errors to `reader` on failure.
///
/// A scheme in KAFKA_BROKER sets `security.protocol`. If KAFKA_PROPERTIES sets it too, both must be
/// equal.
pub fn read_connection(
    reader: &mut ConfigReader,
    broker: Option<&String>,
    properties: Option<&String>,
) -> Option<Connection> {
    let brokers = reader.value("kafka_broker", broker, BootstrapServers::parse);
    let parse = match reader.is_from_file("KAFKA_PROPERTIES") {
        true => KafkaProperties::parse_file,
        false => KafkaProperties::parse,
    };
    let properties = reader.optional("kafka_properties", properties, parse);
    let (brokers, properties) = (brokers?, properties?.unwrap_or_default());
    let protocol = properties.get("security.protocol");
    match (brokers.protocol, protocol) {
        (Some(scheme), Some(protocol)) if !scheme.eq_ignore_ascii_case(protocol) => {
            let problem = format!(
                "has the scheme {}, but KAFKA_PROPERTIES has another security.protocol: correct the property, or \
                 write host:port without a scheme",
                upper(scheme)
            );
            reader.add_error("KAFKA_BROKER", problem);
            None
        }
        (Some(scheme), None) => Some((brokers.servers, properties.with("security.protocol", scheme))),
        _ => Some((brokers.servers, properties)),
    }
}

impl KafkaProperties {
    /// Parses the variable: `key=value` pairs, separated by semicolons.
    ///
    /// In a value, `\;` is a semicolon and `\\` is a backslash. Any other backslash is literal.
    ///
    /// # Errors
    /// A pair has no `=`, librdkafka rejects the property or its value, or the property must not
    /// change because a guarantee depends on it. No error shows a value or text of one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries =
            (1..).zip(split_entries(text)).map(|(number, entry)| (format!("entry {number}"), entry));
        let entries: Vec<_> = entries.collect();
        reject_several(&entries, '\n', "a semicolon separates them")?;
        let hint = "entries are separated by semicolons, and a semicolon within a value is written \\;";
        Self::from_entries(entries, hint)
    }

    /// Parses the file: one `key=value` pair per line, without escapes.
    ///
    /// Blank lines and lines that begin with `#` are ignored.
    ///
    /// # Errors
    /// As [`KafkaProperties::parse`]. A line with several properties is also an error.
    pub fn parse_file(text: &str) -> Result<Self, String> {
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with('#'));
        let entries: Vec<_> =
            lines.map(|(number, line)| (format!("line {number}"), line.to_owned())).collect();
        reject_several(&entries, ';', "the file has one property per line")?;
        Self::from_entries(entries, "the file has one property per line")
    }

    fn from_entries(entries: impl IntoIterator<Item = (String, String)>, hint: &str) -> Result<Self, String> {
        let mut pairs = Vec::new();
        let mut after_secret = false;
        for (position, entry) in entries.into_iter().filter(|(_, entry)| !entry.trim().is_empty()) {
            let Some((key, value)) = entry.split_once('=') else {
                return Err(format!("is not key=value in {position} ({hint})"));
            };
            let (key, value) = (canonical_name(key.trim()), value.trim());
            if RESERVED.contains(&key) {
                return Err(format!(
                    "names {key}, which Slipstream sets itself because its guarantees need it"
                ));
            }
            match check_property(key, value) {
                Ok(()) => {}
                Err(Some(detail)) => return Err(rejected_value(key, &detail)),
                // The text after a secret may be a part of it.
                Err(None) if after_secret || !looks_like_name(key) => {
                    return Err(format!("has no librdkafka property in {position} ({hint})"));
                }
                Err(None) => return Err(format!("names {key}, which librdkafka does not know")),
            }
            after_secret |= SECRET.iter().any(|part| key.contains(part));
            pairs.push((key.to_owned(), Secret::new(value)));
        }
        let properties = Self(pairs);
        let mut config = ClientConfig::new();
        properties.apply(&mut config);
        config.set("enable.idempotence", "true");
        check_producer(&config, &properties).map(|()| properties)
    }

    /// Whether there are no properties.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a property. The last one counts, as in librdkafka.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.expose())
    }

    /// Adds a property without checks.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.0.push((key.to_owned(), Secret::new(value)));
        self
    }

    fn apply(&self, config: &mut ClientConfig) {
        for (key, value) in &self.0 {
            config.set(key, value.expose());
        }
        if self.needs_ca_certificates() && !openssl_has_ca_certificates() {
            config.set("ssl.ca.location", "probe");
        }
    }

    /// Whether the connection uses TLS and no property sets CA certificates.
    fn needs_ca_certificates(&self) -> bool {
        let protocol = self.get("security.protocol").unwrap_or_default();
        ["ssl", "sasl_ssl"].iter().any(|tls| tls.eq_ignore_ascii_case(protocol))
            && ["ssl.ca.location", "ssl.ca.pem"].iter().all(|key| self.get(key).is_none())
    }

    /// Replaces property values in an error text of librdkafka, such as the path of a missing file.
    /// Names of properties stay.
    fn redact(&self, text: &str) -> String {
        let is_harmless =
            |value: &str| value.len() < 3 || value.parse::<f64>().is_ok() || value.parse::<bool>().is_ok();
        let values = self.0.iter().map(|(_, value)| value.expose()).filter(|value| !is_harmless(value));
        values.fold(text.to_owned(), |text, value| replace_words(&text, value, "***"))
    }
}

/// Rejects an entry with several properties behind a separator of the other form. The rest of the
/// entry would otherwise become a value.
fn reject_several(entries: &[(String, String)], separator: char, hint: &str) -> Result<(), String> {
    let several = |entry: &str| {
        let mut further = entry.trim().split(separator).skip(1).filter_map(|part| part.split_once('='));
        further.any(|(key, _)| is_known(key.trim()))
    };
    match entries.iter().find(|(_, entry)| several(entry)) {
        Some((position, _)) => Err(format!("has several properties in {position}: {hint}")),
        None => Ok(()),
    }
}

/// Whether the environment variables of OpenSSL set CA certificates.
///
/// The built-in path of the vendored OpenSSL does not exist. Without these variables, librdkafka
/// must search the paths of the distributions (`probe`).
fn openssl_has_ca_certificates() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(is_set)
}

/// Replaces an alias of librdkafka. If a property and its alias are set, either could win.
fn canonical_name(key: &str) -> &str {
    match key {
        "compression.codec" => "compression.type",
        "queue.buffering.max.ms" => "linger.ms",
        key => key,
    }
}

fn looks_like_name(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'.' | b'_' | b'-'))
}

/// The error text for a rejected value. librdkafka's own text, `detail`, contains the value.
fn rejected_value(key: &str, detail: &str) -> String {
    let range = detail.split_once("outside allowed range ").map(|(_, range)| range.trim());
    let range = range.map_or_else(String::new, |range| format!(" (allowed range: {range})"));
    format!("has a value of {key} that librdkafka rejects{range}")
}

/// Checks one property with librdkafka.
///
/// # Errors
/// The reason if the value is invalid, or `None` if the property is unknown.
fn check_property(key: &str, value: &str) -> Result<(), Option<String>> {
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_INVALID, detail, ..)) => Err(Some(detail)),
        Err(_) => Err(None),
    }
}

fn is_known(key: &str) -> bool {
    check_property(key, "") != Err(None)
}

/// Splits KAFKA_PROPERTIES into entries and resolves the escapes.
fn split_entries(text: &str) -> Vec<String> {
    let mut entries = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let escaped = if c == '\\' { rest.next_if(|next| matches!(next, ';' | '\\')) } else { None };
        match (c, entries.last_mut()) {
            (';', _) => entries.push(String::new()),
            (c, Some(entry)) => entry.push(escaped.unwrap_or(c)),
            (_, None) => {}
        }
    }
    entries
}

/// Replaces `word` except within a longer word or a property name.
fn replace_words(text: &str, word: &str, by: &str) -> String {
    let inner = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let (mut result, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(word) {
        let is_part = before.ends_with(inner) || after.starts_with(inner);
        result.push_str(before);
        result.push_str(if is_part { word } else { by });
        rest = after;
    }
    result + rest
}

/// The configuration of a client.
///
/// `defaults` are the properties of the particular client. `properties` (KAFKA_PROPERTIES) override
/// them, except those that a guarantee needs.
pub fn client_config(
    bootstrap: &str,
    client_id: &str,
    defaults: &[(&str, &str)],
    properties: &KafkaProperties,
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", client_id)
        // A half-open connection must close in time to resume work within 10 s. The default is 60
        // s. librdkafka checks the timeout once a second.
        .set("socket.timeout.ms", "8000")
        .set("socket.connection.setup.timeout.ms", "2000")
        .set("socket.keepalive.enable", "true")
        // A small request must not wait for further data, because a response waits for its
        // acknowledgement.
        .set("socket.nagle.disable", "true")
        // Work must resume within 5 s of a server's return. The default grows to 10 s.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200")
        // If no known broker responds, the client uses its bootstrap servers again. The default is
        // 5 minutes. A client without any broker does not do this: see `context::Rebootstrap`.
        .set("metadata.recovery.rebootstrap.trigger.ms", "2000")
        // Slipstream creates topics with the configured partitions. A broker would use its default.
        .set("allow.auto.create.topics", "false");
    for (key, value) in defaults {
        config.set(*key, *value);
    }
    properties.apply(&mut config);
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// Returns the delivery of a `FutureProducer` only if it has an offset, which proves that the
/// record is stored.
///
/// # Errors
/// The delivery failed, or it has no offset. librdkafka reports the latter if the broker has a
/// later record of this client. On a recreated topic, that does not prove that this record is
/// stored.
pub fn require_offset(delivery: OwnedDeliveryResult) -> Result<Delivery, KafkaError> {
    match delivery {
        Ok(delivery) if delivery.offset >= 0 => Ok(delivery),
        Ok(_) => Err(KafkaError::MessageProduction(RDKafkaErrorCode::DuplicateSequenceNumber)),
        Err((error, _)) => Err(error),
    }
}

/// Checks that librdkafka can create a producer of `config`, without a connection.
///
/// Some properties exclude each other and some name files. Such errors appear only at creation.
///
/// # Errors
/// The problem, which continues a sentence with the name of the variable. It contains no values of
/// `properties`.
pub fn check_producer(config: &ClientConfig, properties: &KafkaProperties) -> Result<(), String> {
    check_creation::<AdminClient<QuietContext>>(config, properties)
}

/// As [`check_producer`], for a consumer.
///
/// # Errors
/// As [`check_producer`].
pub fn check_consumer(config: &ClientConfig, properties: &KafkaProperties) -> Result<(), String> {
    check_creation::<BaseConsumer<QuietContext>>(config, properties)
}

fn check_creation<T: FromClientConfigAndContext<QuietContext>>(
    config: &ClientConfig,
    properties: &KafkaProperties,
) -> Result<(), String> {
    let mut unconnected = config.clone();
    unconnected.remove("bootstrap.servers");
    let created = unconnected.create_with_context::<_, T>(QuietContext);
    created.map(drop).map_err(|error| creation_problem(error, properties))
}

/// The start of librdkafka's error text for a SASL mechanism that is not built in.
const NO_SASL_PROVIDER: &str = "No provider for SASL mechanism";
const NEEDS_MECHANISM: &str = "needs sasl.mechanism=PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER for its \
                               security.protocol: librdkafka's default, GSSAPI, is not built in";

fn creation_problem(error: KafkaError, properties: &KafkaProperties) -> String {
    match error {
        KafkaError::ClientCreation(detail) if detail.starts_with(NO_SASL_PROVIDER) => NEEDS_MECHANISM.into(),
        KafkaError::ClientCreation(detail) => {
            format!("is rejected by librdkafka: {}", properties.redact(&detail))
        }
        KafkaError::ClientConfig(_, detail, key, _) => rejected_value(&key, &detail),
        _ => "is rejected by librdkafka".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Kind;

    service::settings! {
        /// The two variables of a connection.
        struct Settings {
            /// Bootstrap servers.
            kafka_broker: Kind::Required,
            /// Properties.
            kafka_properties: Kind::OptionalSecret("none"),
        }
    }

    fn connect(pairs: &[(&str, &str)]) -> Result<ClientConfig, String> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (s, mut reader) = ConfigReader::read::<Settings>(Settings::VARIABLES, pairs);
        let connection = read_connection(&mut reader, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let (servers, properties) = reader.finish(connection).map_err(|errors| errors.to_string())?;
        Ok(client_config(&servers, "c", &[], &properties))
    }

    #[test]
    fn a_property_that_a_guarantee_needs_is_rejected_by_name() {
        for key in [
            "acks",
            "enable.idempotence",
            "enable.auto.commit",
            "partition.assignment.strategy",
            "delivery.report.only.error",
            "log.connection.close",
            "statistics.interval.ms",
            "group.instance.id",
        ] {
            let error = KafkaProperties::parse(&format!("client.rack=a;{key}=1")).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn an_unknown_property_is_rejected_by_name_without_its_value() {
        let error = KafkaProperties::parse("no.such.property=hunter2").unwrap_err();
        assert!(error.contains("no.such.property") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn escaped_semicolons_and_backslashes_are_parts_of_a_value() {
        for (text, password) in [
            (r"sasl.password=a\;b", "a;b"),
            (r"sasl.password=a\\;", r"a\"),
            (r"sasl.password=\;\;\\", r";;\"),
            (r"sasl.password=a\b", r"a\b"),
            (r"sasl.password=a\", r"a\"),
            (r"sasl.password=\\\;a=b", r"\;a=b"),
            (" sasl.username=u; sasl.password = a=b ;", "a=b"),
        ] {
            let properties = KafkaProperties::parse(text).expect(text);
            let config = client_config("h:1", "c", &[], &properties);
            assert_eq!(config.get("sasl.password"), Some(password), "{text}");
            assert!(!format!("{properties:?}").contains(password), "{text}");
        }
    }

    #[test]
    fn text_after_a_secret_is_never_shown() {
        for text in [
            "sasl.password=abc;hunter2",
            "sasl.password=abc;hunter=2",
            "sasl.password=abc;hunter.x=2;client.rack=a",
            "sasl.password=abc;client.rack=a;hunter=2",
            "sasl.username=u;hunter=2",
            "sasl.oauthbearer.client.secret=a;hunter=2",
            "ssl.key.pem=a;hunter=2",
            "sasl.jaas.config=x required password=hunter2;",
            "hunter/2+=1",
            "Hunter2=1",
        ] {
            let error = KafkaProperties::parse(text).expect_err(text);
            assert!(!error.to_lowercase().contains("hunter"), "{text}: {error}");
            let error = KafkaProperties::parse_file(&text.replace(';', "\n")).expect_err(text);
            assert!(!error.to_lowercase().contains("hunter"), "{text}: {error}");
        }
        let error = KafkaProperties::parse("client.rack=a;sasl.password=abc;de=f").unwrap_err();
        assert!(error.contains("entry 3") && error.contains(r"\;"), "{error}");
    }

    #[test]
    fn no_error_shows_a_value() {
        for (text, name) in [
            ("linger.ms=hunter2", "linger.ms"),
            ("linger.ms=918273645", "linger.ms"),
            ("security.protocol=hunter2", "security.protocol"),
            ("security.protocol=SASL_SSL;sasl.mechanism=HUNTER2", "sasl.mechanism"),
            ("security.protocol=SSL;ssl.ca.location=/no/hunter2", "ssl.ca.location"),
            ("security.protocol=SSL;ssl.key.location=/no/hunter2", "ssl.key.location"),
            ("security.protocol=SSL;ssl.cipher.suites=hunter2", "ssl.cipher.suites"),
        ] {
            let error = KafkaProperties::parse(text).expect_err(text).to_lowercase();
            assert!(!error.contains("hunter2") && !error.contains("918273645"), "{error}");
            assert!(error.contains(name) || error.contains("sasl"), "{name}: {error}");
        }
        let error = KafkaProperties::parse("linger.ms=918273645").unwrap_err();
        assert!(error.contains("0..900000"), "{error}");
    }

    #[test]
    fn a_file_has_one_property_per_line() {
        let text = "# login\n\nsasl.username=u\r\n  # of the cluster\nsasl.password = a;b\\;c=d#e \n";
        let config = client_config("h:1", "c", &[], &KafkaProperties::parse_file(text).unwrap());
        assert_eq!(config.get("sasl.username"), Some("u"));
        assert_eq!(config.get("sasl.password"), Some("a;b\\;c=d#e"));
        let variable_form = "# form of the variable\nsasl.username=u;sasl.password=hunter2";
        let error = KafkaProperties::parse_file(variable_form).unwrap_err();
        assert!(error.contains("line 2") && error.contains("one property per line"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let error = KafkaProperties::parse_file("sasl.username=u\n\nhunter2").unwrap_err();
        assert!(error.contains("key=value") && error.contains("line 3"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_line_break_between_properties_is_rejected_in_the_variable() {
        let error = KafkaProperties::parse("sasl.username=u\nsasl.password=hunter2").unwrap_err();
        assert!(error.contains("entry 1") && !error.contains("hunter2"), "{error}");
        let folded = KafkaProperties::parse("sasl.username=u;\nsasl.password=p;\n").unwrap();
        assert_eq!(folded.get("sasl.password"), Some("p"));
    }

    #[test]
    fn the_form_of_the_file_is_valid_only_in_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "sasl.username=u\nsasl.password=a;b\n").unwrap();
        let path = file.path().to_str().unwrap();
        let config = connect(&[("KAFKA_BROKER", "k:1"), ("KAFKA_PROPERTIES_FILE", path)]).unwrap();
        assert_eq!(config.get("sasl.password"), Some("a;b"));
        let config =
            connect(&[("KAFKA_BROKER", "k:1"), ("KAFKA_PROPERTIES", "client.rack=a;sasl.username=u")]);
        assert_eq!(config.unwrap().get("client.rack"), Some("a"));
    }

    #[test]
    fn properties_that_exclude_each_other_are_rejected() {
        for invalid in ["retries=0", "security.protocol=SSL;ssl.ca.location=/no/such/file"] {
            assert!(
                KafkaProperties::parse(invalid).unwrap_err().contains("rejected by librdkafka"),
                "{invalid}"
            );
        }
    }

    #[test]
    fn a_property_without_a_value_is_rejected() {
        assert!(KafkaProperties::parse("sasl.username").unwrap_err().contains("key=value"));
    }

    #[test]
    fn a_scheme_is_removed_and_sets_the_protocol_if_no_property_does() {
        let login = "sasl.mechanism=PLAIN;sasl.username=u;sasl.password=p";
        for (broker, properties, protocol) in [
            ("k:1", "", None),
            ("k:1", "security.protocol=SSL", Some("SSL")),
            ("PLAINTEXT://k:1", "", Some("plaintext")),
            ("SSL://k:1", "", Some("ssl")),
            ("SASL_SSL://k:1", login, Some("sasl_ssl")),
            ("ssl://k:1", "security.protocol=SSL", Some("SSL")),
            ("SASL_SSL://k:1", &format!("security.protocol=sasl_ssl;{login}"), Some("sasl_ssl")),
        ] {
            let config =
                connect(&[("KAFKA_BROKER", broker), ("KAFKA_PROPERTIES", properties)]).expect(broker);
            assert_eq!(config.get("bootstrap.servers"), Some("k:1"), "{broker}");
            assert_eq!(config.get("security.protocol"), protocol, "{broker}");
        }
        for (broker, properties) in [
            ("SASL_SSL://k:1", "security.protocol=ssl"),
            ("PLAINTEXT://k:1", &*format!("security.protocol=SASL_PLAINTEXT;{login}")),
        ] {
            let error = connect(&[("KAFKA_BROKER", broker), ("KAFKA_PROPERTIES", properties)]).unwrap_err();
            assert!(error.contains("KAFKA_BROKER: ") && error.contains("security.protocol"), "{error}");
        }
    }

    #[test]
    fn tls_without_ca_certificates_uses_those_of_the_system() {
        let needs = |text| KafkaProperties::parse(text).expect(text).needs_ca_certificates();
        assert!(needs("security.protocol=ssl"));
        assert!(needs("security.protocol=SASL_SSL;sasl.mechanism=PLAIN;sasl.username=u;sasl.password=p"));
        for text in [
            "",
            "security.protocol=plaintext",
            "security.protocol=ssl;ssl.ca.location=probe",
            "security.protocol=ssl;ssl.ca.location=/etc",
        ] {
            assert!(!needs(text), "{text}");
        }
    }
}
