//! The configuration of `dedupe`: variables of the consumer, with the consumer's rules.

use consumer::mongo::{UpsertKeys, check_uri};
use events::Source;
use service::{ConfigErrors, ConfigReader, Kind, Secret};

service::settings! {
    /// The consumer's variables about documents and their uniqueness.
    pub struct Settings {
        /// MongoDB connection string.
        mongodb_uri: Kind::RequiredSecret,
        /// MongoDB database; each source has its own collection in it.
        mongodb_db: Kind::Default("kafka_events_db"),
        /// The first source is the name of the collection, unless the command line names one.
        expected_source: Kind::Default("adsbdb"),
        /// Fields that make a document unique, separated by commas; dotted paths are allowed.
        upsert_keys: Kind::Default("event_id"),
    }
}

/// The configuration.
#[derive(Debug)]
pub struct Config {
    /// Connection string.
    pub uri: Secret,
    /// Database.
    pub database: String,
    /// Name of the collection, which is that of its source.
    pub collection: Source,
    /// Fields that make a document unique.
    pub upsert_keys: UpsertKeys,
}

impl Config {
    /// Reads and checks the environment; `collection` is that of the command line.
    ///
    /// # Errors
    /// All wrong variables, by name.
    pub fn new(
        collection: Option<Source>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let uri = check.value("mongodb_uri", s.mongodb_uri.as_ref(), check_uri);
        let database = check.value("mongodb_db", s.mongodb_db.as_ref(), consumer::database_name);
        let collection = match collection {
            Some(collection) => Some(collection),
            None => check.value("expected_source", s.expected_source.as_ref(), first_source("--collection")),
        };
        let upsert_keys = check.value("upsert_keys", s.upsert_keys.as_ref(), UpsertKeys::parse);
        let config = (|| {
            Some(Self { uri: uri?, database: database?, collection: collection?, upsert_keys: upsert_keys? })
        })();
        check.finish(config)
    }
}

/// Parses a list of sources and returns the first one. `option` is the command-line option that
/// names another source.
pub fn first_source(option: &'static str) -> impl FnOnce(&str) -> Result<Source, String> {
    move |text| {
        if text == "*" {
            return Err(format!("contains no source name; use {option}"));
        }
        let sources: Result<Vec<_>, _> = text.split(',').map(|name| Source::new(name.trim())).collect();
        let sources = sources.map_err(|why| format!("is not a list of sources: {why}"))?;
        sources.into_iter().next().ok_or_else(|| "contains no source name".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(collection: Option<&str>, pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::new(collection.map(|name| Source::new(name).unwrap()), owned)
    }

    #[test]
    fn the_default_is_the_first_expected_source_and_not_a_star() {
        let uri = ("MONGODB_URI", "mongodb://m");
        let named = |config: Config| config.collection.as_str().to_owned();
        assert_eq!(named(read(None, &[uri]).unwrap()), "adsbdb");
        assert_eq!(named(read(None, &[uri, ("EXPECTED_SOURCE", "manual, adsbdb")]).unwrap()), "manual");
        assert_eq!(named(read(Some("other"), &[uri, ("EXPECTED_SOURCE", "*")]).unwrap()), "other");
        assert_eq!(read(None, &[uri, ("EXPECTED_SOURCE", "*")]).unwrap_err().0[0].0, "EXPECTED_SOURCE");
    }

    #[test]
    fn an_error_names_every_wrong_variable() {
        let faults = read(None, &[("MONGODB_DB", "a.b"), ("UPSERT_KEYS", "_id")]).unwrap_err().0;
        let names: Vec<&str> = faults.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["MONGODB_URI", "MONGODB_DB", "UPSERT_KEYS"]);
    }
}
