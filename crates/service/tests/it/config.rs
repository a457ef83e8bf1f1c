//! All configuration errors are reported at once, without secrets.

use std::io::Write;

use service::{ConfigErrors, ConfigReader, Kind, parse};

service::settings! {
    /// Variables of the test.
    pub struct Settings {
        /// Bootstrap servers of Kafka.
        kafka_broker: Kind::Required,
        /// Largest payload, in bytes.
        max_payload_bytes: Kind::Default("65536"),
        /// URI of MongoDB.
        mongodb_uri: Kind::RequiredSecret,
        /// Accepted sources.
        accept_sources: Kind::Optional("all"),
    }
}

#[derive(Debug, PartialEq)]
struct Config {
    broker: String,
    bytes: usize,
    uri: String,
    sources: Option<String>,
}

fn read(environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let pairs = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let (settings, mut reader) = ConfigReader::read::<Settings>(Settings::VARIABLES, pairs);
    let broker = reader.value("kafka_broker", settings.kafka_broker.as_ref(), parse::text);
    let bytes =
        reader.value("max_payload_bytes", settings.max_payload_bytes.as_ref(), parse::number(1..=1_000_000));
    let uri = reader.value("mongodb_uri", settings.mongodb_uri.as_ref(), |uri| {
        if uri.starts_with("mongodb://") { Ok(uri.to_owned()) } else { Err("is not a MongoDB URI".into()) }
    });
    let sources = reader.optional("accept_sources", settings.accept_sources.as_ref(), parse::text);
    let config = (|| Some(Config { broker: broker?, bytes: bytes?, uri: uri?, sources: sources? }))();
    reader.finish(config)
}

#[test]
fn an_unset_or_empty_variable_gets_its_default() {
    let config =
        read(&[("KAFKA_BROKER", "k:9092"), ("MONGODB_URI", "mongodb://m"), ("MAX_PAYLOAD_BYTES", " ")]);
    let expected = Config { broker: "k:9092".into(), bytes: 65536, uri: "mongodb://m".into(), sources: None };
    assert_eq!(config, Ok(expected));
}

#[test]
fn all_wrong_variables_are_named_without_secrets() {
    let errors =
        read(&[("KAFKA_BROKER", ""), ("MAX_PAYLOAD_BYTES", "abc"), ("MONGODB_URI", "monogdb://u:hunter2@m")]);
    let text = errors.unwrap_err().to_string();
    for part in [
        "KAFKA_BROKER: not set, and required",
        "MAX_PAYLOAD_BYTES: \"abc\" is not a whole number",
        "MONGODB_URI: is not",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_secret_is_read_from_the_file_of_its_file_variable() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "mongodb://u:p@m").unwrap();
    let path = file.path().to_str().unwrap();
    let config = read(&[("KAFKA_BROKER", "k:1"), ("MONGODB_URI_FILE", path)]).unwrap();
    assert_eq!(config.uri, "mongodb://u:p@m");
    let both = read(&[("KAFKA_BROKER", "k:1"), ("MONGODB_URI_FILE", path), ("MONGODB_URI", "mongodb://m")]);
    assert!(both.unwrap_err().to_string().contains("MONGODB_URI_FILE: set together with MONGODB_URI"));
    let missing = read(&[("KAFKA_BROKER", "k:1"), ("MONGODB_URI_FILE", "/no/such/file")]).unwrap_err();
    assert_eq!(missing.0.len(), 1, "the missing file is the only error: {missing}");
}

#[test]
fn a_variable_in_another_letter_case_is_ignored() {
    let right = [("KAFKA_BROKER", "k:1"), ("MONGODB_URI", "mongodb://m")];
    let other = [
        ("kafka_broker", "x:1"),
        ("Kafka_Broker", "x:1"),
        ("max_payload_bytes", "7"),
        ("mongodb_uri_file", "/no/such/file"),
        ("accept_sources", "x"),
    ];
    let config = read(&[&other[..], &right, &other].concat()).unwrap();
    let expected = Config { broker: "k:1".into(), bytes: 65536, uri: "mongodb://m".into(), sources: None };
    assert_eq!(config, expected);
    let errors = read(&other).unwrap_err();
    let names: Vec<&str> = errors.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["KAFKA_BROKER", "MONGODB_URI"]);
}

#[test]
fn no_error_shows_a_secret_in_the_wrong_variable() {
    let secret = "mongodb://u:hunter2@m";
    for wrong in [
        [("KAFKA_BROKER", "k:1"), ("MONGODB_URI_FILE", secret)],
        [("MAX_PAYLOAD_BYTES", "http://u:hunter2@h"), ("MONGODB_URI", "mongodb://m")],
        [("MAX_PAYLOAD_BYTES", "http://h/?key=hunter2"), ("MONGODB_URI", "mongodb://m")],
    ] {
        let errors = read(&wrong).unwrap_err().to_string();
        assert!(errors.contains(wrong[0].0) || errors.contains(wrong[1].0), "{errors}");
        assert!(!errors.contains("hunter2"), "{errors}");
    }
}

#[test]
fn parsers_accept_only_valid_values() {
    assert_eq!(parse::boolean("TRUE"), Ok(true));
    assert!(parse::boolean("maybe").is_err());
    assert_eq!(parse::seconds(0.0)("0.25"), Ok(std::time::Duration::from_millis(250)));
    for wrong in ["-1", "NaN", "inf", "3s", "1e99"] {
        assert!(parse::seconds(0.0)(wrong).is_err(), "{wrong}");
    }
    assert_eq!(parse::base_url("http://h:8080/").unwrap().as_str(), "http://h:8080/");
    for wrong in ["h:8080", "ftp://h", "http://h?x=1", "", "http://u@h", "http://u:p@h", "http://:p@h"] {
        assert!(parse::base_url(wrong).is_err(), "{wrong}");
    }
    assert!(parse::topic("events.raw").is_ok());
    for wrong in ["", "..", "a b", "ä"] {
        assert!(parse::topic(wrong).is_err(), "{wrong}");
    }
    assert!(parse::address("0.0.0.0:8080").is_ok() && parse::address("8080").is_err());
}
