//! The commands of the write path as raw BSON. Values of events are never read as
//! operators: a filter compares with them, and an update has them inside `$literal`.

use bson::oid::ObjectId;
use bson::raw::CStr;
use bson::{RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};
use events::StorableEvent;

use super::bson_writer::BsonWriter;
use super::index;
use super::key::{INDEXED_TYPES, Key, UpsertKeys};

/// Maximum size of a command with several records, well below the server's limit of 16 MiB.
pub(super) const MAX_COMMAND_BYTES: usize = 12 << 20;

/// Maximum size of a command with one record. A server closes the connection on a command above 16
/// MiB + 16 KiB, which must not look like an outage. The last 4 KiB are for the fields that the
/// driver adds.
pub(super) const MAX_SINGLE_COMMAND_BYTES: usize = (16 << 20) + (12 << 10);

/// Upper bounds of what a statement adds to its document and key values.
const INSERT_OVERHEAD_BYTES: usize = 40;
const UPDATE_OVERHEAD_BYTES: usize = 520;

type Command = Result<RawDocumentBuf, bson::error::Error>;

/// The collection of a batch's commands.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) collection: &'a str,
    pub(super) keys: &'a UpsertKeys,
    pub(super) write_concern: &'a RawDocument,
}

/// An event and the key of its document.
#[derive(Clone, Copy)]
pub(super) struct Statement<'a> {
    pub(super) key: &'a Key<'a>,
    pub(super) event: &'a StorableEvent,
}

/// Maximum size of a statement inside an insert command.
pub(super) fn insert_bytes(statement: &Statement<'_>, _: &UpsertKeys) -> usize {
    statement.event.document.as_bytes().len() + INSERT_OVERHEAD_BYTES
}

/// Maximum size of a statement inside an update command.
pub(super) fn update_bytes(statement: &Statement<'_>, keys: &UpsertKeys) -> usize {
    let key_bytes = match statement.key {
        Key::Derived(_) => 0,
        Key::Fields(values) => {
            keys.fields().zip(values).map(|(field, value)| field.len() + value_bytes(*value) + 96).sum()
        }
    };
    statement.event.document.as_bytes().len() + key_bytes + UPDATE_OVERHEAD_BYTES
}

fn value_bytes(value: RawBsonRef<'_>) -> usize {
    value.as_str().map_or(16, str::len)
}

/// The unordered insert of all events. The server continues after an error.
pub(super) fn insert(target: Target<'_>, statements: &[Statement<'_>]) -> Command {
    let room: usize = statements.iter().map(|statement| insert_bytes(statement, target.keys)).sum();
    let mut writer = BsonWriter::with_capacity(room + 512);
    writer.text("insert", target.collection);
    writer.boolean("ordered", false);
    writer.document("writeConcern", target.write_concern);
    let documents = writer.open_array("documents");
    for (position, statement) in statements.iter().enumerate() {
        writer.document_with_id(&position.to_string(), id_of(statement), &statement.event.document);
    }
    writer.close(documents);
    writer.finish()
}

/// The documents that [`insert`] inserts.
pub(super) fn documents(statements: &[Statement<'_>]) -> Result<Vec<RawDocumentBuf>, bson::error::Error> {
    let document = |statement: &Statement<'_>| {
        let mut document = rawdoc! { "_id": id_of(statement) };
        for field in &statement.event.document {
            let (name, value) = field?;
            document.append(name, value);
        }
        Ok(document)
    };
    statements.iter().map(document).collect()
}

fn id_of(statement: &Statement<'_>) -> ObjectId {
    match statement.key {
        Key::Derived(id) => *id,
        Key::Fields(_) => ObjectId::new(),
    }
}

/// Guarded updates: each replaces the event's document and keeps its `_id`, unless the stored one
/// is newer. An update never inserts.
pub(super) fn update(target: Target<'_>, ordered: bool, statements: &[Statement<'_>]) -> Command {
    let room: usize = statements.iter().map(|statement| update_bytes(statement, target.keys)).sum();
    let mut writer = BsonWriter::with_capacity(room + 512);
    writer.text("update", target.collection);
    writer.boolean("ordered", ordered);
    writer.document("writeConcern", target.write_concern);
    let updates = writer.open_array("updates");
    for (position, statement) in statements.iter().enumerate() {
        append_update(&mut writer, &position.to_string(), target.keys, *statement);
    }
    writer.close(updates);
    writer.finish()
}

/// An update that matches no document, to test whether the server accepts writes to the collection.
/// It changes nothing, creates no collection, and needs only the right to update. Its filter has
/// no shard key, so a router sends it to every shard.
pub(super) fn probe(target: Target<'_>) -> RawDocumentBuf {
    rawdoc! {
        "update": target.collection,
        "writeConcern": target.write_concern.to_owned(),
        "updates": [{ "q": { "_id": ObjectId::new() }, "u": [{ "$replaceWith": "$$ROOT" }] }],
    }
}

/// The query for the version of a key's document.
pub(super) fn find(collection: &str, keys: &UpsertKeys, key: &Key<'_>) -> Command {
    let mut writer = find_in(collection);
    let filter = writer.open_document("filter");
    append_filter(&mut writer, keys, key);
    writer.close(filter);
    writer.document("projection", &projection(std::iter::empty()));
    writer.value("limit", RawBsonRef::Int32(1));
    writer.finish()
}

/// One query for the versions of many documents, each returned with its key. `None` if no index can
/// answer it.
pub(super) fn find_all(collection: &str, keys: &UpsertKeys, wanted: &[&Key<'_>]) -> Option<Command> {
    let mut values = Vec::with_capacity(wanted.len());
    let mut field = "_id";
    for key in wanted {
        values.push(match key {
            Key::Derived(id) => RawBsonRef::ObjectId(*id),
            Key::Fields(of_key) => {
                field = keys.fields().next()?;
                *of_key.first().filter(|_| of_key.len() == 1)?
            }
        });
    }
    let mut writer = find_in(collection);
    let filter = writer.open_document("filter");
    let condition = writer.open_document(field);
    let list = writer.open_array("$in");
    for (position, value) in values.iter().enumerate() {
        writer.value(&position.to_string(), *value);
    }
    writer.close(list);
    if field != "_id" && index::filter_needs_types(keys) {
        append_types(&mut writer);
    }
    writer.close(condition);
    writer.close(filter);
    writer.document("projection", &projection(std::iter::once(field)));
    // One more than expected, so that the server keeps no cursor open.
    writer.value("batchSize", RawBsonRef::Int32(i32::try_from(wanted.len() + 1).unwrap_or(i32::MAX)));
    Some(writer.finish())
}

fn find_in(collection: &str) -> BsonWriter {
    let mut writer = BsonWriter::with_capacity(512);
    writer.text("find", collection);
    writer.boolean("singleBatch", true);
    writer
}

fn projection<'a>(fields: impl Iterator<Item = &'a str>) -> RawDocumentBuf {
    let mut projection = rawdoc! { "event_timestamp": 1, "ingested_at": 1 };
    for field in fields.filter(|field| !["event_timestamp", "ingested_at"].contains(field)) {
        // A field's name has no NUL: `UpsertKeys::parse` rejects one.
        if let Ok(field) = <&CStr>::try_from(field) {
            projection.append(field, 1);
        }
    }
    projection
}

fn append_update(writer: &mut BsonWriter, position: &str, keys: &UpsertKeys, statement: Statement<'_>) {
    let update = writer.open_document(position);
    let filter = writer.open_document("q");
    append_filter(writer, keys, statement.key);
    writer.close(filter);

    let pipeline = writer.open_array("u");
    let stage = writer.open_document("0");
    let replace = writer.open_document("$replaceWith");
    let condition = writer.open_array("$cond");
    writer.document("0", &guard(statement.event.timestamp.get(), statement.event.ingested_at.get()));
    let then = writer.open_document("1");
    let merge = writer.open_array("$mergeObjects");
    writer.document("0", &rawdoc! { "_id": "$_id" });
    let literal = writer.open_document("1");
    writer.document("$literal", &statement.event.document);
    writer.close(literal);
    writer.close(merge);
    writer.close(then);
    writer.text("2", "$$ROOT");
    writer.close(condition);
    writer.close(replace);
    writer.close(stage);
    writer.close(pipeline);
    writer.close(update);
}

/// A filter is only `field: value`, which means `$eq` for single values. Every query planner finds
/// an index for it. Types are added if only a partial index covers the key.
fn append_filter(writer: &mut BsonWriter, keys: &UpsertKeys, key: &Key<'_>) {
    match key {
        Key::Derived(id) => writer.value("_id", RawBsonRef::ObjectId(*id)),
        Key::Fields(values) if index::filter_needs_types(keys) => {
            for (field, value) in keys.fields().zip(values) {
                let condition = writer.open_document(field);
                writer.value("$eq", *value);
                append_types(writer);
                writer.close(condition);
            }
        }
        Key::Fields(values) => {
            keys.fields().zip(values).for_each(|(field, value)| writer.value(field, *value));
        }
    }
}

/// The planner uses a partial index only for a query that implies its filter.
fn append_types(writer: &mut BsonWriter) {
    let types = writer.open_array("$type");
    for (position, name) in INDEXED_TYPES.iter().enumerate() {
        writer.text(&position.to_string(), name);
    }
    writer.close(types);
}

/// The guard: true if the stored `(event_timestamp, ingested_at)` is not above the event's pair. A
/// missing or null field is below every number in BSON order, so it counts as lowest. The guard is
/// in the update and not in the filter. For a filter with more than the key, a planner may choose
/// another index or none.
fn guard(timestamp: i64, ingested_at: i64) -> RawDocumentBuf {
    rawdoc! { "$or": [
        { "$lt": ["$event_timestamp", timestamp] },
        { "$and": [
            { "$eq": ["$event_timestamp", timestamp] },
            { "$lte": ["$ingested_at", ingested_at] },
        ] },
    ] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::raw::cstr;
    use bson::{Document, doc};

    fn event(id: &str, text: &str) -> StorableEvent {
        let document = rawdoc! { "event_id": id, "text": text, "number": 5, "$x": { "a.b": "$y" } };
        StorableEvent {
            id: events::EventId::new(id).expect("an id"),
            source: events::Source::new("test").expect("a source"),
            timestamp: events::Millis::MAX,
            ingested_at: events::Millis::MAX,
            document,
        }
    }

    #[test]
    fn a_command_is_never_larger_than_the_sum_of_its_statements() {
        let long = "k".repeat(3_000);
        for fields in ["event_id", "text", "text,number,event_id", "number,absent.field"] {
            let keys = UpsertKeys::parse(fields).expect("keys");
            let events: Vec<StorableEvent> = (0..1_200).map(|n| event(&format!("id{n}"), &long)).collect();
            let of_events: Vec<Key<'_>> = events.iter().map(|event| keys.key_of(event)).collect();
            let statements: Vec<Statement<'_>> =
                of_events.iter().zip(&events).map(|(key, event)| Statement { key, event }).collect();
            let write_concern = rawdoc! { "w": "majority" };
            let target = Target { collection: "c", keys: &keys, write_concern: &write_concern };
            let estimate: usize = statements.iter().map(|statement| update_bytes(statement, &keys)).sum();
            let command = update(target, true, &statements).expect("BSON");
            assert!(command.as_bytes().len() <= estimate, "{fields}");
            let estimate: usize = statements.iter().map(|statement| insert_bytes(statement, &keys)).sum();
            assert!(insert(target, &statements).expect("BSON").as_bytes().len() <= estimate, "{fields}");
        }
    }

    #[test]
    fn a_filter_names_types_only_if_a_partial_index_covers_the_key() {
        let (event, number) = (event("$id", "$text"), doc! { "$eq": 5, "$type": INDEXED_TYPES.to_vec() });
        for (fields, wanted) in [
            ("event_id", doc! { "event_id": "$id" }),
            ("registration,mode_s", doc! { "registration": "N1", "mode_s": "A" }),
            ("number", doc! { "number": number }),
            ("absent", doc! { "_id": events::derived_object_id(&event.id) }),
        ] {
            let keys = UpsertKeys::parse(fields).expect("keys");
            let mut event = event.clone();
            event.document.append(cstr!("mode_s"), "A");
            event.document.append(cstr!("registration"), "N1");
            let command = find("c", &keys, &keys.key_of(&event)).expect("BSON");
            assert_eq!(
                Document::try_from(command.get_document("filter").expect("a filter")).expect("BSON"),
                wanted
            );
        }
    }
}
