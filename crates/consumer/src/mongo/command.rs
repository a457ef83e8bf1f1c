//! The commands of the write path as raw BSON. Values of events are never read as
//! operators: a filter compares with them, and an update has them inside `$literal`.

use std::ops::Range;

use bson::oid::ObjectId;
use bson::raw::{CStr, cstr};
use bson::spec::ElementType;
use bson::{Bson, DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};
use events::StorableEvent;

use super::collection::{CallContext, TombstoneStore};
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

const TOMBSTONE_OVERHEAD_BYTES: usize = 520;

/// A command as BSON.
pub(super) type Command = Result<RawDocumentBuf, bson::error::Error>;

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
    let value_bytes = |value: &RawBsonRef<'_>| value.as_str().map_or(16, str::len);
    let key_bytes = match statement.key {
        Key::Derived(_) => 0,
        Key::Fields(values) => {
            keys.fields().zip(values).map(|(field, value)| field.len() + value_bytes(value) + 96).sum()
        }
    };
    statement.event.document.as_bytes().len() + key_bytes + UPDATE_OVERHEAD_BYTES
}

/// The unordered insert of all events. The server continues after an error.
pub(super) fn insert(context: &CallContext<'_>, statements: &[Statement<'_>]) -> Command {
    let room = statements.iter().map(|statement| insert_bytes(statement, context.keys)).sum();
    write_command(context, ["insert", &context.collection.name, "documents"], false, room, |documents| {
        for (position, statement) in statements.iter().enumerate() {
            documents.document_with_id(&position.to_string(), id_of(statement), &statement.event.document);
        }
    })
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
pub(super) fn update(context: &CallContext<'_>, ordered: bool, statements: &[Statement<'_>]) -> Command {
    let room = statements.iter().map(|statement| update_bytes(statement, context.keys)).sum();
    write_command(context, ["update", &context.collection.name, "updates"], ordered, room, |updates| {
        for (position, Statement { key, event }) in statements.iter().enumerate() {
            updates.object(&position.to_string(), |update| {
                update.object("q", |filter| append_filter(filter, context.keys, key));
                update.array("u", |pipeline| {
                    pipeline.object("0", |stage| {
                        stage.object("$replaceWith", |replace| {
                            replace.array("$cond", |condition| append_guarded(condition, event));
                        });
                    });
                });
            });
        }
    })
}

/// The operands of `$cond`: the guard, the new document, and the stored document.
fn append_guarded(condition: &mut BsonWriter, event: &StorableEvent) {
    condition.document("0", &guard(event.timestamp.get(), event.ingested_at.get()));
    condition.object("1", |then| {
        then.array("$mergeObjects", |merge| {
            merge.document("0", &rawdoc! { "_id": "$_id" });
            merge.object("1", |literal| literal.document("$literal", &event.document));
        });
    });
    condition.text("2", "$$ROOT");
}

fn write_command(
    context: &CallContext<'_>,
    [name, collection, list]: [&str; 3],
    ordered: bool,
    room: usize,
    append: impl FnOnce(&mut BsonWriter),
) -> Command {
    let mut writer = BsonWriter::with_capacity(room + 512);
    writer.text(name, collection);
    writer.boolean("ordered", ordered);
    writer.document("writeConcern", context.write_concern);
    writer.array(list, append);
    writer.finish()
}

/// Writes the tombstones of these deletes, each unless a newer one is stored.
pub(super) fn tombstones(
    context: &CallContext<'_>,
    store: &TombstoneStore,
    deletes: &[&StorableEvent],
) -> Command {
    let room = deletes.iter().map(|delete| delete.id.as_str().len() + TOMBSTONE_OVERHEAD_BYTES).sum();
    write_command(context, ["update", &store.name, "updates"], false, room, |updates| {
        for (position, delete) in deletes.iter().enumerate() {
            let (timestamp, ingested_at) = (delete.timestamp.get(), delete.ingested_at.get());
            let tombstone = rawdoc! {
                "_id": "$_id",
                "event_timestamp": timestamp,
                "ingested_at": ingested_at,
                // The clock of the server is the one by which tombstones expire.
                "expires_at": { "$toDate": { "$add": [{ "$toLong": "$$NOW" }, store.kept_ms()] } },
            };
            updates.object(&position.to_string(), |update| {
                update.object("q", |filter| filter.text("_id", delete.id.as_str()));
                update.array("u", |pipeline| {
                    pipeline.object("0", |stage| {
                        stage.object("$replaceWith", |replace| {
                            replace.array("$cond", |condition| {
                                condition.document("0", &guard(timestamp, ingested_at));
                                condition.document("1", &tombstone);
                                condition.text("2", "$$ROOT");
                            });
                        });
                    });
                });
                update.boolean("upsert", true);
            });
        }
    })
}

/// Removes each of these documents if it still has the version that was read.
pub(super) fn remove(context: &CallContext<'_>, documents: &[&Document]) -> Command {
    let filter = |document: &&Document| {
        // A condition on null also finds a document without the field.
        let value = |field| document.get(field).cloned().unwrap_or(Bson::Null);
        let fields = ["event_id", "event_timestamp", "ingested_at"];
        let filter: Document = fields.into_iter().map(|field| (field.to_owned(), value(field))).collect();
        RawDocumentBuf::try_from(&filter)
    };
    let filters = documents.iter().map(filter).collect::<Result<Vec<_>, _>>()?;
    let (name, room) = (context.collection.name.as_str(), 256 * documents.len());
    write_command(context, ["delete", name, "deletes"], false, room, |deletes| {
        for (position, filter) in filters.iter().enumerate() {
            deletes.object(&position.to_string(), |delete| {
                delete.document("q", filter);
                delete.value("limit", RawBsonRef::Int32(1));
            });
        }
    })
}

/// An update that matches no document, to test whether the server accepts writes to the collection.
/// It changes nothing, creates no collection, and needs only the right to update. Its filter has
/// no shard key, so a router sends it to every shard.
pub(super) fn probe(context: &CallContext<'_>, collection: &str) -> RawDocumentBuf {
    rawdoc! {
        "update": collection,
        "writeConcern": context.write_concern.to_owned(),
        "updates": [{ "q": { "_id": ObjectId::new() }, "u": [{ "$replaceWith": "$$ROOT" }] }],
    }
}

/// The query for the version of a key's document.
pub(super) fn find(collection: &str, keys: &UpsertKeys, key: &Key<'_>) -> Command {
    let mut writer = find_in(collection, None);
    writer.object("filter", |filter| append_filter(filter, keys, key));
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
    let needs_types = field != "_id" && index::filter_needs_types(keys);
    Some(find_versions(collection, field, &values, needs_types))
}

/// The query for the tombstones of these ids.
pub(super) fn find_tombstones(collection: &str, ids: &[&str]) -> Command {
    find_versions(collection, "_id", &texts(ids), false)
}

/// The query for the versions of the documents with these event ids.
pub(super) fn find_by_ids(collection: &str, ids: &[&str]) -> Command {
    find_versions(collection, "event_id", &texts(ids), false)
}

fn texts<'a>(texts: &[&'a str]) -> Vec<RawBsonRef<'a>> {
    texts.iter().map(|text| RawBsonRef::String(text)).collect()
}

/// The query for the tombstones that expire in this time, at most `limit`, the earliest first.
pub(super) fn find_tombstones_by_expiry(collection: &str, expires: &Range<i64>, limit: usize) -> Command {
    let [from, to] = [expires.start, expires.end].map(DateTime::from_millis);
    let filter = rawdoc! { "expires_at": { "$gte": from, "$lt": to } };
    find_page(collection, &filter, &rawdoc! { "expires_at": 1 }, limit)
}

/// The query for the tombstones that expire in this millisecond and have a higher id than `after`,
/// at most `limit`, in the order of their ids.
pub(super) fn find_tombstones_after(collection: &str, expires: i64, after: &str, limit: usize) -> Command {
    let filter = rawdoc! { "expires_at": DateTime::from_millis(expires), "_id": { "$gt": after } };
    find_page(collection, &filter, &rawdoc! { "_id": 1 }, limit)
}

fn find_page(collection: &str, filter: &RawDocument, sort: &RawDocument, limit: usize) -> Command {
    let mut writer = find_in(collection, Some("expires_at"));
    writer.document("filter", filter);
    writer.document("sort", sort);
    let limit = i32::try_from(limit).unwrap_or(i32::MAX);
    writer.value("limit", RawBsonRef::Int32(limit));
    writer.value("batchSize", RawBsonRef::Int32(limit));
    writer.finish()
}

/// The query for the versions of the documents whose `field` has one of these values.
fn find_versions(collection: &str, field: &str, values: &[RawBsonRef<'_>], needs_types: bool) -> Command {
    let mut writer = find_in(collection, Some(field));
    writer.object("filter", |filter| {
        filter.object(field, |condition| {
            condition.array("$in", |list| {
                for (position, value) in values.iter().enumerate() {
                    list.value(&position.to_string(), *value);
                }
            });
            if needs_types {
                append_types(condition);
            }
        });
    });
    // One more than expected, so that the server keeps no cursor open.
    writer.value("batchSize", RawBsonRef::Int32(i32::try_from(values.len() + 1).unwrap_or(i32::MAX)));
    writer.finish()
}

/// A `find` command that returns the version, and `field`.
fn find_in(collection: &str, field: Option<&str>) -> BsonWriter {
    let mut projection = rawdoc! { "event_timestamp": 1, "ingested_at": 1 };
    let field = field.filter(|field| !["event_timestamp", "ingested_at"].contains(field));
    // A field's name has no NUL: `UpsertKeys::parse` rejects one.
    if let Some(Ok(field)) = field.map(<&CStr>::try_from) {
        projection.append(field, 1);
    }
    let mut writer = BsonWriter::with_capacity(512);
    writer.text("find", collection);
    writer.boolean("singleBatch", true);
    writer.document("projection", &projection);
    writer
}

/// A filter is only `field: value`, which means `$eq` for single values. Every query planner finds
/// an index for it. Types are added if only a partial index covers the key.
fn append_filter(filter: &mut BsonWriter, keys: &UpsertKeys, key: &Key<'_>) {
    match key {
        Key::Derived(id) => filter.value("_id", RawBsonRef::ObjectId(*id)),
        Key::Fields(values) if index::filter_needs_types(keys) => {
            for (field, value) in keys.fields().zip(values) {
                filter.object(field, |condition| {
                    condition.value("$eq", *value);
                    append_types(condition);
                });
            }
        }
        Key::Fields(values) => {
            keys.fields().zip(values).for_each(|(field, value)| filter.value(field, *value));
        }
    }
}

/// The planner uses a partial index only for a query that implies its filter.
fn append_types(condition: &mut BsonWriter) {
    condition.array("$type", |types| {
        for (position, name) in INDEXED_TYPES.iter().enumerate() {
            types.text(&position.to_string(), name);
        }
    });
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

/// Writes a BSON document into one buffer. The documents of a batch become a command without a copy
/// per nesting level.
struct BsonWriter {
    bytes: Vec<u8>,
}

impl BsonWriter {
    fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&[0; 4]);
        Self { bytes }
    }

    fn object(&mut self, key: &str, write: impl FnOnce(&mut Self)) {
        self.nested(ElementType::EmbeddedDocument, key, write);
    }

    fn array(&mut self, key: &str, write: impl FnOnce(&mut Self)) {
        self.nested(ElementType::Array, key, write);
    }

    fn nested(&mut self, kind: ElementType, key: &str, write: impl FnOnce(&mut Self)) {
        self.element(kind, key);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(self);
        self.end(start);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.value(key, RawBsonRef::String(value));
    }

    fn boolean(&mut self, key: &str, value: bool) {
        self.value(key, RawBsonRef::Boolean(value));
    }

    /// Writes any value that is not a document.
    fn value(&mut self, key: &str, value: RawBsonRef<'_>) {
        let mut alone = RawDocumentBuf::new();
        alone.append(cstr!(""), value);
        let alone = alone.as_bytes();
        self.element(value.element_type(), key);
        self.bytes.extend_from_slice(&alone[6..alone.len() - 1]);
    }

    fn document(&mut self, key: &str, document: &RawDocument) {
        self.element(ElementType::EmbeddedDocument, key);
        self.bytes.extend_from_slice(document.as_bytes());
    }

    /// Writes `document` with an `_id` before its fields.
    fn document_with_id(&mut self, key: &str, id: ObjectId, document: &RawDocument) {
        self.object(key, |whole| {
            whole.element(ElementType::ObjectId, "_id");
            whole.bytes.extend_from_slice(&id.bytes());
            let fields = document.as_bytes();
            whole.bytes.extend_from_slice(&fields[4..fields.len() - 1]);
        });
    }

    fn finish(mut self) -> Command {
        self.end(0);
        RawDocumentBuf::from_bytes(self.bytes)
    }

    fn element(&mut self, kind: ElementType, key: &str) {
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(0);
    }

    /// Ends the document that begins at `start`. Its length always fits: no command reaches 2 GiB.
    fn end(&mut self, start: usize) {
        self.bytes.push(0);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bson::doc;
    use service::Secret;

    use super::super::collection::Collection;
    use super::super::connection::Connection;
    use super::*;

    fn event(id: &str, text: &str) -> StorableEvent {
        let document = rawdoc! { "event_id": id, "text": text, "number": 5, "$x": { "a.b": "$y" } };
        StorableEvent {
            id: events::EventId::new(id).expect("an id"),
            source: events::Source::new("test").expect("a source"),
            timestamp: events::Millis::MAX,
            ingested_at: events::Millis::MAX,
            operation: events::Operation::Replace,
            document,
        }
    }

    #[test]
    fn a_command_is_never_larger_than_the_sum_of_its_statements() {
        let long = "k".repeat(3_000);
        let connection = Connection::new(Secret::new(""), "d".into());
        let collection = Collection::default();
        for fields in ["event_id", "text", "text,number,event_id", "number,absent.field"] {
            let keys = UpsertKeys::parse(fields).expect("keys");
            let events: Vec<StorableEvent> = (0..1_200).map(|n| event(&format!("id{n}"), &long)).collect();
            let of_events: Vec<Key<'_>> = events.iter().map(|event| keys.key_of(event)).collect();
            let statements: Vec<Statement<'_>> =
                of_events.iter().zip(&events).map(|(key, event)| Statement { key, event }).collect();
            let write_concern = rawdoc! { "w": "majority" };
            let context = CallContext {
                connection: &connection,
                keys: &keys,
                write_concern: &write_concern,
                collection: &collection,
                command_bytes: MAX_COMMAND_BYTES,
                deadline: Duration::ZERO,
            };
            let estimate: usize = statements.iter().map(|statement| update_bytes(statement, &keys)).sum();
            let command = update(&context, true, &statements).expect("BSON");
            assert!(command.as_bytes().len() <= estimate, "{fields}");
            let estimate: usize = statements.iter().map(|statement| insert_bytes(statement, &keys)).sum();
            assert!(insert(&context, &statements).expect("BSON").as_bytes().len() <= estimate, "{fields}");
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

    #[test]
    fn what_is_written_reads_back_as_the_same_document() {
        let id = ObjectId::from_bytes([7; 12]);
        let mut writer = BsonWriter::with_capacity(64);
        writer.text("name", "$value");
        writer.array("list", |list| {
            list.document_with_id("0", id, &rawdoc! { "$x": 1, "a.b": { "": "y" } });
            list.document("1", &rawdoc! {});
            list.value("2", RawBsonRef::Int64(5));
        });
        writer.object("inner", |inner| inner.boolean("yes", true));
        let written = Document::try_from(writer.finish().expect("BSON")).expect("a document");
        let wanted = doc! {
            "name": "$value",
            "list": [ { "_id": id, "$x": 1, "a.b": { "": "y" } }, {}, 5_i64 ],
            "inner": { "yes": true },
        };
        assert_eq!(written, wanted);
    }
}
