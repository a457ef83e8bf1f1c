//! The collection of `dedupe`: its configuration (variables of the consumer, with the consumer's
//! rules), its documents as rows, their removal, and an index that prevents the unique one.

use bson::{Bson, Document, RawDocumentBuf, doc};
use consumer::mongo::{IndexState, UpsertKeys, check_uri, index_state, partial_filter, write_concern};
use events::Source;
use kafka::BoxError;
use loadtest::mongo::Mongo;
use mongodb::error::{Error, ErrorKind};
use mongodb::{Collection, Cursor};
use service::{ConfigErrors, ConfigReader, Kind, Secret};
use sources::{Secrets, Sources};

use super::duplicates::Row;

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
        /// File with the sources. The keys of a source replace UPSERT_KEYS for its collection.
        sources_file: Kind::Optional("every setting is as without a file"),
    }
}

/// The configuration.
#[derive(Debug)]
pub struct Config {
    /// Connection string.
    pub uri: Secret,
    pub database: String,
    /// Name of the collection, which is that of its source.
    pub collection: Source,
    /// Fields that make a document unique.
    pub upsert_keys: UpsertKeys,
}

impl Config {
    /// Reads and checks the environment; `collection` is that of the command line.
    pub fn new(
        collection: Option<Source>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
        let uri = check.value("mongodb_uri", s.mongodb_uri.as_ref(), check_uri);
        let database = check.value("mongodb_db", s.mongodb_db.as_ref(), consumer::database_name);
        let collection = match collection {
            Some(collection) => Some(collection),
            None => check.value("expected_source", s.expected_source.as_ref(), first_source("--collection")),
        };
        let upsert_keys = check.value("upsert_keys", s.upsert_keys.as_ref(), UpsertKeys::parse);
        let file = Sources::of_process(&mut check, s.sources_file.as_ref(), &environment, Secrets::Skip);
        let of_file = file.flatten().and_then(|file| {
            let is_own = |source: &&sources::Source| {
                collection.as_ref().is_some_and(|name| source.store.collection == name.as_str())
            };
            file.iter().find(is_own)?.store.keys.as_ref().map(|keys| keys.join(","))
        });
        let upsert_keys = match of_file {
            Some(keys) => check.value("sources_file", Some(&keys), UpsertKeys::parse),
            None => upsert_keys,
        };
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

const NAMESPACE_NOT_FOUND: i32 = 26;

/// Maximum number of rows in a reply.
const REPLY_ROWS: u32 = 10_000;

/// Maximum size of the documents in a command. A command is a document, with at most 16 MiB.
const MAX_COMMAND_BYTES: usize = 12 << 20;

/// A collection, and the fields that make its documents unique.
#[derive(Debug)]
pub struct KeyedCollection {
    /// The key fields.
    pub keys: UpsertKeys,
    mongo: Mongo,
    collection: Source,
    fields: usize,
    write_concern: RawDocumentBuf,
}

/// The indexes of a collection.
#[derive(Debug, Clone, Default)]
pub struct Indexes {
    /// Existing indexes.
    pub ready: Vec<Document>,
    /// Indexes that the server is building; they are not effective yet.
    pub in_progress: Vec<Document>,
}

impl Indexes {
    fn of<'a>(listed: impl Iterator<Item = &'a Document>) -> Self {
        let mut indexes = Self::default();
        for index in listed {
            match index.get_document("spec") {
                Ok(specification) => indexes.in_progress.push(specification.clone()),
                Err(_) => indexes.ready.push(index.clone()),
            }
        }
        indexes
    }

    /// Whether the index `name` is being built.
    pub fn is_building(&self, name: &str) -> bool {
        self.in_progress.iter().any(|index| index.get_str("name").is_ok_and(|this| this == name))
    }

    /// The name of the unique index of `keys`, if it is being built.
    pub fn building(&self, keys: &UpsertKeys) -> Option<String> {
        let is_missing = |existing: &[Document]| {
            matches!(index_state(keys, existing), IndexState::MissingUnique | IndexState::Conflicting(_))
        };
        let completes =
            |index: &&Document| !is_missing(&[self.ready.clone(), vec![(*index).clone()]].concat());
        let index = if is_missing(&self.ready) { self.in_progress.iter().find(completes) } else { None };
        Some(index?.get_str("name").unwrap_or_default().to_owned())
    }
}

/// An index on the key fields that prevents the unique index.
#[derive(Debug, Clone)]
pub struct ConflictingIndex {
    pub name: String,
    /// Whether it can be dropped, because the unique index serves the same queries.
    pub is_redundant: bool,
}

impl KeyedCollection {
    /// Creates a client without connecting.
    pub async fn new(config: Config) -> Result<Self, BoxError> {
        Ok(Self {
            mongo: Mongo::open(&config.uri, &config.database).await?,
            write_concern: write_concern(&config.uri)?,
            fields: config.upsert_keys.fields().count(),
            collection: config.collection,
            keys: config.upsert_keys,
        })
    }

    /// Database and collection.
    pub fn names(&self) -> (&str, &str) {
        (self.mongo.database.name(), self.collection.as_str())
    }

    /// All documents that the unique index would cover, sorted by key, newest first.
    pub async fn sorted(&self) -> Result<Rows, BoxError> {
        let sort = doc! { "$sort": Row::order(self.fields) };
        self.rows(partial_filter(&self.keys).unwrap_or_default(), vec![sort]).await
    }

    /// The current rows of the documents with these `_id`s.
    pub async fn rows_by_id(&self, ids: Vec<Bson>) -> Result<Vec<Row>, BoxError> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in split_by_size(ids, id_bytes, MAX_COMMAND_BYTES) {
            let mut rows = self.rows(doc! { "_id": { "$in": ids } }, Vec::new()).await?;
            while let Some(row) = rows.next().await? {
                found.push(row);
            }
        }
        Ok(found)
    }

    /// The current documents with these `_id`s, with one command for each part of the list.
    pub fn documents(
        &self,
        ids: Vec<Bson>,
    ) -> impl Iterator<Item = impl Future<Output = Result<Documents, BoxError>>> {
        split_by_size(ids, id_bytes, MAX_COMMAND_BYTES).into_iter().map(async |ids| {
            let cursor = self.collection().find(doc! { "_id": { "$in": ids } }).await;
            Ok(self.cursor(cursor.map_err(|error| self.mongo.driver_error(&error))?))
        })
    }

    fn cursor(&self, cursor: Cursor<Document>) -> Documents {
        Documents { cursor, mongo: self.mongo.clone() }
    }

    async fn rows(&self, filter: Document, more: Vec<Document>) -> Result<Rows, BoxError> {
        let projection = Row::projection(self.keys.fields());
        let mut stages = vec![doc! { "$match": filter }, doc! { "$project": projection }];
        stages.extend(more);
        // The sort of a whole collection can exceed the server's memory limit for sorts.
        let cursor = self.collection().aggregate(stages).allow_disk_use(true).batch_size(REPLY_ROWS).await;
        let cursor = cursor.map_err(|error| self.mongo.driver_error(&error))?;
        Ok(Rows { documents: self.cursor(cursor), fields: self.fields })
    }

    fn collection(&self) -> Collection<Document> {
        self.mongo.database.collection(self.collection.as_str())
    }

    /// Removes those of `documents` that did not change, and returns their number.
    pub async fn remove(&self, documents: &[Document]) -> Result<u64, BoxError> {
        let deletes = documents.iter().map(delete_statement).collect();
        let mut removed = 0;
        for deletes in split_by_size(deletes, document_bytes, MAX_COMMAND_BYTES) {
            let reply =
                self.write(doc! { "delete": self.collection.as_str(), "deletes": deletes, "ordered": false });
            removed += match reply.await?.get("n") {
                Some(Bson::Int32(n)) => i64::from(*n),
                Some(Bson::Int64(n)) => *n,
                _ => return Err("the reply to delete has no count".into()),
            };
        }
        Ok(removed.try_into()?)
    }

    /// The indexes; `None` if the collection does not exist.
    pub async fn indexes(&self) -> Result<Option<Indexes>, BoxError> {
        let plain = doc! { "listIndexes": self.collection.as_str(), "cursor": { "batchSize": 1000 } };
        let mut with_build_ids = plain.clone();
        with_build_ids.insert("includeBuildUUIDs", true);
        let reply = match self.mongo.database.run_command(with_build_ids).await {
            // A server without the option lists indexes that are being built like the others.
            Err(error) if code(&error).is_some_and(|code| code != NAMESPACE_NOT_FOUND) => {
                self.mongo.database.run_command(plain).await
            }
            reply => reply,
        };
        let reply = match reply {
            Err(error) if code(&error) == Some(NAMESPACE_NOT_FOUND) => return Ok(None),
            reply => reply.map_err(|error| self.mongo.driver_error(&error))?,
        };
        let listed = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let listed = listed.map_err(|_| "the reply to listIndexes has no list")?;
        Ok(Some(Indexes::of(listed.iter().filter_map(Bson::as_document))))
    }

    /// The index that prevents the unique one, and the name of the unique index while it is built.
    pub async fn conflicting_index(&self) -> Result<(Option<ConflictingIndex>, Option<String>), BoxError> {
        let indexes = self.indexes().await?.unwrap_or_default();
        let building = indexes.building(&self.keys);
        let existing = [indexes.ready, indexes.in_progress].concat();
        let IndexState::Conflicting(name) = index_state(&self.keys, &existing) else {
            return Ok((None, building));
        };
        let named = existing.iter().find(|index| index.get_str("name").is_ok_and(|this| this == name));
        let is_redundant = named.is_some_and(|index| is_plain(index, &self.keys));
        Ok((Some(ConflictingIndex { name, is_redundant }), building))
    }

    /// Drops an index.
    pub async fn drop_index(&self, name: &str) -> Result<(), BoxError> {
        self.write(doc! { "dropIndexes": self.collection.as_str(), "index": name }).await.map(drop)
    }

    async fn write(&self, mut command: Document) -> Result<Document, BoxError> {
        command.insert("writeConcern", Document::try_from(&*self.write_concern)?);
        let reply = self.mongo.database.run_command(command).await;
        let reply = reply.map_err(|error| self.mongo.driver_error(&error))?;
        // A reply with `ok: 1` can still contain an error.
        let error = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
        match error.or(reply.get_document("writeConcernError").ok()) {
            Some(error) => Err(error.get_str("errmsg").unwrap_or("the server rejected the write").into()),
            None => Ok(reply),
        }
    }
}

/// The statement that removes `document` if it did not change.
fn delete_statement(document: &Document) -> Document {
    let id = document.get("_id").cloned().unwrap_or(Bson::Null);
    let unchanged = doc! { "$eq": ["$$ROOT", { "$literal": document.clone() }] };
    let delete = doc! { "q": { "_id": { "$eq": &id }, "$expr": unchanged }, "limit": 1 };
    if document_bytes(&delete) < MAX_COMMAND_BYTES {
        return delete;
    }
    // The `_id` is large: it is not repeated in the comparison.
    let (root, mut rest) = (doc! { "$unsetField": { "field": "_id", "input": "$$ROOT" } }, document.clone());
    rest.remove("_id");
    let unchanged = doc! { "$eq": [root, { "$literal": rest }] };
    doc! { "q": { "_id": { "$eq": id }, "$expr": unchanged }, "limit": 1 }
}

/// The size of an `_id` in an array.
fn id_bytes(id: &Bson) -> usize {
    document_bytes(&doc! { "0000000": id.clone() })
}

fn document_bytes(document: &Document) -> usize {
    RawDocumentBuf::try_from(document).map_or(0, |raw| raw.as_bytes().len())
}

fn code(error: &Error) -> Option<i32> {
    if let ErrorKind::Command(error) = &*error.kind { Some(error.code) } else { None }
}

/// Whether the index has no options with an effect, and only key fields.
fn is_plain(index: &Document, keys: &UpsertKeys) -> bool {
    let names = ["v", "key", "name", "ns", "background"];
    let on_key = index.get_document("key").is_ok_and(|key| {
        key.len() == keys.fields().count()
            && key.iter().all(|(field, order)| {
                keys.fields().any(|key| key == field) && !matches!(order, Bson::String(_))
            })
    });
    on_key && index.keys().all(|name| names.contains(&name.as_str()))
}

/// Splits `all` into parts of at most `limit` bytes, in order. An element that exceeds the limit is
/// a part of its own. `bytes` returns the size of an element.
fn split_by_size<T>(all: Vec<T>, bytes: impl Fn(&T) -> usize, limit: usize) -> Vec<Vec<T>> {
    let (mut parts, mut used) = (Vec::<Vec<T>>::new(), 0);
    for one in all {
        let size = bytes(&one);
        used += size;
        match parts.last_mut() {
            Some(part) if used <= limit => part.push(one),
            _ => {
                used = size;
                parts.push(vec![one]);
            }
        }
    }
    parts
}

/// A cursor over documents.
#[derive(Debug)]
pub struct Documents {
    cursor: Cursor<Document>,
    mongo: Mongo,
}

impl Documents {
    /// The next document.
    pub async fn next(&mut self) -> Result<Option<Document>, BoxError> {
        if !self.cursor.advance().await.map_err(|error| self.mongo.driver_error(&error))? {
            return Ok(None);
        }
        // Not through serde: it converts a field in the form of Extended JSON to another type.
        Ok(Some(Document::try_from(self.cursor.current())?))
    }
}

/// A cursor over rows.
#[derive(Debug)]
pub struct Rows {
    documents: Documents,
    fields: usize,
}

impl Rows {
    /// The next row.
    pub async fn next(&mut self) -> Result<Option<Row>, BoxError> {
        Ok(self.documents.next().await?.map(|projected| Row::read(&projected, self.fields)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(collection: Option<&str>, pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::new(collection.map(|name| Source::new(name).unwrap()), owned)
    }

    #[test]
    fn the_keys_of_a_source_of_the_file_replace_upsert_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        let file =
            "sources: {a: {envelope: true, store: {collection: earth, keys: [x, y.z]}}, b: {envelope: true}}";
        std::fs::write(&path, file).unwrap();
        let path = path.display().to_string();
        let environment =
            [("MONGODB_URI", "mongodb://m"), ("UPSERT_KEYS", "mode_s"), ("SOURCES_FILE", &*path)];
        let keys = |collection: &str| {
            let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Config::new(Some(Source::new(collection).unwrap()), environment).unwrap().upsert_keys.to_string()
        };
        assert_eq!([keys("earth"), keys("b"), keys("a")], ["x,y.z", "mode_s", "mode_s"]);
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

    #[test]
    fn commands_stay_below_16_mib_with_ids_of_any_size() {
        let large = |n: i32, id: usize, rest: usize| doc! { "_id": format!("{n}{}", "x".repeat(id)), "b": "y".repeat(rest) };
        let documents: Vec<Document> = (0..12)
            .map(|n| large(n, 2 << 20, 1 << 10))
            .chain([large(12, 8 << 20, 7 << 20), large(13, 100, (16 << 20) - 1_000), large(14, 9, 9)])
            .collect();
        let parts = split_by_size(
            documents.iter().map(delete_statement).collect(),
            document_bytes,
            MAX_COMMAND_BYTES,
        );
        assert_eq!(parts.concat().len(), documents.len());
        for deletes in parts {
            let command = doc! { "delete": "c", "deletes": deletes, "ordered": false };
            assert!(document_bytes(&command) <= (16 << 20) + (1 << 10), "{}", document_bytes(&command));
        }
    }

    #[test]
    fn an_index_that_is_being_built_is_not_an_existing_index() {
        let keys = UpsertKeys::parse("event_id").unwrap();
        let unique = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1", "unique": true };
        let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
        let building = doc! { "spec": unique.clone(), "buildUUID": "u" };
        let indexes = Indexes::of([&id, &building].into_iter());
        assert_eq!((indexes.ready.len(), indexes.in_progress.len()), (1, 1));
        assert_eq!(indexes.building(&keys).as_deref(), Some("event_id_1"));
        assert_eq!(Indexes::of([&id, &unique].into_iter()).building(&keys), None);
        let plain = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1" };
        assert_eq!(
            Indexes::of([&doc! { "spec": plain, "buildUUID": "u" }].into_iter()).building(&keys),
            None
        );
    }

    #[test]
    fn only_an_index_without_other_effects_is_redundant() {
        let keys = UpsertKeys::parse("event_id").unwrap();
        let index = |more: Document| {
            let mut index = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1" };
            index.extend(more);
            index
        };
        assert!(is_plain(&index(doc! {}), &keys));
        assert!(is_plain(&index(doc! { "key": { "event_id": -1.0 } }), &keys));
        for more in [
            doc! { "expireAfterSeconds": 60 },
            doc! { "sparse": true },
            doc! { "collation": { "locale": "fr" } },
            doc! { "key": { "event_id": "hashed" } },
            doc! { "key": { "other": 1 } },
        ] {
            assert!(!is_plain(&index(more.clone()), &keys), "{more}");
        }
    }

    proptest! {
        #[test]
        fn parts_fit_the_limit_and_keep_all_elements_in_order(
            all in prop::collection::vec(0_usize..15, 0..40), limit in 1_usize..30
        ) {
            let parts = split_by_size(all.clone(), |size| *size, limit);
            prop_assert_eq!(parts.concat(), all);
            for part in &parts {
                prop_assert!(part.len() == 1 || part.iter().sum::<usize>() <= limit, "{:?}", part);
            }
            // The first element of the next part does not fit into a part.
            for pair in parts.windows(2) {
                prop_assert!(pair[0].iter().sum::<usize>() + pair[1][0] > limit);
            }
        }
    }
}
