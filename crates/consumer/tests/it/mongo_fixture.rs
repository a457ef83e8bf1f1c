//! A store with its own database and collection on the database server that the tests share.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use consumer::mongo::{BatchOutcome, Counts, Store, StoreConfig, StoreState, UpsertKeys, check_uri};
use events::{Decoded, RecordView, Source, StorableEvent};
use serde_json::{Value, json};
use testkit::servers::shared_mongodb;

/// Maximum time to wait for a condition.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A store and direct access to its database.
pub struct StoreFixture {
    pub store: Store,
    pub source: Source,
    pub database: mongodb::Database,
}

/// Options of a test's store.
pub struct StoreOptions {
    pub keys: &'static str,
    pub deadline: Duration,
    pub batch_max_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { keys: "event_id", deadline: Duration::from_secs(10), batch_max_bytes: 8 << 20 }
    }
}

impl StoreFixture {
    /// On the server that the tests share.
    pub async fn with_keys(keys: &'static str) -> Self {
        Self::with_options(StoreOptions { keys, ..StoreOptions::default() }).await
    }

    pub async fn with_options(options: StoreOptions) -> Self {
        Self::on_server(&shared_mongodb().await.uri(), options).await
    }

    pub async fn on_server(uri: &str, options: StoreOptions) -> Self {
        let name = format!("store_{:016x}", fastrand::u64(..));
        let client = mongodb::Client::with_uri_str(uri).await.expect("a client");
        let store = open(uri, &name, &options).await;
        let source = Source::new("adsbdb").expect("a source");
        Self { store, source, database: client.database(&name) }
    }

    pub fn collection(&self) -> mongodb::Collection<Document> {
        self.database.collection(self.source.as_str())
    }

    pub async fn apply(&self, events: &[StorableEvent]) -> BatchOutcome {
        let events: Vec<&StorableEvent> = events.iter().collect();
        let applied = self.store.apply(&self.source, &events, 0).await;
        assert_accounted_once(&applied, events.len());
        applied
    }

    /// Applies events of which none is rejected or unfinished.
    pub async fn write(&self, events: &[StorableEvent]) -> Counts {
        let applied = self.apply(events).await;
        assert_eq!((applied.rejected, applied.unfinished, applied.error), (vec![], vec![], None));
        applied.counts
    }

    /// Applies the unfinished events again until none is left, as a partition worker does.
    pub async fn finish(&self, events: &[StorableEvent], within: Duration) -> Counts {
        let started = Instant::now();
        let mut left: Vec<&StorableEvent> = events.iter().collect();
        let mut counts = Counts::default();
        while !left.is_empty() {
            let applied = self.store.apply(&self.source, &left, 0).await;
            assert_accounted_once(&applied, left.len());
            assert_eq!(applied.rejected, vec![]);
            counts = sum(counts, applied.counts);
            left = applied.unfinished.iter().map(|index| left[*index]).collect();
            assert!(started.elapsed() < within, "unfinished after {within:?}: {:?}", applied.error);
            tokio::task::yield_now().await;
        }
        counts
    }

    /// All documents by event id, with their `_id`.
    pub async fn documents(&self) -> Vec<Document> {
        let mut cursor =
            self.collection().find(doc! {}).sort(doc! { "event_id": 1 }).await.expect("a cursor");
        let mut documents = Vec::new();
        while cursor.advance().await.expect("a document") {
            documents.push(cursor.deserialize_current().expect("a document"));
        }
        documents
    }

    pub async fn find_one(&self, filter: Document) -> Document {
        self.collection().find_one(filter).await.expect("an answer").expect("a document")
    }

    pub async fn index(&self, name: &str) -> Option<Document> {
        let reply = self.database.run_command(doc! { "listIndexes": self.source.as_str() }).await.ok()?;
        let list = reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?.clone();
        list.iter()
            .filter_map(|index| index.as_document())
            .find(|index| index.get_str("name").ok() == Some(name))
            .cloned()
    }

    /// Waits until the state is as wanted.
    pub async fn wait_for_state(&self, wanted: impl Fn(&StoreState) -> bool) -> StoreState {
        let mut state = self.store.state();
        let waited = tokio::time::timeout(WAIT_TIMEOUT, state.wait_for(|state| wanted(state)));
        waited.await.expect("the state in time").expect("a state").clone()
    }
}

/// Opens a store as the consumer does.
pub async fn open(uri: &str, database: &str, options: &StoreOptions) -> Store {
    let config = StoreConfig {
        uri: check_uri(uri).expect("a URI"),
        database: database.to_owned(),
        upsert_keys: UpsertKeys::parse(options.keys).expect("keys"),
        batch_max_bytes: options.batch_max_bytes,
    };
    Store::new(config, options.deadline).expect("a store")
}

/// An event as decoded from a record.
pub fn event(id: &str, timestamp: i64, ingested_at: i64, payload: &Value) -> StorableEvent {
    event_with(id, timestamp, ingested_at, &payload.to_string())
}

/// As [`event`], with the payload as text, for values that serde_json cannot hold.
pub fn event_with(id: &str, timestamp: i64, ingested_at: i64, payload: &str) -> StorableEvent {
    let id = json!(id);
    let value = format!(
        r#"{{"id":{id},"timestamp":{timestamp},"source":"adsbdb","payload":{payload},"ingested_at":{ingested_at},"api_version":"1.0.0"}}"#
    );
    let record = RecordView { key: None, value: value.as_bytes(), timestamp: None };
    match events::decode(&record, |_| true) {
        Ok(Decoded::Event(event)) => event,
        other => panic!("no event: {other:?}"),
    }
}

pub fn without_id(mut document: Document) -> Document {
    document.remove("_id");
    document
}

/// The document of `event` without `_id`.
pub fn expected_document(event: &StorableEvent) -> Document {
    Document::try_from(event.document.clone()).expect("a document")
}

pub fn counts(inserted: u64, updated: u64, unchanged: u64, superseded: u64) -> Counts {
    Counts { inserted, updated, unchanged, superseded, ..Counts::default() }
}

pub fn sum(one: Counts, other: Counts) -> Counts {
    counts(
        one.inserted + other.inserted,
        one.updated + other.updated,
        one.unchanged + other.unchanged,
        one.superseded + other.superseded,
    )
}

/// Asserts that each event is counted, rejected or unfinished, and only one of these.
fn assert_accounted_once(applied: &BatchOutcome, events: usize) {
    let mut indexes: Vec<usize> = applied.rejected.iter().map(|rejected| rejected.index).collect();
    indexes.extend(&applied.unfinished);
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), applied.rejected.len() + applied.unfinished.len(), "{applied:?}");
    assert_eq!(indexes.len() as u64 + applied.counts.total(), events as u64, "{applied:?}");
    assert_eq!(applied.unfinished.is_empty(), applied.error.is_none(), "{applied:?}");
}
