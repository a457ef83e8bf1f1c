//! The indexes of a collection: those that it needs, and what the existing ones mean. The consumer
//! writes only to a collection that has a unique index on the key.

use bson::{Bson, Document, doc};
use events::EXPIRES_AT;
use sources::IndexKind;

use super::key::{INDEXED_TYPES, UpsertKeys};
use crate::configured_sources::SourceStore;

/// Fields of the index that finds one version of a document, so that a delete can name it.
const VERSION_FIELDS: [&str; 3] = ["event_id", "event_timestamp", "ingested_at"];

/// Fields of the index for looking aircraft up.
const LOOKUP_FIELDS: [&str; 3] = ["mode_s", "registration", "event_timestamp"];

/// The name and the specification of an index.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct IndexSpec {
    pub(super) name: String,
    pub(super) specification: Document,
}

/// Indexes that a collection lacks.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MissingIndexes {
    /// Without it nothing is written.
    pub(super) unique: Option<IndexSpec>,
    /// They only speed queries up.
    pub(super) lookups: Vec<IndexSpec>,
}

/// Compares a reply to `listIndexes` with the indexes that `keys` need.
///
/// # Errors
/// The name of a conflicting index: it has the key's fields but other options.
pub(super) fn missing_indexes(keys: &UpsertKeys, existing: &[Document]) -> Result<MissingIndexes, String> {
    let fields: Vec<&str> = keys.fields().collect();
    let mut missing = MissingIndexes::default();
    if listed_unique_index(keys, existing).is_none() {
        let wanted = unique_index(keys);
        // createIndexes fails if another index has the same fields or the same name.
        let on_key = existing.iter().find(|index| has_fields(index, &fields));
        let same_name = || existing.iter().find(|index| name_of(index) == wanted.name);
        if let Some(index) = on_key.or_else(same_name) {
            return Err(name_of(index).to_owned());
        }
        missing.unique = Some(wanted);
    }
    let lookups = [&["event_id"][..], &LOOKUP_FIELDS[..]];
    for lookup in lookups.into_iter().filter(|lookup| !same_fields(lookup, &fields)) {
        let wanted = IndexSpec { name: name(lookup), specification: doc! { "key": ascending(lookup) } };
        let is_lookup = |index: &Document| {
            has_fields(index, lookup) && (name_of(index) == wanted.name || in_order(index, lookup))
        };
        if !existing.iter().any(is_lookup) {
            missing.lookups.push(wanted);
        }
    }
    Ok(missing)
}

/// The unique index on the key in a reply to `listIndexes`. It may still be building.
pub(super) fn listed_unique_index(keys: &UpsertKeys, existing: &[Document]) -> Option<IndexSpec> {
    let fields: Vec<&str> = keys.fields().collect();
    let on_key = existing.iter().filter(|index| has_fields(index, &fields));
    on_key.filter(|index| enforces_keys(keys, index, existing)).map(as_listed).next()
}

/// The specification by which createIndexes recognizes a listed index. The omitted fields are not
/// part of its identity. Old servers stored values in them that createIndexes rejects.
fn as_listed(index: &Document) -> IndexSpec {
    let omitted = ["name", "v", "ns", "background", "dropDups"];
    let kept = index.iter().filter(|(field, _)| !omitted.contains(&field.as_str()));
    let specification = kept.map(|(field, value)| (field.clone(), value.clone())).collect();
    IndexSpec { name: name_of(index).to_owned(), specification }
}

/// Whether a filter must name the types of the values so that the planner uses the unique index. It
/// need not if a full index begins with the key's fields.
pub(super) fn filter_needs_types(keys: &UpsertKeys) -> bool {
    let fields: Vec<&str> = keys.fields().collect();
    let first = LOOKUP_FIELDS.get(..fields.len()).unwrap_or_default();
    let lookup_covers_key = !first.is_empty() && fields.iter().all(|field| first.contains(field));
    !keys.is_event_id() && !lookup_covers_key
}

/// Whether an index of the user may reject one document and accept another. A unique index may, and
/// so may an index that cannot hold every value: geographic indexes, and those over several fields,
/// which cannot hold two arrays.
pub(super) fn user_indexes_may_reject(keys: &UpsertKeys, existing: &[Document]) -> bool {
    let fields: Vec<&str> = keys.fields().collect();
    let ours = [&["_id"][..], &fields, &LOOKUP_FIELDS, &VERSION_FIELDS];
    let may_reject = |index: &&Document| {
        let key = index.get_document("key").ok();
        let plain =
            key.is_some_and(|key| key.len() == 1 && key.values().all(|value| value.as_str().is_none()));
        index.get_bool("unique").unwrap_or(false) || !plain
    };
    existing.iter().filter(may_reject).any(|index| !ours.iter().any(|ours| has_fields(index, ours)))
}

/// The indexes of a source in addition to those that each collection has.
pub(super) fn indexes_of(store: &SourceStore) -> Vec<IndexSpec> {
    let version = store.tombstones.map(|_| IndexSpec {
        name: name(&VERSION_FIELDS),
        specification: doc! { "key": ascending(&VERSION_FIELDS) },
    });
    let expiry = store.ttl.map(|_| expiry_index());
    store.indexes.iter().map(extra_index).chain(version).chain(expiry).collect()
}

/// The index by which the server removes what has expired.
pub(super) fn expiry_index() -> IndexSpec {
    let specification = doc! { "key": { EXPIRES_AT: 1 }, "expireAfterSeconds": 0 };
    IndexSpec { name: name(&[EXPIRES_AT]), specification }
}

/// The specification of an index of the sources file.
pub(super) fn extra_index(index: &sources::Index) -> IndexSpec {
    let mut key = Document::new();
    let mut name = String::new();
    for (field, kind) in &index.keys {
        let value: Bson = match kind {
            IndexKind::Ascending => 1.into(),
            IndexKind::Descending => (-1).into(),
            IndexKind::Hashed => "hashed".into(),
            IndexKind::Text => "text".into(),
            IndexKind::Sphere => "2dsphere".into(),
        };
        let kind = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let separator = if name.is_empty() { "" } else { "_" };
        // The name that MongoDB gives the index by default.
        name.push_str(&format!("{separator}{field}_{kind}"));
        key.insert(field, value);
    }
    let mut specification = doc! { "key": key };
    if index.unique {
        specification.insert("unique", true);
    }
    IndexSpec { name, specification }
}

/// Whether an index of the sources file is in a reply to `listIndexes`, under any name. It may
/// still be building.
pub(super) fn has_extra(wanted: &IndexSpec, existing: &[Document]) -> bool {
    let key = wanted.specification.get_document("key").ok();
    let is_text = key.is_some_and(|key| key.values().any(|kind| kind.as_str() == Some("text")));
    let wants_unique = is_unique(wanted);
    existing.iter().any(|index| {
        // The server lists the fields of a text index in another form.
        let same_key = match is_text {
            true => name_of(index) == wanted.name,
            false => same_key(index.get_document("key").ok(), key),
        };
        let covers_all =
            !["partialFilterExpression", "sparse"].iter().any(|option| index.contains_key(option));
        let expires = |index: &Document| index.get("expireAfterSeconds").and_then(as_integer);
        let same_expiry = [None, expires(index)].contains(&expires(&wanted.specification));
        same_key && covers_all && same_expiry && (!wants_unique || index.get_bool("unique").unwrap_or(false))
    })
}

fn as_integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

/// Whether two documents have the same fields with the same orders, which may be of any number
/// type.
fn same_key(one: Option<&Document>, other: Option<&Document>) -> bool {
    let order = |value: &Bson| match value {
        Bson::Int64(order) => i32::try_from(*order).map_or_else(|_| value.clone(), Bson::Int32),
        Bson::Double(order) if order.abs() == 1.0 => Bson::Int32(*order as i32),
        _ => value.clone(),
    };
    let (Some(one), Some(other)) = (one, other) else { return false };
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| one.0 == other.0 && order(one.1) == order(other.1))
}

/// Whether an index of the sources file is unique.
pub(super) fn is_unique(spec: &IndexSpec) -> bool {
    spec.specification.get_bool("unique").unwrap_or(false)
}

/// The name and the fields of the unique index by which the collection was written under other
/// keys than `keys`. It has the form that the consumer gives such an index. Those of `extra` and
/// other indexes of the user have another purpose.
pub(super) fn other_keys(
    keys: &UpsertKeys,
    extra: &[IndexSpec],
    existing: &[Document],
) -> Option<(String, Vec<String>)> {
    if listed_unique_index(keys, existing).is_some() {
        return None;
    }
    existing.iter().find_map(|index| {
        let key = index.get_document("key").ok()?;
        let fields: Vec<String> = key.keys().cloned().collect();
        let other = UpsertKeys::parse(&fields.join(",")).ok()?;
        let own: Vec<&str> = keys.fields().collect();
        let is_other = !has_fields(index, &own) && enforces_keys(&other, index, existing);
        let is_extra =
            extra.iter().any(|extra| same_key(extra.specification.get_document("key").ok(), Some(key)));
        (is_other && !is_extra).then(|| (name_of(index).to_owned(), fields))
    })
}

/// The `createIndexes` command.
pub(super) fn create_command(collection: &str, indexes: &[IndexSpec]) -> Document {
    doc! { "createIndexes": collection, "indexes": indexes.iter().map(named).collect::<Vec<_>>() }
}

/// An index of a `createIndexes` command.
fn named(spec: &IndexSpec) -> Document {
    let mut index = spec.specification.clone();
    index.insert("name", spec.name.as_str());
    index
}

/// The state of a collection's indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexState {
    /// All needed indexes exist.
    Complete,
    /// Only these look-up indexes are missing.
    MissingLookups(Vec<String>),
    /// The unique index on the key is missing.
    MissingUnique,
    /// The unique index is missing, and the index of this name prevents its creation.
    Conflicting(String),
}

/// The state of the indexes in a reply to `listIndexes`.
pub fn index_state(keys: &UpsertKeys, existing: &[Document]) -> IndexState {
    match missing_indexes(keys, existing) {
        Err(name) => IndexState::Conflicting(name),
        Ok(MissingIndexes { unique: Some(_), .. }) => IndexState::MissingUnique,
        Ok(MissingIndexes { lookups, .. }) if lookups.is_empty() => IndexState::Complete,
        Ok(MissingIndexes { lookups, .. }) => {
            IndexState::MissingLookups(lookups.into_iter().map(|lookup| lookup.name).collect())
        }
    }
}

/// The name and the fields of the unique index by which a collection was written under other keys
/// than those of the sources file, in a reply to `listIndexes`.
pub fn written_under_other_keys(store: &SourceStore, existing: &[Document]) -> Option<(String, Vec<String>)> {
    other_keys(&store.keys, &indexes_of(store), existing)
}

/// The names of the indexes of the sources file that a reply to `listIndexes` lacks.
pub fn missing_extra_indexes(store: &SourceStore, existing: &[Document]) -> Vec<String> {
    let extra = indexes_of(store).into_iter();
    extra.filter(|index| !has_extra(index, existing)).map(|index| index.name).collect()
}

/// The indexes that a collection needs besides `_id_`, as `createIndexes` gets them: the unique one,
/// those for look-ups, and those of the sources file.
pub fn needed_indexes(store: &SourceStore) -> Vec<Document> {
    // Nothing exists yet, so nothing conflicts.
    let MissingIndexes { unique, lookups } = missing_indexes(&store.keys, &[]).unwrap_or_default();
    let extra = store.indexes.iter().map(extra_index);
    unique.into_iter().chain(lookups).chain(extra).map(|index| named(&index)).collect()
}

/// The query for mongosh that finds documents with the same key.
pub(super) fn duplicates_query(database: &str, collection: &str, keys: &UpsertKeys) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let paths: Vec<String> = keys.fields().map(|field| quoted(&format!("${field}"))).collect();
    let matched = partial_filter(keys)
        .map(|filter| format!("{{$match: {}}}, ", serde_json::json!(filter)))
        .unwrap_or_default();
    format!(
        "db.getSiblingDB({}).getCollection({}).aggregate([{matched}{{$group: {{_id: [{}], ids: {{$push: \"$_id\"}}, \
         n: {{$sum: 1}}}}}}, {{$match: {{n: {{$gt: 1}}}}}}], {{allowDiskUse: true}})",
        quoted(database),
        quoted(collection),
        paths.join(", ")
    )
}

fn unique_index(keys: &UpsertKeys) -> IndexSpec {
    let fields: Vec<&str> = keys.fields().collect();
    let mut specification = doc! { "key": ascending(&fields), "unique": true };
    if let Some(filter) = partial_filter(keys) {
        specification.insert("partialFilterExpression", filter);
    }
    IndexSpec { name: name(&fields), specification }
}

/// The filter of the unique index if it does not cover all documents: every key field exists and
/// has a type that a key may have.
pub fn partial_filter(keys: &UpsertKeys) -> Option<Document> {
    if keys.is_event_id() {
        return None;
    }
    let condition = doc! { "$exists": true, "$type": INDEXED_TYPES.to_vec() };
    Some(keys.fields().map(|field| (field.to_owned(), Bson::Document(condition.clone()))).collect())
}

/// Whether `index`, which has the key's fields, rejects a second document with the same key and no
/// other document.
fn enforces_keys(keys: &UpsertKeys, index: &Document, existing: &[Document]) -> bool {
    // The collation of a collection is that of its _id index; queries use it too.
    let standard = existing.iter().find(|index| name_of(index) == "_id_").and_then(collation);
    // A sparse index covers all documents with an event_id, and every event has one.
    let covers_all_events = keys.is_event_id() || !index.get_bool("sparse").unwrap_or(false);
    index.get_bool("unique").unwrap_or(false)
        && covers_all_events
        && index.get_document("partialFilterExpression").ok() == partial_filter(keys).as_ref()
        && collation(index) == standard
}

/// The collation of an index. `simple` is the same as no collation.
fn collation(index: &Document) -> Option<&Document> {
    let collation = index.get_document("collation").ok();
    collation.filter(|collation| !collation.get_str("locale").is_ok_and(|locale| locale == "simple"))
}

fn name_of(index: &Document) -> &str {
    index.get_str("name").unwrap_or_default()
}

fn has_fields(index: &Document, fields: &[&str]) -> bool {
    index
        .get_document("key")
        .is_ok_and(|key| same_fields(&key.keys().map(String::as_str).collect::<Vec<_>>(), fields))
}

fn in_order(index: &Document, fields: &[&str]) -> bool {
    index.get_document("key").is_ok_and(|key| key.keys().map(String::as_str).eq(fields.iter().copied()))
}

fn same_fields(one: &[&str], other: &[&str]) -> bool {
    one.len() == other.len() && one.iter().all(|field| other.contains(field))
}

fn ascending(fields: &[&str]) -> Document {
    fields.iter().map(|field| ((*field).to_owned(), Bson::Int32(1))).collect()
}

/// The name that MongoDB gives an index by default.
fn name(fields: &[&str]) -> String {
    fields.iter().map(|field| format!("{field}_1")).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> UpsertKeys {
        UpsertKeys::parse(text).expect("keys")
    }

    fn names(missing: &MissingIndexes) -> Vec<&str> {
        missing.unique.iter().chain(&missing.lookups).map(|wanted| wanted.name.as_str()).collect()
    }

    const LOOKUP_NAME: &str = "mode_s_1_registration_1_event_timestamp_1";

    #[test]
    fn a_new_collection_needs_the_unique_and_the_look_up_indexes() {
        let by_id = missing_indexes(&keys("event_id"), &[]).expect("no conflict");
        assert_eq!(names(&by_id), ["event_id_1", LOOKUP_NAME]);
        let unique = by_id.unique.expect("a unique index").specification;
        assert_eq!(unique, doc! { "key": { "event_id": 1 }, "unique": true });

        let by_two = missing_indexes(&keys("mode_s,a.b"), &[]).expect("no conflict");
        assert_eq!(names(&by_two), ["mode_s_1_a.b_1", "event_id_1", LOOKUP_NAME]);
        let unique = by_two.unique.expect("a unique index").specification;
        let condition = doc! { "$exists": true, "$type": ["string", "number", "bool"] };
        assert_eq!(
            unique.get_document("partialFilterExpression").ok(),
            Some(&doc! { "mode_s": condition.clone(), "a.b": condition })
        );

        let all_three =
            missing_indexes(&keys("event_timestamp,mode_s,registration"), &[]).expect("no conflict");
        assert_eq!(names(&all_three), ["event_timestamp_1_mode_s_1_registration_1", "event_id_1"]);
    }

    #[test]
    fn existing_indexes_are_not_built_again_whatever_their_names() {
        let id = doc! { "key": { "_id": 1 }, "name": "_id_" };
        let unique = doc! { "key": { "event_id": 1 }, "name": "by_hand", "unique": true };
        let lookup = doc! { "key": ascending(&LOOKUP_FIELDS), "name": "x" };
        let existing = [id, unique, lookup];
        assert_eq!(missing_indexes(&keys("event_id"), &existing), Ok(MissingIndexes::default()));
        let made = missing_indexes(&keys("mode_s"), &[]).expect("no conflict");
        let mut listed: Vec<Document> = made.unique.iter().chain(&made.lookups).map(listed_as).collect();
        assert_eq!(missing_indexes(&keys("mode_s"), &listed), Ok(MissingIndexes::default()));
        listed.reverse();
        assert_eq!(missing_indexes(&keys("mode_s"), &listed), Ok(MissingIndexes::default()));
    }

    fn listed_as(wanted: &IndexSpec) -> Document {
        let mut index = wanted.specification.clone();
        index.insert("name", &wanted.name);
        index
    }

    #[test]
    fn indexes_of_the_user_may_reject_documents_and_ours_do_not() {
        let made = missing_indexes(&keys("mode_s"), &[]).expect("no conflict");
        let mut existing: Vec<Document> = made.unique.iter().chain(&made.lookups).map(listed_as).collect();
        existing.push(doc! { "key": { "_id": 1 }, "name": "_id_" });
        existing.push(doc! { "key": { "type": -1.0 }, "name": "by_type" });
        assert!(!user_indexes_may_reject(&keys("mode_s"), &existing));
        for rejecting in [
            doc! { "key": { "tail": 1 }, "name": "x", "unique": true },
            doc! { "key": { "place": "2dsphere" }, "name": "x" },
            doc! { "key": { "a": 1, "b": 1 }, "name": "x" },
        ] {
            let existing = [existing.clone(), vec![rejecting]].concat();
            assert!(user_indexes_may_reject(&keys("mode_s"), &existing));
        }
    }

    #[test]
    fn an_index_of_the_key_with_other_options_conflicts() {
        let key = doc! { "event_id": 1 };
        let french = doc! { "locale": "fr" };
        for index in [
            doc! { "key": key.clone(), "name": "event_id_1" },
            doc! { "key": key.clone(), "name": "event_id_1", "unique": true, "partialFilterExpression": { "a": 1 } },
            doc! { "key": key, "name": "event_id_1", "unique": true, "collation": french.clone() },
            doc! { "key": { "other": 1 }, "name": "event_id_1" },
        ] {
            assert_eq!(missing_indexes(&keys("event_id"), &[index]), Err("event_id_1".to_owned()));
        }
        let collated =
            |key: Document, name: &str| doc! { "key": key, "name": name, "collation": french.clone() };
        let mut unique = collated(doc! { "event_id": 1 }, "event_id_1");
        unique.insert("unique", true);
        let french_collection = [collated(doc! { "_id": 1 }, "_id_"), unique];
        assert!(missing_indexes(&keys("event_id"), &french_collection).is_ok());
    }

    #[test]
    fn a_unique_index_on_every_event_id_is_accepted_as_listed() {
        let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
        let index = |more: Document| {
            let mut index = doc! { "v": 2, "key": { "event_id": -1 }, "name": "by_hand", "unique": true };
            index.extend(more);
            index
        };
        for more in [
            doc! {},
            doc! { "sparse": true },
            doc! { "hidden": true },
            doc! { "collation": { "locale": "simple" } },
            doc! { "sparse": true, "expireAfterSeconds": 60 },
        ] {
            let listed = index(more.clone());
            let unique = listed_unique_index(&keys("event_id"), &[id.clone(), listed]).expect("accepted");
            let mut sent = doc! { "key": { "event_id": -1 }, "unique": true };
            sent.extend(more);
            assert_eq!(unique, IndexSpec { name: "by_hand".into(), specification: sent });
        }
        let old = index(doc! { "ns": "d.c", "background": "yes", "dropDups": 1 });
        let sent = listed_unique_index(&keys("event_id"), &[old]).expect("accepted").specification;
        assert_eq!(sent, doc! { "key": { "event_id": -1 }, "unique": true });
        // A sparse index rejects a second null, which keys other than event_id may have.
        let sparse = doc! { "key": { "mode_s": 1 }, "name": "x", "unique": true, "sparse": true };
        assert_eq!(missing_indexes(&keys("mode_s"), &[sparse]), Err("x".to_owned()));
    }

    fn extra(keys: &[(&str, IndexKind)], unique: bool) -> IndexSpec {
        let keys = keys.iter().map(|(field, kind)| ((*field).to_owned(), *kind)).collect();
        extra_index(&sources::Index { keys, unique })
    }

    #[test]
    fn an_extra_index_has_the_name_that_mongodb_gives_it() {
        let two = extra(&[("mag", IndexKind::Descending), ("where.lat", IndexKind::Ascending)], true);
        assert_eq!(two.name, "mag_-1_where.lat_1");
        assert_eq!(two.specification, doc! { "key": { "mag": -1, "where.lat": 1 }, "unique": true });
        for (kind, name) in
            [(IndexKind::Text, "a_text"), (IndexKind::Hashed, "a_hashed"), (IndexKind::Sphere, "a_2dsphere")]
        {
            assert_eq!(extra(&[("a", kind)], false).name, name);
        }
    }

    #[test]
    fn an_extra_index_is_found_under_any_name_unless_its_options_differ() {
        let wanted = extra(&[("a", IndexKind::Descending)], false);
        let listed = |more: Document| {
            let mut index = doc! { "key": { "a": -1.0 }, "name": "x" };
            index.extend(more);
            [index]
        };
        assert!(has_extra(&wanted, &listed(doc! {})));
        assert!(has_extra(&wanted, &listed(doc! { "unique": true })));
        assert!(!has_extra(&wanted, &listed(doc! { "sparse": true })));
        assert!(!has_extra(&wanted, &listed(doc! { "key": { "a": 1 } })));
        let unique = extra(&[("a", IndexKind::Descending)], true);
        assert!(!has_extra(&unique, &listed(doc! {})));
        assert!(has_extra(&unique, &listed(doc! { "unique": true })));
        let text = extra(&[("a", IndexKind::Text)], false);
        let as_listed =
            doc! { "key": { "_fts": "text", "_ftsx": 1 }, "name": "a_text", "weights": { "a": 1 } };
        assert!(has_extra(&text, &[as_listed]));
    }

    #[test]
    fn a_collection_written_under_other_keys_is_recognized_by_its_unique_index() {
        let id = doc! { "key": { "_id": 1 }, "name": "_id_" };
        let made_for = |text: &str| {
            let unique = missing_indexes(&keys(text), &[]).expect("no conflict").unique.expect("an index");
            vec![id.clone(), listed_as(&unique)]
        };
        let by_id = made_for("event_id");
        assert_eq!(
            other_keys(&keys("mode_s"), &[], &by_id),
            Some(("event_id_1".into(), vec!["event_id".into()]))
        );
        let by_two = made_for("a.b,c");
        assert_eq!(
            other_keys(&keys("event_id"), &[], &by_two).map(|(_, fields)| fields),
            Some(vec!["a.b".to_owned(), "c".to_owned()])
        );
        assert_eq!(other_keys(&keys("event_id"), &[], &by_id), None);
        assert_eq!(other_keys(&keys("c,a.b"), &[], &by_two), None, "the order does not matter");
        assert_eq!(other_keys(&keys("event_id"), &[], &[]), None);
        let both = [by_id.clone(), made_for("mode_s")].concat();
        assert_eq!(other_keys(&keys("mode_s"), &[], &both), None);
        // Indexes of the user: not in the form of the consumer, or in the sources file.
        let of_user = doc! { "key": { "email": 1 }, "name": "email_1", "unique": true };
        assert_eq!(other_keys(&keys("event_id"), &[], &[id.clone(), of_user]), None);
        let in_file = extra(&[("event_id", IndexKind::Ascending)], true);
        assert_eq!(other_keys(&keys("mode_s"), &[in_file], &by_id), None);
    }

    #[test]
    fn the_query_for_duplicates_quotes_every_name() {
        let by_id = duplicates_query("d", "c", &keys("event_id"));
        assert_eq!(
            by_id,
            "db.getSiblingDB(\"d\").getCollection(\"c\").aggregate([{$group: {_id: [\"$event_id\"], \
             ids: {$push: \"$_id\"}, n: {$sum: 1}}}, {$match: {n: {$gt: 1}}}], {allowDiskUse: true})"
        );
        let by_two = duplicates_query("d\"", "c", &keys("a.b,c"));
        assert!(
            by_two.contains(r#"db.getSiblingDB("d\"")"#) && by_two.contains(r#"_id: ["$a.b", "$c"]"#),
            "{by_two}"
        );
        assert!(by_two.contains(r#"{$match: {"a.b":{"$exists":true,"#), "{by_two}");
    }
}
