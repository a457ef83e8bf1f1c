//! The indexes of a collection: those that it needs, and what the existing ones mean. The consumer
//! writes only to a collection that has a unique index on the key.

use bson::{Bson, Document, doc};

use super::key::{INDEXED_TYPES, UpsertKeys};

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
    let ours = [&["_id"][..], &fields, &LOOKUP_FIELDS];
    let may_reject = |index: &&Document| {
        let key = index.get_document("key").ok();
        let plain =
            key.is_some_and(|key| key.len() == 1 && key.values().all(|value| value.as_str().is_none()));
        index.get_bool("unique").unwrap_or(false) || !plain
    };
    existing.iter().filter(may_reject).any(|index| !ours.iter().any(|ours| has_fields(index, ours)))
}

/// The `createIndexes` command.
pub(super) fn create_command(collection: &str, indexes: &[IndexSpec]) -> Document {
    let named = |spec: &IndexSpec| {
        let mut index = spec.specification.clone();
        index.insert("name", spec.name.as_str());
        Bson::Document(index)
    };
    doc! { "createIndexes": collection, "indexes": indexes.iter().map(named).collect::<Vec<_>>() }
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
