//! The indexes of a collection: which ones it needs, and what the ones that are there already mean. Nothing is written
//! to a collection whose key is not guarded by a unique index.

use bson::{Bson, Document, doc};

use super::key::UpsertKeys;

/// The types of a key's values. Null, objects and absent fields stay outside the unique index, as their events are
/// upserted by an `_id` of their own.
pub(super) const INDEXED_TYPES: [&str; 3] = ["string", "number", "bool"];

/// The fields that aircraft are looked up by.
pub(super) const LOOKUP: [&str; 3] = ["mode_s", "registration", "event_timestamp"];

/// An index to be made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) specification: Document,
}

/// What a collection still lacks.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Missing {
    /// Without this one nothing may be written.
    pub(super) unique: Option<Wanted>,
    /// These make queries quick, no more.
    pub(super) lookups: Vec<Wanted>,
}

/// Compares what listIndexes told with what `keys` need.
///
/// # Errors
/// The name of an index that stands in the way: the key's fields with other options.
pub(super) fn missing(keys: &UpsertKeys, existing: &[Document]) -> Result<Missing, String> {
    let fields: Vec<&str> = keys.fields().collect();
    let mut missing = Missing::default();
    if listed_unique(keys, existing).is_none() {
        let wanted = unique(keys);
        // Another index of the same fields or name makes createIndexes fail.
        let on_key = existing.iter().find(|index| has_fields(index, &fields));
        let same_name = || existing.iter().find(|index| name_of(index) == wanted.name);
        if let Some(index) = on_key.or_else(same_name) {
            return Err(name_of(index).to_owned());
        }
        missing.unique = Some(wanted);
    }
    let lookups = [&["event_id"][..], &LOOKUP[..]];
    for lookup in lookups.into_iter().filter(|lookup| !same_fields(lookup, &fields)) {
        let wanted = Wanted { name: name(lookup), specification: doc! { "key": ascending(lookup) } };
        let there = |index: &Document| {
            has_fields(index, lookup) && (name_of(index) == wanted.name || in_order(index, lookup))
        };
        if !existing.iter().any(there) {
            missing.lookups.push(wanted);
        }
    }
    Ok(missing)
}

/// The unique index on the key as listIndexes returned it. It may still be under construction.
pub(super) fn listed_unique(keys: &UpsertKeys, existing: &[Document]) -> Option<Wanted> {
    let fields: Vec<&str> = keys.fields().collect();
    let on_key = existing.iter().filter(|index| has_fields(index, &fields));
    on_key.filter(|index| guards(keys, index, existing)).map(as_listed).next()
}

/// The specification by which createIndexes finds a listed index. The omitted fields are not part of its identity,
/// and old servers stored values in them that createIndexes rejects.
fn as_listed(index: &Document) -> Wanted {
    let omitted = ["name", "v", "ns", "background", "dropDups"];
    let kept = index.iter().filter(|(field, _)| !omitted.contains(&field.as_str()));
    let specification = kept.map(|(field, value)| (field.clone(), value.clone())).collect();
    Wanted { name: name_of(index).to_owned(), specification }
}

/// Whether an index of the user's own may refuse one document and take another: a unique one, or one that not every
/// value fits into (geographic ones, and those over several fields, which cannot hold two arrays).
pub(super) fn others_may_refuse(keys: &UpsertKeys, existing: &[Document]) -> bool {
    let fields: Vec<&str> = keys.fields().collect();
    let ours = [&["_id"][..], &fields, &LOOKUP];
    let may_refuse = |index: &&Document| {
        let key = index.get_document("key").ok();
        let plain =
            key.is_some_and(|key| key.len() == 1 && key.values().all(|value| value.as_str().is_none()));
        index.get_bool("unique").unwrap_or(false) || !plain
    };
    existing.iter().filter(may_refuse).any(|index| !ours.iter().any(|ours| has_fields(index, ours)))
}

/// The `createIndexes` command for `wanted`.
pub(super) fn create(collection: &str, wanted: &[Wanted]) -> Document {
    let named = |wanted: &Wanted| {
        let mut index = wanted.specification.clone();
        index.insert("name", wanted.name.as_str());
        Bson::Document(index)
    };
    doc! { "createIndexes": collection, "indexes": wanted.iter().map(named).collect::<Vec<_>>() }
}

/// What the indexes of a collection mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexState {
    /// All are there.
    Complete,
    /// Only these are missing, which make queries quick.
    WithoutLookups(Vec<String>),
    /// The unique index on the key is missing.
    NotUnique,
    /// It is missing, and the index of this name keeps it from being made.
    InTheWay(String),
}

/// Judges what listIndexes told.
pub fn index_state(keys: &UpsertKeys, existing: &[Document]) -> IndexState {
    match missing(keys, existing) {
        Err(name) => IndexState::InTheWay(name),
        Ok(Missing { unique: Some(_), .. }) => IndexState::NotUnique,
        Ok(Missing { lookups, .. }) if lookups.is_empty() => IndexState::Complete,
        Ok(Missing { lookups, .. }) => {
            IndexState::WithoutLookups(lookups.into_iter().map(|lookup| lookup.name).collect())
        }
    }
}

/// What mongosh is to run to see the documents that share a key.
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

fn unique(keys: &UpsertKeys) -> Wanted {
    let fields: Vec<&str> = keys.fields().collect();
    let mut specification = doc! { "key": ascending(&fields), "unique": true };
    if let Some(filter) = partial_filter(keys) {
        specification.insert("partialFilterExpression", filter);
    }
    Wanted { name: name(&fields), specification }
}

/// Which documents the unique index covers, where it is not all of them: every key field is there and has a value that
/// a key may have.
pub fn partial_filter(keys: &UpsertKeys) -> Option<Document> {
    if keys.is_event_id() {
        return None;
    }
    let condition = doc! { "$exists": true, "$type": INDEXED_TYPES.to_vec() };
    Some(keys.fields().map(|field| (field.to_owned(), Bson::Document(condition.clone()))).collect())
}

/// Whether `index`, which is on the key's fields, keeps two documents from having one key, and no others apart.
fn guards(keys: &UpsertKeys, index: &Document, existing: &[Document]) -> bool {
    // A collection's own collation shows on its _id index; queries use it too.
    let standard = existing.iter().find(|index| name_of(index) == "_id_").and_then(collation);
    // A sparse index covers each document that has an event_id, and every document of ours has one.
    let covers_all_events = keys.is_event_id() || !index.get_bool("sparse").unwrap_or(false);
    index.get_bool("unique").unwrap_or(false)
        && covers_all_events
        && index.get_document("partialFilterExpression").ok() == partial_filter(keys).as_ref()
        && collation(index) == standard
}

/// The collation of an index. The simple one is the same as none.
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

/// As MongoDB names an index by default.
fn name(fields: &[&str]) -> String {
    fields.iter().map(|field| format!("{field}_1")).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> UpsertKeys {
        UpsertKeys::parse(text).expect("keys")
    }

    fn names(missing: &Missing) -> Vec<&str> {
        missing.unique.iter().chain(&missing.lookups).map(|wanted| wanted.name.as_str()).collect()
    }

    const LOOKUP_NAME: &str = "mode_s_1_registration_1_event_timestamp_1";

    #[test]
    fn a_new_collection_needs_the_unique_index_and_the_lookups() {
        let by_id = missing(&keys("event_id"), &[]).expect("no conflict");
        assert_eq!(names(&by_id), ["event_id_1", LOOKUP_NAME]);
        let unique = by_id.unique.expect("a unique index").specification;
        assert_eq!(unique, doc! { "key": { "event_id": 1 }, "unique": true });

        let by_two = missing(&keys("mode_s,a.b"), &[]).expect("no conflict");
        assert_eq!(names(&by_two), ["mode_s_1_a.b_1", "event_id_1", LOOKUP_NAME]);
        let unique = by_two.unique.expect("a unique index").specification;
        let there = doc! { "$exists": true, "$type": ["string", "number", "bool"] };
        assert_eq!(
            unique.get_document("partialFilterExpression").ok(),
            Some(&doc! { "mode_s": there.clone(), "a.b": there })
        );

        let all_three = missing(&keys("event_timestamp,mode_s,registration"), &[]).expect("no conflict");
        assert_eq!(names(&all_three), ["event_timestamp_1_mode_s_1_registration_1", "event_id_1"]);
    }

    #[test]
    fn what_is_there_is_not_made_again_whatever_its_name() {
        let id = doc! { "key": { "_id": 1 }, "name": "_id_" };
        let unique = doc! { "key": { "event_id": 1 }, "name": "by_hand", "unique": true };
        let lookup = doc! { "key": ascending(&LOOKUP), "name": "x" };
        let existing = [id, unique, lookup];
        assert_eq!(missing(&keys("event_id"), &existing), Ok(Missing::default()));
        let made = missing(&keys("mode_s"), &[]).expect("no conflict");
        let mut listed: Vec<Document> = made.unique.iter().chain(&made.lookups).map(listed_as).collect();
        assert_eq!(missing(&keys("mode_s"), &listed), Ok(Missing::default()));
        listed.reverse();
        assert_eq!(missing(&keys("mode_s"), &listed), Ok(Missing::default()));
    }

    fn listed_as(wanted: &Wanted) -> Document {
        let mut index = wanted.specification.clone();
        index.insert("name", &wanted.name);
        index
    }

    #[test]
    fn indexes_of_the_user_may_refuse_documents_and_ours_do_not() {
        let made = missing(&keys("mode_s"), &[]).expect("no conflict");
        let mut existing: Vec<Document> = made.unique.iter().chain(&made.lookups).map(listed_as).collect();
        existing.push(doc! { "key": { "_id": 1 }, "name": "_id_" });
        existing.push(doc! { "key": { "type": -1.0 }, "name": "by_type" });
        assert!(!others_may_refuse(&keys("mode_s"), &existing));
        for refusing in [
            doc! { "key": { "tail": 1 }, "name": "x", "unique": true },
            doc! { "key": { "place": "2dsphere" }, "name": "x" },
            doc! { "key": { "a": 1, "b": 1 }, "name": "x" },
        ] {
            let existing = [existing.clone(), vec![refusing]].concat();
            assert!(others_may_refuse(&keys("mode_s"), &existing));
        }
    }

    #[test]
    fn an_index_of_the_key_with_other_options_is_in_the_way() {
        let key = doc! { "event_id": 1 };
        let french = doc! { "locale": "fr" };
        for index in [
            doc! { "key": key.clone(), "name": "event_id_1" },
            doc! { "key": key.clone(), "name": "event_id_1", "unique": true, "partialFilterExpression": { "a": 1 } },
            doc! { "key": key, "name": "event_id_1", "unique": true, "collation": french.clone() },
            doc! { "key": { "other": 1 }, "name": "event_id_1" },
        ] {
            assert_eq!(missing(&keys("event_id"), &[index]), Err("event_id_1".to_owned()));
        }
        let collated =
            |key: Document, name: &str| doc! { "key": key, "name": name, "collation": french.clone() };
        let mut unique = collated(doc! { "event_id": 1 }, "event_id_1");
        unique.insert("unique", true);
        let french_collection = [collated(doc! { "_id": 1 }, "_id_"), unique];
        assert!(missing(&keys("event_id"), &french_collection).is_ok());
    }

    #[test]
    fn a_unique_index_that_guards_every_event_is_accepted_as_it_is_listed() {
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
            let unique = listed_unique(&keys("event_id"), &[id.clone(), listed]).expect("accepted");
            let mut sent = doc! { "key": { "event_id": -1 }, "unique": true };
            sent.extend(more);
            assert_eq!(unique, Wanted { name: "by_hand".into(), specification: sent });
        }
        let old = index(doc! { "ns": "d.c", "background": "yes", "dropDups": 1 });
        let sent = listed_unique(&keys("event_id"), &[old]).expect("accepted").specification;
        assert_eq!(sent, doc! { "key": { "event_id": -1 }, "unique": true });
        // A sparse index refuses a second null, which other keys may have.
        let sparse = doc! { "key": { "mode_s": 1 }, "name": "x", "unique": true, "sparse": true };
        assert_eq!(missing(&keys("mode_s"), &[sparse]), Err("x".to_owned()));
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
