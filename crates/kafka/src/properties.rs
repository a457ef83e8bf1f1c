//! KAFKA_BROKER and KAFKA_PROPERTIES: how clients reach Kafka. No error text shows a value of a
//! property, or what may be a part of one.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::check_producer;
use crate::bootstrap_servers::{BootstrapServers, upper};
use service::{ConfigReader, Secret};

/// Properties that a promise rests on: naming one in KAFKA_PROPERTIES is a wrong configuration.
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
    // A member with such an id does not leave the group when it stops: its partitions would wait
    // for the session to end.
    "group.instance.id",
    // A record that was stored would never be known to be.
    "delivery.report.only.error",
    // A broker that is away is known by its connections that close.
    "log.connection.close",
    // A client that has forgotten every broker is known by what it tells of itself.
    "statistics.interval.ms",
];

/// Properties whose value is or contains a secret, by a part of their name.
const SECRET: &[&str] = &["password", "secret", "pem", "username", "jaas", "oauthbearer", "ssl.key", "token"];

/// KAFKA_PROPERTIES: librdkafka properties for every client. Values are not shown.
#[derive(Debug, Clone, Default)]
pub struct KafkaProperties(Vec<(String, Secret)>);

/// How clients reach Kafka: the bootstrap servers without schemes, and the properties.
pub type Connection = (String, KafkaProperties);

/// Reads KAFKA_BROKER and KAFKA_PROPERTIES. A scheme in KAFKA_BROKER sets `security.protocol`,
/// unless KAFKA_PROPERTIES does; then both must agree.
pub fn read_connection(
    check: &mut ConfigReader,
    broker: Option<&String>,
    properties: Option<&String>,
) -> Option<Connection> {
    let brokers = check.value("kafka_broker", broker, BootstrapServers::parse);
    let parse = match check.is_from_file("KAFKA_PROPERTIES") {
        true => KafkaProperties::parse_file,
        false => KafkaProperties::parse,
    };
    let properties = check.optional("kafka_properties", properties, parse);
    let (brokers, properties) = (brokers?, properties?.unwrap_or_default());
    let protocol = properties.get("security.protocol");
    match (brokers.protocol, protocol) {
        (Some(scheme), Some(protocol)) if !scheme.eq_ignore_ascii_case(protocol) => {
            let why = format!(
                "has the scheme {}, but security.protocol in KAFKA_PROPERTIES is another one: correct the property, or \
                 write host:port without a scheme",
                upper(scheme)
            );
            check.add_error("KAFKA_BROKER", why);
            None
        }
        (Some(scheme), None) => Some((brokers.servers, properties.with("security.protocol", scheme))),
        _ => Some((brokers.servers, properties)),
    }
}

impl KafkaProperties {
    /// The parser of the variable: `key=value` separated by semicolons. In a value, `\;` is a
    /// semicolon and `\\` a backslash; any other backslash stands for itself.
    ///
    /// # Errors
    /// A pair without `=`, a property that librdkafka does not know or whose value it refuses, or
    /// one that a promise rests on. No error shows a value, or text that may belong to one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = (1..).zip(split(text)).map(|(number, entry)| (format!("entry {number}"), entry));
        let entries: Vec<_> = entries.collect();
        refuse_several(&entries, '\n', "a semicolon separates them")?;
        let hint = "entries are separated by semicolons, and a semicolon within a value is written \\;";
        Self::of(entries, hint)
    }

    /// The parser of the file: `key=value`, one a line, each character of the value for itself.
    /// Blank lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// As [`KafkaProperties::parse`]; also a line that has several properties.
    pub fn parse_file(text: &str) -> Result<Self, String> {
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with('#'));
        let entries: Vec<_> =
            lines.map(|(number, line)| (format!("line {number}"), line.to_owned())).collect();
        refuse_several(&entries, ';', "the file has one property a line")?;
        Self::of(entries, "the file has one property a line")
    }

    fn of(entries: impl IntoIterator<Item = (String, String)>, hint: &str) -> Result<Self, String> {
        let mut pairs = Vec::new();
        let mut after_secret = false;
        for (place, entry) in entries.into_iter().filter(|(_, entry)| !entry.trim().is_empty()) {
            let Some((key, value)) = entry.split_once('=') else {
                return Err(format!("is not key=value in {place} ({hint})"));
            };
            let (key, value) = (first_name(key.trim()), value.trim());
            if RESERVED.contains(&key) {
                return Err(format!("names {key}, which Slipstream sets itself: its promises rest on it"));
            }
            match try_alone(key, value) {
                Ok(()) => {}
                Err(Some(why)) => return Err(refused_value(key, &why)),
                // What follows a secret may be a part of it.
                Err(None) if after_secret || !looks_like_name(key) => {
                    return Err(format!("has no property of librdkafka in {place} ({hint})"));
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a property; the last one counts, as in librdkafka.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.expose())
    }

    /// The same properties and one more, which nothing checks.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.0.push((key.to_owned(), Secret::new(value)));
        self
    }

    pub(crate) fn apply(&self, config: &mut ClientConfig) {
        for (key, value) in &self.0 {
            config.set(key, value.expose());
        }
        if self.needs_authorities() && !openssl_has_authorities() {
            config.set("ssl.ca.location", "probe");
        }
    }

    /// Whether brokers have certificates, and no property says whose.
    fn needs_authorities(&self) -> bool {
        let protocol = self.get("security.protocol").unwrap_or_default();
        ["ssl", "sasl_ssl"].iter().any(|tls| tls.eq_ignore_ascii_case(protocol))
            && ["ssl.ca.location", "ssl.ca.pem"].iter().all(|key| self.get(key).is_none())
    }

    /// `text` without the values, as a file that librdkafka could not open. Names of properties
    /// stay.
    pub(crate) fn hide(&self, text: &str) -> String {
        let plain =
            |value: &str| value.len() < 3 || value.parse::<f64>().is_ok() || value.parse::<bool>().is_ok();
        let values = self.0.iter().map(|(_, value)| value.expose()).filter(|value| !plain(value));
        values.fold(text.to_owned(), |text, value| replace_words(&text, value, "***"))
    }
}

/// Refuses an entry with a further property behind a separator that does not separate here: the
/// whole rest would be taken for a value.
fn refuse_several(entries: &[(String, String)], separator: char, right: &str) -> Result<(), String> {
    let several = |entry: &str| {
        let mut more = entry.trim().split(separator).skip(1).filter_map(|part| part.split_once('='));
        more.any(|(key, _)| is_known(key.trim()))
    };
    match entries.iter().find(|(_, entry)| several(entry)) {
        Some((place, _)) => Err(format!("has several properties in {place}: {right}")),
        None => Ok(()),
    }
}

/// Whether OpenSSL's own variables name the authorities. The OpenSSL in these binaries knows no
/// other place that exists: that of the build is empty, so librdkafka has to look where
/// distributions keep theirs.
fn openssl_has_authorities() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(is_set)
}

/// librdkafka's second names: set beside the first, either could win.
fn first_name(key: &str) -> &str {
    match key {
        "compression.codec" => "compression.type",
        "queue.buffering.max.ms" => "linger.ms",
        key => key,
    }
}

fn looks_like_name(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'.' | b'_' | b'-'))
}

/// The error text for a value that librdkafka refuses, from its own, which shows the value.
pub(crate) fn refused_value(key: &str, why: &str) -> String {
    let range = why.split_once("outside allowed range ").map(|(_, range)| range.trim());
    let range = range.map_or_else(String::new, |range| format!(" (allowed range: {range})"));
    format!("has a value of {key} that librdkafka refuses{range}")
}

/// Whether librdkafka takes one property.
///
/// # Errors
/// Why it refuses the value; `None`: it does not know the property.
fn try_alone(key: &str, value: &str) -> Result<(), Option<String>> {
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_INVALID, why, ..)) => Err(Some(why)),
        Err(_) => Err(None),
    }
}

fn is_known(key: &str) -> bool {
    try_alone(key, "") != Err(None)
}

/// The entries of KAFKA_PROPERTIES, without the escapes.
fn split(text: &str) -> Vec<String> {
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

/// Replaces `word` where it is not a part of a longer word or of a property's name.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::client_config;
    use service::Kind;

    service::settings! {
        /// Both variables.
        struct Settings {
            /// BootstrapServers.
            kafka_broker: Kind::Required,
            /// Properties.
            kafka_properties: Kind::OptionalSecret("none"),
        }
    }

    fn connect(pairs: &[(&str, &str)]) -> Result<ClientConfig, String> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, pairs);
        let read = read_connection(&mut check, s.kafka_broker.as_ref(), s.kafka_properties.as_ref());
        let read = check.finish(read).map_err(|faults| faults.to_string())?;
        Ok(client_config(&read.0, "c", &[], &read.1))
    }

    #[test]
    fn a_property_that_a_promise_rests_on_is_refused_by_name() {
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
    fn an_unknown_property_is_refused_by_name_and_its_value_is_not_shown() {
        let error = KafkaProperties::parse("no.such.property=hunter2").unwrap_err();
        assert!(error.contains("no.such.property") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_semicolon_and_a_backslash_in_a_value_can_be_escaped() {
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
    fn what_follows_a_secret_is_never_shown() {
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
    fn a_file_has_one_property_a_line() {
        let text = "# login\n\nsasl.username=u\r\n  # of the cluster\nsasl.password = a;b\\;c=d#e \n";
        let config = client_config("h:1", "c", &[], &KafkaProperties::parse_file(text).unwrap());
        assert_eq!(config.get("sasl.username"), Some("u"));
        assert_eq!(config.get("sasl.password"), Some("a;b\\;c=d#e"));
        let old = "# old form\nsasl.username=u;sasl.password=hunter2";
        let error = KafkaProperties::parse_file(old).unwrap_err();
        assert!(error.contains("line 2") && error.contains("one property a line"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let error = KafkaProperties::parse_file("sasl.username=u\n\nhunter2").unwrap_err();
        assert!(error.contains("key=value") && error.contains("line 3"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn properties_that_a_line_break_separates_are_refused_in_the_variable() {
        let error = KafkaProperties::parse("sasl.username=u\nsasl.password=hunter2").unwrap_err();
        assert!(error.contains("entry 1") && !error.contains("hunter2"), "{error}");
        let folded = KafkaProperties::parse("sasl.username=u;\nsasl.password=p;\n").unwrap();
        assert_eq!(folded.get("sasl.password"), Some("p"));
    }

    #[test]
    fn the_file_form_counts_only_for_the_file() {
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
    fn properties_that_do_not_fit_together_are_refused() {
        for wrong in ["retries=0", "security.protocol=SSL;ssl.ca.location=/no/such/file"] {
            assert!(KafkaProperties::parse(wrong).unwrap_err().contains("refused by librdkafka"), "{wrong}");
        }
    }

    #[test]
    fn a_pair_without_a_value_is_refused() {
        assert!(KafkaProperties::parse("sasl.username").unwrap_err().contains("key=value"));
    }

    #[test]
    fn a_scheme_is_taken_off_and_sets_the_protocol_where_nothing_does() {
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
    fn tls_without_a_named_authority_looks_for_those_of_the_system() {
        let needs = |text| KafkaProperties::parse(text).expect(text).needs_authorities();
        assert!(needs("security.protocol=ssl"));
        assert!(needs("security.protocol=SASL_SSL;sasl.mechanism=PLAIN;sasl.username=u;sasl.password=p"));
        for told in [
            "",
            "security.protocol=plaintext",
            "security.protocol=ssl;ssl.ca.location=probe",
            "security.protocol=ssl;ssl.ca.location=/etc",
        ] {
            assert!(!needs(told), "{told}");
        }
    }
}
