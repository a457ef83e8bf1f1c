//! The variables that decide where a source's events go, and what a source leaves to them.

use std::sync::Arc;

use ::sources::{Source, Sources};
use consumer::mongo::UpsertKeys;
use consumer::{ConfiguredSources, ExpectedSources, SourceStore};
use service::{ConfigErrors, ConfigReader, Kind, parse};

service::settings! {
    /// The variables of `sources list` and `sources try`.
    pub struct Settings {
        /// The first topic is that of a source without a topic of its own.
        kafka_topic: Kind::Default("events.raw"),
        /// Keys of a source without keys of its own.
        upsert_keys: Kind::Default("event_id"),
        /// Value of the documents' field `api_version`.
        api_version: Kind::Default("1.0.0"),
        /// Maximum size of a body, in bytes.
        max_payload_bytes: Kind::Default("65536"),
        /// Base URL of ADSBDB.
        adsbdb_base_url: Kind::Default("https://api.adsbdb.com"),
    }
}

/// The values of [`Settings`].
#[derive(Debug)]
pub struct Config {
    /// The first of KAFKA_TOPIC.
    topic: String,
    keys: UpsertKeys,
    /// API_VERSION.
    pub api_version: String,
    /// MAX_PAYLOAD_BYTES.
    pub max_payload_bytes: usize,
    /// ADSBDB_BASE_URL, without a slash at its end.
    pub adsbdb: String,
}

impl Config {
    /// Reads and checks the variables.
    ///
    /// # Errors
    /// Every wrong variable.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let topic = check.value("kafka_topic", s.kafka_topic.as_ref(), |text| {
            let topics: Result<Vec<String>, String> =
                text.split(',').map(|topic| parse::topic(topic.trim())).collect();
            Ok(topics?.swap_remove(0))
        });
        let keys = check.value("upsert_keys", s.upsert_keys.as_ref(), UpsertKeys::parse);
        let api_version = check.value("api_version", s.api_version.as_ref(), parse::text);
        let bytes = parse::number(1..=16 * 1024 * 1024_usize);
        let max_payload_bytes = check.value("max_payload_bytes", s.max_payload_bytes.as_ref(), bytes);
        let adsbdb = check.value("adsbdb_base_url", s.adsbdb_base_url.as_ref(), parse::base_url);
        let config = (|| {
            let adsbdb = adsbdb?.as_str().trim_end_matches('/').to_owned();
            Some(Self {
                topic: topic?,
                keys: keys?,
                api_version: api_version?,
                max_payload_bytes: max_payload_bytes?,
                adsbdb,
            })
        })();
        check.finish(config)
    }

    /// The topic of a source.
    pub fn topic<'t>(&'t self, source: &'t Source) -> &'t str {
        source.topic.as_deref().unwrap_or(&self.topic)
    }

    /// The store of a source of the file.
    pub fn store(&self, source: &Source, stores: &ExpectedSources) -> SourceStore {
        stores.store_of(&source.name, &self.keys)
    }

    /// Where and how the consumer stores the sources of `file`, if EXPECTED_SOURCE is unset.
    ///
    /// # Errors
    /// Two sources have one collection; the file's check accepts no such file.
    pub fn stores(&self, file: &Sources) -> Result<ExpectedSources, String> {
        let stores = ConfiguredSources::new(file, &self.keys, None)?;
        Ok(ExpectedSources::Configured(Arc::new(stores)))
    }
}
