//! The variables that decide where a source's events go, and what a source leaves to them.

use ::sources::{Index, IndexKind, Source};
use bson::{Bson, Document, doc};
use consumer::mongo::{UpsertKeys, partial_filter};
use service::{ConfigErrors, ConfigReader, Kind, parse};

/// The variable that names the sources file.
pub const SOURCES_FILE: &str = "SOURCES_FILE";

/// Fields of the index for looking aircraft up, which each collection has.
const LOOKUP_FIELDS: [&str; 3] = ["mode_s", "registration", "event_timestamp"];

/// Fields of the index that finds one version of a document, for deletes.
const VERSION_FIELDS: [&str; 3] = ["event_id", "event_timestamp", "ingested_at"];

service::settings! {
    /// The variables of `sources list` and `sources try`.
    pub struct Settings {
        /// The first topic is that of a source without a topic of its own.
        kafka_topic: Kind::Default("events.raw"),
        /// Keys of a source without keys of its own.
        upsert_keys: Kind::Default("event_id"),
        /// Value of the documents' field `api_version`.
        api_version: Kind::Default("1.0.0"),
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
        let adsbdb = check.value("adsbdb_base_url", s.adsbdb_base_url.as_ref(), parse::base_url);
        let config = (|| {
            let adsbdb = adsbdb?.as_str().trim_end_matches('/').to_owned();
            Some(Self { topic: topic?, keys: keys?, api_version: api_version?, adsbdb })
        })();
        check.finish(config)
    }

    /// The topic of a source.
    pub fn topic<'t>(&'t self, source: &'t Source) -> &'t str {
        source.topic.as_deref().unwrap_or(&self.topic)
    }

    /// The fields that identify a document of a source.
    ///
    /// # Errors
    /// The keys of the source are not valid; the file's check accepts none of them.
    pub fn keys(&self, source: &Source) -> Result<UpsertKeys, String> {
        source.store.keys.as_ref().map_or(Ok(self.keys.clone()), |keys| UpsertKeys::parse(&keys.join(",")))
    }
}

/// The indexes of a source's collection besides `_id_`, as `createIndexes` gets them.
pub fn indexes(source: &Source, keys: &UpsertKeys) -> Vec<Document> {
    let ascending =
        |fields: &[&str]| fields.iter().map(|field| ((*field).to_owned(), Bson::Int32(1))).collect();
    let fields: Vec<&str> = keys.fields().collect();
    let mut unique = index(ascending(&fields));
    unique.insert("unique", true);
    if let Some(filter) = partial_filter(keys) {
        unique.insert("partialFilterExpression", filter);
    }
    let is_key =
        |lookup: &[&str]| lookup.len() == fields.len() && lookup.iter().all(|field| fields.contains(field));
    let lookups = [&["event_id"][..], &LOOKUP_FIELDS].into_iter().filter(|lookup| !is_key(lookup));
    let lookups: Vec<Document> = lookups.map(|lookup| index(ascending(lookup))).collect();
    let own = source.store.indexes.iter().map(own_index);
    let version = source.delete.as_ref().map(|_| index(ascending(&VERSION_FIELDS)));
    let expiry = source.store.ttl.map(|_| {
        let mut expiry = index(ascending(&["expires_at"]));
        expiry.insert("expireAfterSeconds", 0);
        expiry
    });
    std::iter::once(unique).chain(lookups).chain(own).chain(version).chain(expiry).collect()
}

fn own_index(of_file: &Index) -> Document {
    let value = |kind: &IndexKind| match kind {
        IndexKind::Ascending => Bson::Int32(1),
        IndexKind::Descending => Bson::Int32(-1),
        IndexKind::Hashed => "hashed".into(),
        IndexKind::Text => "text".into(),
        IndexKind::Sphere => "2dsphere".into(),
    };
    let mut own = index(of_file.keys.iter().map(|(field, kind)| (field.clone(), value(kind))).collect());
    if of_file.unique {
        own.insert("unique", true);
    }
    own
}

/// An index with the name that MongoDB gives it by default.
fn index(key: Document) -> Document {
    let parts = key.iter().map(|(field, kind)| match kind {
        Bson::String(kind) => format!("{field}_{kind}"),
        kind => format!("{field}_{kind}"),
    });
    let name = parts.collect::<Vec<_>>().join("_");
    doc! { "key": key, "name": name }
}
