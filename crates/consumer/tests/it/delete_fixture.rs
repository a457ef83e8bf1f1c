//! Events and deletes of a source `orders`, and a store that writes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use consumer::mongo::{Store, StoreConfig, UpsertKeys, check_uri};
use consumer::{ConfiguredSources, ExpectedSources};
use events::{Decoded, RecordView, Source, StorableEvent};
use sources::Sources;

/// The sources file.
pub const FILE: &str = "sources:\n  orders: {push: {}, event: {id: /no}, delete: {}}\n";

/// An event or a delete of an id, with its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op {
    pub id: char,
    pub at: i64,
    /// A delete wins over an event of the same version.
    pub deletes: bool,
}

pub const fn write(id: char, at: i64) -> Op {
    Op { id, at, deletes: false }
}

pub const fn delete(id: char, at: i64) -> Op {
    Op { id, at, deletes: true }
}

impl Op {
    pub fn decode(self, expected: &ExpectedSources) -> StorableEvent {
        let Self { id, at, deletes } = self;
        let content =
            if deletes { r#""op":"delete""#.to_owned() } else { format!(r#""payload":{{"at":{at}}}"#) };
        let value = format!(
            r#"{{"id":"{id}","timestamp":{at},"source":"orders",{content},"ingested_at":{at},"api_version":"1"}}"#
        );
        let record = RecordView { key: None, value: value.as_bytes(), timestamp: None };
        match expected.decode(&record) {
            Ok(Decoded::Event(event)) => event,
            other => panic!("no event: {other:?}"),
        }
    }
}

/// The stored version of each id after the operations in the order of their versions.
pub fn one_after_another(ops: impl IntoIterator<Item = Op>) -> BTreeMap<String, i64> {
    let mut sorted: Vec<Op> = ops.into_iter().collect();
    sorted.sort_by_key(|op| (op.at, op.deletes));
    let mut stored = BTreeMap::new();
    for op in sorted {
        match op.deletes {
            true => _ = stored.remove(&op.id.to_string()),
            false => _ = stored.insert(op.id.to_string(), op.at),
        }
    }
    stored
}

pub fn orders() -> Source {
    Source::new("orders").expect("a source")
}

pub fn expected_sources() -> ExpectedSources {
    let file = Sources::parse("s", FILE, Path::new(""), &|_| None).expect("no faults");
    let configured = ConfiguredSources::new(&file, &UpsertKeys::default(), None).expect("no conflict");
    ExpectedSources::Configured(Arc::new(configured))
}

/// A store of the sources in [`FILE`].
pub fn open(uri: &str, database: &str, deadline: Duration) -> Store {
    let config = StoreConfig {
        uri: check_uri(uri).expect("a URI"),
        database: database.to_owned(),
        upsert_keys: UpsertKeys::default(),
        batch_max_bytes: 8 << 20,
    };
    Store::with_sources(config, deadline, expected_sources()).expect("a store")
}
