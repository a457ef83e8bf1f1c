//! The sources of EXPECTED_SOURCE and the sources file (SOURCES_FILE), as the consumer uses them:
//! which events are stored, in which collection, under which keys.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use events::{Decoded, DocumentOptions, Poison, RecordView, Source, decode, decode_with};
use sources::{Index, Sources, deletes_collection};

use crate::mongo::key::UpsertKeys;

/// The class of the dead letter of a record whose source is unknown.
pub(crate) const UNKNOWN_SOURCE: &str = "UnknownSource";

/// Where and how the events of a source are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStore {
    /// The collection.
    pub collection: String,
    /// The fields that identify a document.
    pub keys: UpsertKeys,
    /// The field of a document that gets the source's name.
    pub source_field: Option<String>,
    /// Indexes in addition to those that each collection has.
    pub indexes: Vec<Index>,
    /// How long after its timestamp a document expires.
    pub ttl: Option<Duration>,
    /// How long a delete is remembered. `None` if events of the source do not delete.
    pub tombstones: Option<Duration>,
    /// Whether the sources file has the source. Its collection must then have been written under
    /// the same keys.
    pub is_configured: bool,
}

impl SourceStore {
    /// The store of a source that the file does not have: a collection of its name.
    pub fn default_of(source: &Source, keys: &UpsertKeys) -> Self {
        Self {
            collection: source.to_string(),
            keys: keys.clone(),
            source_field: None,
            indexes: Vec::new(),
            ttl: None,
            tombstones: None,
            is_configured: false,
        }
    }
}

/// The sources of the file, and EXPECTED_SOURCE.
#[derive(Debug, Default)]
pub struct ConfiguredSources {
    /// The stores by the name of their source.
    stores: HashMap<String, SourceStore>,
    /// The source of each collection.
    collections: HashMap<String, Source>,
    /// The sources in the order of the file.
    order: Vec<Source>,
    /// EXPECTED_SOURCE. If it is unset, only the sources of the file are stored.
    selected: Option<Box<ExpectedSources>>,
}

impl ConfiguredSources {
    /// The sources of `file`. `keys` are those of a source that has none, and `selected` is
    /// EXPECTED_SOURCE.
    ///
    /// # Errors
    /// A listed source that the file does not have has the collection of another source.
    pub fn new(file: &Sources, keys: &UpsertKeys, selected: Option<ExpectedSources>) -> Result<Self, String> {
        let mut configured = Self { selected: selected.map(Box::new), ..Self::default() };
        for source in file.iter() {
            let store = &source.store;
            let own_keys = store.keys.as_ref().map(|keys| UpsertKeys::from_fields(keys));
            let entry = SourceStore {
                collection: store.collection.clone(),
                keys: own_keys.unwrap_or_else(|| keys.clone()),
                source_field: store.source_field.clone(),
                indexes: store.indexes.clone(),
                ttl: store.ttl,
                tombstones: source.delete.as_ref().map(|delete| delete.tombstones),
                is_configured: true,
            };
            if entry.tombstones.is_some() {
                let deletes = deletes_collection(&entry.collection);
                configured.collections.insert(deletes, source.name.clone());
            }
            configured.collections.insert(entry.collection.clone(), source.name.clone());
            configured.stores.insert(source.name.to_string(), entry);
            configured.order.push(source.name.clone());
        }
        let listed = match configured.selected.as_deref() {
            Some(ExpectedSources::Listed(listed)) => listed.iter().collect(),
            _ => Vec::new(),
        };
        match listed.into_iter().find(|source| configured.has_taken_collection(source.as_str())) {
            None => Ok(configured),
            Some(taken) => Err(format!(
                "contains {taken}, whose collection is that of another source of the sources file; leave it out, or add \
                 it to the file with a collection of its own"
            )),
        }
    }

    /// The sources whose events are stored, in the order of the file. Others may be stored too, if
    /// EXPECTED_SOURCE is `*`.
    pub fn stored(&self) -> impl Iterator<Item = &Source> {
        self.order.iter().filter(|source| self.is_selected(source.as_str()))
    }

    /// The store of a source of the file.
    pub fn store(&self, source: &str) -> Option<&SourceStore> {
        self.stores.get(source)
    }

    /// The store of the source with this collection.
    pub fn store_of_collection(&self, collection: &str) -> Option<&SourceStore> {
        let store = self.store(self.collections.get(collection)?.as_str())?;
        (store.collection == collection).then_some(store)
    }

    /// Whether the collection has the deletes of a source.
    pub fn has_deletes(&self, collection: &str) -> bool {
        let source = self.collections.get(collection).and_then(|source| self.store(source.as_str()));
        source.is_some_and(|store| store.collection != collection)
    }

    /// How the document of a source is made, or `None` if its events are not stored.
    pub(crate) fn options(&self, source: &str) -> Option<DocumentOptions<'_>> {
        if !self.is_selected(source) {
            return None;
        }
        match self.stores.get(source) {
            Some(store) => Some(DocumentOptions {
                source_field: store.source_field.as_deref(),
                ttl: store.ttl,
                takes_deletes: store.tombstones.is_some(),
            }),
            None if self.selected.is_none() || self.has_taken_collection(source) => None,
            None => Some(DocumentOptions::default()),
        }
    }

    /// Why a record of this source, which is not stored, is a dead letter. `None` if it is skipped.
    pub(crate) fn unknown(&self, source: &str) -> Option<Poison> {
        if self.selected.is_some() && !(self.is_selected(source) && self.has_taken_collection(source)) {
            return None;
        }
        let named = match Source::new(source) {
            Ok(source) => format!("the source {source}"),
            Err(_) => "the source".to_owned(),
        };
        let reason = match self.collections.get(source) {
            Some(other) => format!(
                "source: {named} is not in the sources file, and the collection of this name is that of the source {other}"
            ),
            None => format!(
                "source: {named} is not in the sources file; add it, restart the consumer and replay the dead letter"
            ),
        };
        Some(Poison { stage: "decode", class: UNKNOWN_SOURCE, reason })
    }

    fn is_selected(&self, source: &str) -> bool {
        self.selected.as_ref().is_none_or(|selected| selected.contains(source))
    }

    /// Whether the file does not have `source`, but another source with this collection.
    fn has_taken_collection(&self, source: &str) -> bool {
        !self.stores.contains_key(source) && self.collections.contains_key(source)
    }
}

/// The sources whose events are stored (EXPECTED_SOURCE and SOURCES_FILE).
#[derive(Debug, Clone)]
pub enum ExpectedSources {
    /// Every source (`*`).
    All,
    /// Only these sources.
    Listed(BTreeSet<Source>),
    /// Those that the sources file and EXPECTED_SOURCE select.
    Configured(Arc<ConfiguredSources>),
}

impl ExpectedSources {
    /// Whether events of `source` are stored.
    pub fn contains(&self, source: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(sources) => sources.iter().any(|expected| expected.as_str() == source),
            Self::Configured(sources) => sources.options(source).is_some(),
        }
    }

    /// Decodes a record as the consumer does. An event of a source that is skipped is
    /// [`Decoded::OtherSource`].
    ///
    /// # Errors
    /// The record is a dead letter.
    pub fn decode(&self, record: &RecordView<'_>) -> Result<Decoded, Poison> {
        let Self::Configured(sources) = self else {
            return decode(record, |source| self.contains(source));
        };
        match decode_with(record, |source| sources.options(source))? {
            Decoded::OtherSource(source) => match sources.unknown(&source) {
                Some(poison) => Err(poison),
                None => Ok(Decoded::OtherSource(source)),
            },
            event @ Decoded::Event(_) => Ok(event),
        }
    }

    /// The sources whose events are stored, or `None` if those of any source are.
    pub fn listed(&self) -> Option<Vec<Source>> {
        match self {
            Self::All => None,
            Self::Listed(sources) => Some(sources.iter().cloned().collect()),
            Self::Configured(sources) => match sources.selected.as_deref() {
                Some(selected) => selected.listed(),
                None => Some(sources.order.clone()),
            },
        }
    }

    /// The sources of the file, if there is one.
    pub fn configured(&self) -> Option<&ConfiguredSources> {
        match self {
            Self::Configured(sources) => Some(sources),
            Self::All | Self::Listed(_) => None,
        }
    }

    /// Where and how the events of `source` are stored. `keys` are UPSERT_KEYS.
    pub fn store_of(&self, source: &Source, keys: &UpsertKeys) -> SourceStore {
        let configured = self.configured().and_then(|sources| sources.store(source.as_str()));
        configured.cloned().unwrap_or_else(|| SourceStore::default_of(source, keys))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// The sources of the tests. Some are never in a file.
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    /// A source of a file.
    #[derive(Debug, Clone)]
    struct Described {
        collection: Option<&'static str>,
        keys: Option<&'static str>,
        source_field: Option<&'static str>,
    }

    fn described() -> impl Strategy<Value = Described> {
        let collection =
            prop_oneof![2 => Just(None), 1 => proptest::sample::select(&["x", "y", "e"][..]).prop_map(Some)];
        let keys = prop_oneof![Just(None), Just(Some("event_id")), Just(Some("mode_s, a.b"))];
        let source_field = prop_oneof![Just(None), Just(Some("from"))];
        (collection, keys, source_field).prop_map(|(collection, keys, source_field)| Described {
            collection,
            keys,
            source_field,
        })
    }

    /// A file with some of the sources. A collection that another source has is left out.
    fn file() -> impl Strategy<Value = BTreeMap<&'static str, Described>> {
        let sources =
            proptest::collection::btree_map(proptest::sample::select(&NAMES[..4]), described(), 1..4);
        sources.prop_map(|mut sources| {
            let mut taken = BTreeSet::new();
            for source in sources.values_mut() {
                source.collection = source.collection.filter(|name| taken.insert(*name));
            }
            sources
        })
    }

    fn parse(sources: &BTreeMap<&'static str, Described>) -> Sources {
        let mut text = "sources:\n".to_owned();
        for (name, source) in sources {
            let mut store: Vec<String> = Vec::new();
            store.extend(source.collection.map(|collection| format!("collection: {collection}")));
            store.extend(source.keys.map(|keys| format!("keys: [{keys}]")));
            store.extend(source.source_field.map(|field| format!("source_field: {field}")));
            let store = store.join(", ");
            text.push_str(&format!("  {name}: {{push: {{}}, event: {{id: /id}}, store: {{{store}}}}}\n"));
        }
        Sources::parse("s.yaml", &text, Path::new(""), &|_| None).expect("no faults")
    }

    /// EXPECTED_SOURCE: unset, `*` or a list.
    fn selection() -> impl Strategy<Value = Option<Option<BTreeSet<&'static str>>>> {
        let list = proptest::collection::btree_set(proptest::sample::select(&NAMES[..]), 1..4);
        prop_oneof![Just(None), Just(Some(None)), list.prop_map(|list| Some(Some(list)))]
    }

    fn source(name: &str) -> Source {
        Source::new(name).expect("a source")
    }

    proptest! {
        #[test]
        fn each_source_is_stored_as_its_file_and_expected_source_say(
            file in file(), selection in selection(), name in proptest::sample::select(&NAMES[..])
        ) {
            let default_keys = UpsertKeys::parse("registration").expect("keys");
            let selected = selection.clone().map(|list| match list {
                None => ExpectedSources::All,
                Some(list) => ExpectedSources::Listed(list.into_iter().map(source).collect()),
            });
            let collection_of = |name: &str| {
                file.get(name).map(|source| source.collection.map_or_else(|| name.to_owned(), str::to_owned))
            };
            let is_taken = |name: &str| {
                !file.contains_key(name) && file.keys().any(|other| collection_of(other).as_deref() == Some(name))
            };
            let configured = ConfiguredSources::new(&parse(&file), &default_keys, selected);
            let listed = selection.clone().flatten().unwrap_or_default();
            prop_assert_eq!(configured.is_err(), listed.iter().any(|name| is_taken(name)));
            let Ok(configured) = configured else { return Ok(()) };
            let expected = ExpectedSources::Configured(Arc::new(configured));

            let value = format!(r#"{{"id":"i","timestamp":1,"ingested_at":1,"source":"{name}","payload":{{"from":1}}}}"#);
            let record = RecordView { key: None, value: value.as_bytes(), timestamp: None };
            let is_selected = match &selection {
                None | Some(None) => true,
                Some(Some(list)) => list.contains(name),
            };
            match expected.decode(&record) {
                Ok(Decoded::Event(event)) => {
                    prop_assert!(is_selected && !is_taken(name));
                    prop_assert!(file.contains_key(name) || selection.is_some());
                    let field = file.get(name).and_then(|source| source.source_field);
                    let from = event.document.get("from").expect("BSON").expect("a field");
                    prop_assert_eq!(from.as_str(), field.map(|_| name));
                }
                Ok(Decoded::OtherSource(_)) => prop_assert!(!is_selected),
                Err(poison) => {
                    prop_assert_eq!(poison.class, UNKNOWN_SOURCE);
                    prop_assert!(is_selected && !file.contains_key(name));
                    prop_assert!(selection.is_none() || is_taken(name));
                }
            }
            prop_assert_eq!(expected.contains(name), matches!(expected.decode(&record), Ok(Decoded::Event(_))));

            let store = expected.store_of(&source(name), &default_keys);
            prop_assert_eq!(store.is_configured, file.contains_key(name));
            prop_assert_eq!(&store.collection, &collection_of(name).unwrap_or_else(|| name.to_owned()));
            let keys = file.get(name).and_then(|source| source.keys);
            prop_assert_eq!(store.keys, keys.map_or(default_keys, |keys| UpsertKeys::parse(keys).expect("keys")));
        }
    }

    #[test]
    fn a_reason_names_a_valid_source_and_no_other_text() {
        let file =
            parse(&BTreeMap::from([("a", Described { collection: None, keys: None, source_field: None })]));
        let configured = ConfiguredSources::new(&file, &UpsertKeys::default(), None).expect("no conflict");
        let reason = |name: &str| configured.unknown(name).expect("a dead letter").reason;
        assert!(reason("new.one").contains("the source new.one is not in the sources file"));
        assert!(reason("pass word").starts_with("source: the source is not in the sources file"));
    }
}
