//! The commands of the write path, as raw BSON. Values are data wherever they stand: in a filter they are single values
//! and no operators, in an update they stand behind `$literal`.

use bson::oid::ObjectId;
use bson::raw::CStr;
use bson::{RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};
use events::StorableEvent;

use super::bson_writer::RawWriter;
use super::index::INDEXED_TYPES;
use super::key::{Key, UpsertKeys};

/// A command with more than one record stays below this, well under the server's limit of 16 MiB.
pub(super) const COMMAND_MAX_BYTES: usize = 12 << 20;

/// A server reads no command above 16 MiB + 16 KiB: it closes the connection, which must not pass for an outage.
/// The rest of a page is left for what the driver adds.
pub(super) const LONE_COMMAND_MAX_BYTES: usize = (16 << 20) + (12 << 10);

/// What a statement costs beside its document and key values.
const INSERT_BYTES: usize = 40;
const UPDATE_BYTES: usize = 520;

type Command = Result<RawDocumentBuf, bson::error::Error>;

/// Where the writes of one batch go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) collection: &'a str,
    pub(super) keys: &'a UpsertKeys,
    pub(super) write_concern: &'a RawDocument,
}

/// One event and the document that it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Statement<'a> {
    pub(super) key: &'a Key<'a>,
    pub(super) event: &'a StorableEvent,
}

/// The size of a statement inside an insert command, at most.
pub(super) fn insert_bytes(statement: &Statement<'_>, _: &UpsertKeys) -> usize {
    statement.event.document.as_bytes().len() + INSERT_BYTES
}

/// The size of a statement inside an update command, at most.
pub(super) fn update_bytes(statement: &Statement<'_>, keys: &UpsertKeys) -> usize {
    let key_bytes = match statement.key {
        Key::Derived(_) => 0,
        Key::Fields(values) => {
            keys.fields().zip(values).map(|(field, value)| field.len() + value_bytes(*value) + 96).sum()
        }
    };
    statement.event.document.as_bytes().len() + key_bytes + UPDATE_BYTES
}

fn value_bytes(value: RawBsonRef<'_>) -> usize {
    value.as_str().map_or(16, str::len)
}

/// Inserts every event; the rest goes on where one fails.
pub(super) fn insert(target: Target<'_>, statements: &[Statement<'_>]) -> Command {
    let room: usize = statements.iter().map(|statement| insert_bytes(statement, target.keys)).sum();
    let mut writer = RawWriter::with_capacity(room + 512);
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

/// What [`insert`] inserts.
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

/// Replaces each event's document, its `_id` kept, unless the stored one is newer. Never inserts.
pub(super) fn update(target: Target<'_>, ordered: bool, statements: &[Statement<'_>]) -> Command {
    let room: usize = statements.iter().map(|statement| update_bytes(statement, target.keys)).sum();
    let mut writer = RawWriter::with_capacity(room + 512);
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

/// Finds out whether the server takes writes to the collection. It matches no document, would
/// change none, makes no collection, and needs no right that an update does not need. A router asks
/// every shard, as the `_id` is nobody's.
pub(super) fn probe(target: Target<'_>) -> RawDocumentBuf {
    rawdoc! {
        "update": target.collection,
        "writeConcern": target.write_concern.to_owned(),
        "updates": [{ "q": { "_id": ObjectId::new() }, "u": [{ "$replaceWith": "$$ROOT" }] }],
    }
}

/// Asks for the version of the document of `key`.
pub(super) fn find(collection: &str, keys: &UpsertKeys, key: &Key<'_>) -> Command {
    let mut writer = find_in(collection);
    let filter = writer.open_document("filter");
    append_filter(&mut writer, keys, key);
    writer.close(filter);
    writer.document("projection", &projection(std::iter::empty()));
    writer.value("limit", RawBsonRef::Int32(1));
    writer.finish()
}

/// Asks for the versions of many documents, each with its key; `None` if an index cannot answer that at once.
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
    if field != "_id" && keys.need_types() {
        append_types(&mut writer);
    }
    writer.close(condition);
    writer.close(filter);
    writer.document("projection", &projection(std::iter::once(field)));
    // One more, so that the server has nothing to keep for later.
    writer.value("batchSize", RawBsonRef::Int32(i32::try_from(wanted.len() + 1).unwrap_or(i32::MAX)));
    Some(writer.finish())
}

fn find_in(collection: &str) -> RawWriter {
    let mut writer = RawWriter::with_capacity(512);
    writer.text("find", collection);
    writer.boolean("singleBatch", true);
    writer
}

fn projection<'a>(fields: impl Iterator<Item = &'a str>) -> RawDocumentBuf {
    let mut projection = rawdoc! { "event_timestamp": 1, "ingested_at": 1 };
    for field in fields.filter(|field| !["event_timestamp", "ingested_at"].contains(field)) {
        // A field's name has no NUL: `UpsertKeys` sees to it.
        if let Ok(field) = <&CStr>::try_from(field) {
            projection.append(field, 1);
        }
    }
    projection
}

fn append_update(writer: &mut RawWriter, position: &str, keys: &UpsertKeys, statement: Statement<'_>) {
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

/// Nothing but `field: value`, which is `$eq` for a value that is neither document nor regular expression: every
/// planner has an index for that. The types are added where only the partial index is left.
fn append_filter(writer: &mut RawWriter, keys: &UpsertKeys, key: &Key<'_>) {
    match key {
        Key::Derived(id) => writer.value("_id", RawBsonRef::ObjectId(*id)),
        Key::Fields(values) if keys.need_types() => {
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

/// A partial index is used only by a query that implies its filter.
fn append_types(writer: &mut RawWriter) {
    let types = writer.open_array("$type");
    for (position, name) in INDEXED_TYPES.iter().enumerate() {
        writer.text(&position.to_string(), name);
    }
    writer.close(types);
}

/// True if the stored `(event_timestamp, ingested_at)` is not above the event's. A field that is missing or null is
/// below every number in BSON's order, so it counts as lowest. It stands in the update and not in the filter, because
/// a filter of more than the key makes a planner choose other indexes, or none.
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
    fn a_command_is_never_larger_than_its_statements_were_taken_to_be() {
        let long = "k".repeat(3_000);
        for fields in ["event_id", "text", "text,number,event_id", "number,absent.field"] {
            let keys = UpsertKeys::parse(fields).expect("keys");
            let events: Vec<StorableEvent> = (0..1_200).map(|n| event(&format!("id{n}"), &long)).collect();
            let of_events: Vec<Key<'_>> = events.iter().map(|event| keys.key_of(event)).collect();
            let statements: Vec<Statement<'_>> =
                of_events.iter().zip(&events).map(|(key, event)| Statement { key, event }).collect();
            let write_concern = rawdoc! { "w": "majority" };
            let target = Target { collection: "c", keys: &keys, write_concern: &write_concern };
            let taken: usize = statements.iter().map(|statement| update_bytes(statement, &keys)).sum();
            let command = update(target, true, &statements).expect("BSON");
            assert!(command.as_bytes().len() <= taken, "{fields}");
            let taken: usize = statements.iter().map(|statement| insert_bytes(statement, &keys)).sum();
            assert!(insert(target, &statements).expect("BSON").as_bytes().len() <= taken, "{fields}");
        }
    }

    #[test]
    fn a_filter_is_plain_equality_unless_only_the_partial_index_has_the_key() {
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
