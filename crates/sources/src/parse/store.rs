//! The fields below `store`.

use std::collections::btree_map::Entry;

use events::{EXPIRES_AT, Source as SourceName};

use super::{Parser, flat};
use crate::config::{Index, IndexKind, Store, deletes_collection};
use crate::reader::At;
use crate::tree::Value;

const FIELDS: [&str; 5] = ["collection", "keys", "source_field", "indexes", "ttl"];
const TIME_SERIES: &str = "a time-series collection takes no unique index and no upsert, so a repeated record would be \
                           stored twice (G2) and a newer one would not replace an older one (G3); use a plain \
                           collection with an index on event_timestamp";
/// Another key would not find the document, because a delete has only the id.
const DELETE_KEYS: &str = "a delete knows only the id, so a source with `delete` has `keys: [event_id]`";
/// MongoDB's limit of fields in an index.
const MAX_KEYS: usize = 32;
/// MongoDB's limit of indexes is 64. Some are Slipstream's own.
const MAX_INDEXES: usize = 32;

impl Parser<'_> {
    /// `entry` is the source, `name` its name. `takes_deletes` is whether it has `delete`.
    pub(super) fn store(
        &mut self,
        at: Option<&At<'_>>,
        name: &str,
        takes_deletes: bool,
        entry: &At<'_>,
    ) -> Option<Store> {
        let Some(at) = at else {
            self.claim(name, name, takes_deletes, entry);
            return Some(Store { keys: takes_deletes.then(event_id), ..Store::of(name) });
        };
        let refused = [("time_series", TIME_SERIES), ("timeseries", TIME_SERIES)];
        let fields = at.fields(&mut self.report, &FIELDS, &refused)?;
        let collection_field = fields.get("collection");
        let collection = collection_field.as_ref().map(|at| at.parsed(&mut self.report, collection));
        let keys_field = fields.get("keys");
        let keys = keys_field.as_ref().map(|at| self.keys(at));
        let source_field = fields.get("source_field").map(|at| at.parsed(&mut self.report, source_field));
        let indexes = fields.get("indexes").map(|at| self.indexes(&at));
        let ttl_field = fields.get("ttl");
        let ttl = ttl_field.as_ref().map(|at| at.duration(&mut self.report, "1s", "36500d"));
        let collection = flat(collection)?.unwrap_or_else(|| name.to_owned());
        self.claim(&collection, name, takes_deletes, collection_field.as_ref().unwrap_or(entry));
        let mut store = Store {
            collection,
            keys: flat(keys)?,
            source_field: flat(source_field)?,
            indexes: flat(indexes)?.unwrap_or_default(),
            ttl: flat(ttl)?,
        };
        self.check_indexes(at, &store);
        if let Some(at) = &ttl_field {
            self.check_ttl(at, &store);
        }
        if takes_deletes {
            if let Some(at) = &keys_field
                && store.keys != Some(event_id())
            {
                at.fault(&mut self.report, DELETE_KEYS);
            }
            store.keys = Some(event_id());
        }
        Some(store)
    }

    fn check_indexes(&mut self, at: &At<'_>, store: &Store) {
        let unique = store.keys.as_ref().unwrap_or(&self.settings.keys);
        let same = |index: &Index| {
            index.keys.iter().all(|(_, kind)| *kind == IndexKind::Ascending)
                && index.keys.iter().map(|(field, _)| field).eq(unique)
        };
        if store.indexes.iter().any(same) {
            let fields = if store.keys.is_some() { "`keys`" } else { "UPSERT_KEYS" };
            let message = format!("{fields} already has a unique index, which `indexes` should not repeat");
            at.fault(&mut self.report, message);
        }
    }

    /// Documents that expire have the field `expires_at`, which nothing else may write or index.
    fn check_ttl(&mut self, at: &At<'_>, store: &Store) {
        let is_own = |field: &String| field == EXPIRES_AT || field.starts_with("expires_at.");
        let indexed = store.indexes.iter().flat_map(|index| &index.keys).map(|(field, _)| field);
        let other_use = if store.keys.iter().flatten().any(is_own) {
            "keys"
        } else if store.source_field.as_ref().is_some_and(is_own) {
            "source_field"
        } else if indexed.into_iter().any(is_own) {
            "indexes"
        } else {
            return;
        };
        let message =
            format!("`ttl` writes and indexes the field expires_at, so `{other_use}` should not have it");
        at.fault(&mut self.report, message);
    }

    /// Reserves a collection for a source, and the one that has its deletes.
    fn claim(&mut self, collection: &str, name: &str, takes_deletes: bool, at: &At<'_>) {
        let deletes = takes_deletes.then(|| deletes_collection(collection));
        for collection in std::iter::once(collection.to_owned()).chain(deletes) {
            match self.collections.entry(collection) {
                Entry::Vacant(entry) => {
                    entry.insert(name.to_owned());
                }
                Entry::Occupied(other) => {
                    let message = format!(
                        "the collection is that of the source {} too; each needs its own",
                        other.get()
                    );
                    at.fault(&mut self.report, message);
                }
            }
        }
    }

    fn keys(&mut self, at: &At<'_>) -> Option<Vec<String>> {
        let items = at.list(&mut self.report, "a list of fields such as [event_id]");
        if items.len() > MAX_KEYS {
            at.fault(&mut self.report, format!("should have at most {MAX_KEYS} fields"));
            return None;
        }
        let mut keys: Vec<String> = Vec::new();
        for item in &items {
            if let Some(field) = item.parsed(&mut self.report, field) {
                if field == "_id" || field.starts_with("_id.") {
                    item.fault(&mut self.report, "_id is created by MongoDB; use event_id");
                } else if keys.iter().any(|other| overlap(other, &field)) {
                    item.fault(&mut self.report, "this field is part of another one of the list");
                } else {
                    keys.push(field);
                }
            }
        }
        (!items.is_empty() && keys.len() == items.len()).then_some(keys)
    }

    fn indexes(&mut self, at: &At<'_>) -> Option<Vec<Index>> {
        let items = at.list(&mut self.report, "a list of indexes such as [{keys: {mag: -1}}]");
        if items.len() > MAX_INDEXES {
            at.fault(&mut self.report, format!("should have at most {MAX_INDEXES} indexes"));
            return None;
        }
        let mut indexes: Vec<Index> = Vec::new();
        for item in &items {
            if let Some(index) = self.index(item) {
                if indexes.iter().any(|other| other.keys == index.keys) {
                    item.fault(&mut self.report, "this index occurs twice");
                } else {
                    indexes.push(index);
                }
            }
        }
        (indexes.len() == items.len()).then_some(indexes)
    }

    fn index(&mut self, at: &At<'_>) -> Option<Index> {
        let fields = at.fields(&mut self.report, &["keys", "unique"], &[])?;
        let unique = fields.get("unique").map(|at| at.boolean(&mut self.report));
        let keys_field = fields.required(&mut self.report, "keys")?;
        let members = keys_field.members(&mut self.report, "a map of fields such as {mag: -1}");
        if keys_field.is_map() && !(1..=MAX_KEYS).contains(&members.len()) {
            keys_field.fault(&mut self.report, format!("should have 1 to {MAX_KEYS} fields"));
        }
        let mut keys = Vec::new();
        for (key, value) in &members {
            let name = field(&key.name).map_err(|reason| self.report.add(key.at, &value.path, reason));
            let kind = match &value.node.value {
                Value::Integer(1) => Some(IndexKind::Ascending),
                Value::Integer(-1) => Some(IndexKind::Descending),
                Value::Text(text) if text == "hashed" => Some(IndexKind::Hashed),
                Value::Text(text) if text == "text" => Some(IndexKind::Text),
                Value::Text(text) if text == "2dsphere" => Some(IndexKind::Sphere),
                Value::Faulty => None,
                _ => {
                    value.fault(&mut self.report, "should be 1, -1, hashed, text or 2dsphere");
                    None
                }
            };
            keys.extend(name.ok().zip(kind));
        }
        if keys.is_empty() || keys.len() != members.len() {
            return None;
        }
        let unique = flat(unique)?.unwrap_or_default();
        if unique
            && keys.iter().any(|(_, kind)| !matches!(kind, IndexKind::Ascending | IndexKind::Descending))
        {
            at.fault(&mut self.report, "only an index with 1 and -1 can be unique");
            return None;
        }
        Some(Index { keys, unique })
    }
}

fn event_id() -> Vec<String> {
    vec!["event_id".to_owned()]
}

fn collection(text: &str) -> Result<String, String> {
    SourceName::new(text)
        .map(|name| name.as_str().to_owned())
        .map_err(|reason| format!("is not a name of a collection: {}", reason.replacen("Source", "It", 1)))
}

/// The path of a field in a document.
fn field(text: &str) -> Result<String, String> {
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('$') && !part.contains('\0');
    if text.len() > 256 || !text.split('.').all(is_part) {
        return Err("should be a field of a document, such as place or where.lat".into());
    }
    Ok(text.to_owned())
}

fn source_field(text: &str) -> Result<String, String> {
    let name = field(text)?;
    if name.contains('.') {
        return Err("should be a field at the top of the document, without a dot".into());
    }
    if events::is_reserved_field(text) {
        return Err("is a field that Slipstream writes itself; use another one such as source".into());
    }
    Ok(name)
}

/// Whether one field is the other or a part of it.
fn overlap(one: &str, other: &str) -> bool {
    let is_part =
        |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('.'));
    one == other || is_part(one, other) || is_part(other, one)
}
