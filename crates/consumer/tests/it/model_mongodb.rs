//! A model of a database with the documents and the tombstones of one source. It understands the
//! commands of the write path and applies each at once, as a server does with one document.

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};

/// The documents by `event_id`, and the tombstones by `_id`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Model {
    pub documents: BTreeMap<String, Document>,
    pub tombstones: BTreeMap<String, Document>,
}

/// `(event_timestamp, ingested_at)`.
pub fn version(document: &Document) -> (i64, i64) {
    let number = |field| document.get_i64(field).unwrap_or(i64::MIN);
    (number("event_timestamp"), number("ingested_at"))
}

impl Model {
    /// Applies a command and returns its reply.
    pub fn apply(&mut self, command: &Document) -> Document {
        if is_probe(command) {
            return doc! { "ok": 1, "n": 0, "nModified": 0 };
        }
        let (name, collection) = command.iter().next().expect("a command");
        let is_tombstones = collection.as_str().expect("a collection").ends_with(".deletes");
        match name.as_str() {
            "insert" => self.insert(list(command, "documents")),
            "update" if is_tombstones => update(&mut self.tombstones, list(command, "updates")),
            "update" => update(&mut self.documents, list(command, "updates")),
            "delete" => self.delete(list(command, "deletes")),
            "find" if is_tombstones => find(&self.tombstones, command, "_id"),
            "find" => find(&self.documents, command, "event_id"),
            other => panic!("unexpected command {other}"),
        }
    }

    fn insert(&mut self, documents: Vec<&Document>) -> Document {
        let (mut n, mut errors) = (0, Vec::new());
        for (index, document) in (0_i32..).zip(documents) {
            let id = document.get_str("event_id").expect("an id");
            if self.documents.contains_key(id) {
                errors.push(doc! {
                    "index": index, "code": 11000, "errmsg": "E11000", "keyPattern": { "event_id": 1 },
                });
            } else {
                let mut new = document.clone();
                new.remove("_id");
                self.documents.insert(id.to_owned(), new);
                n += 1;
            }
        }
        let mut reply = doc! { "ok": 1, "n": n };
        if !errors.is_empty() {
            reply.insert("writeErrors", errors);
        }
        reply
    }

    fn delete(&mut self, deletes: Vec<&Document>) -> Document {
        let mut n = 0;
        for delete in deletes {
            let filter = delete.get_document("q").expect("a filter");
            let id = filter.get_str("event_id").expect("an id");
            let matches =
                |document: &Document| filter.iter().all(|(field, value)| document.get(field) == Some(value));
            if self.documents.get(id).is_some_and(matches) {
                self.documents.remove(id);
                n += 1;
            }
        }
        doc! { "ok": 1, "n": n }
    }
}

/// Whether a command tests whether the server accepts writes. It changes nothing.
pub fn is_probe(command: &Document) -> bool {
    let updates = command.get_array("updates").ok();
    let filter = updates.and_then(|updates| updates.first()?.as_document()?.get_document("q").ok());
    filter.is_some_and(|filter| filter.get_object_id("_id").is_ok())
}

fn list<'c>(command: &'c Document, field: &str) -> Vec<&'c Document> {
    let list = command.get_array(field).expect("a list");
    list.iter().map(|item| item.as_document().expect("a document")).collect()
}

/// The number to which a comparison of a guard compares.
fn bound(comparison: &Document, operator: &str) -> i64 {
    comparison.get_array(operator).expect("a comparison")[1].as_i64().expect("a number")
}

fn update(stored: &mut BTreeMap<String, Document>, updates: Vec<&Document>) -> Document {
    let (mut n, mut modified) = (0, 0);
    for update in updates {
        let filter = update.get_document("q").expect("a filter");
        let id = filter.values().next().and_then(Bson::as_str).expect("an id").to_owned();
        let stage = update.get_array("u").expect("a pipeline")[0].as_document().expect("a stage");
        let condition = stage.get_document("$replaceWith").and_then(|replace| replace.get_array("$cond"));
        let condition = condition.expect("a guarded replacement");
        let guard =
            condition[0].as_document().and_then(|guard| guard.get_array("$or").ok()).expect("a guard");
        let newer = guard[0].as_document().expect("a comparison");
        let same = guard[1].as_document().and_then(|same| same.get_array("$and").ok()).expect("a comparison");
        let newest = (bound(newer, "$lt"), bound(same[1].as_document().expect("a comparison"), "$lte"));
        let is_upsert = update.get_bool("upsert").unwrap_or(false);
        let before = stored.get(&id);
        if before.is_none() && !is_upsert {
            continue;
        }
        n += 1;
        if before.is_some_and(|before| version(before) > newest) {
            continue;
        }
        let new = condition[1].as_document().expect("a document");
        let new = match new.get_array("$mergeObjects") {
            Ok(parts) => parts[1].as_document().and_then(|part| part.get_document("$literal").ok()),
            Err(_) => Some(new),
        };
        let mut new = new.expect("the new document").clone();
        new.remove("expires_at");
        modified += i32::from(before.is_some_and(|before| *before != new));
        stored.insert(id, new);
    }
    doc! { "ok": 1, "n": n, "nModified": modified }
}

fn find(stored: &BTreeMap<String, Document>, command: &Document, key: &str) -> Document {
    let filter = command.get_document("filter").expect("a filter");
    if filter.contains_key("expires_at") {
        let all = stored.iter().map(|(id, document)| {
            let mut document = document.clone();
            document.insert(key, id);
            document
        });
        return testkit::scripted_mongodb::batch(all.collect());
    }
    let condition = filter.get(key).expect("a condition");
    let ids: Vec<&str> = match condition {
        Bson::String(id) => vec![id],
        Bson::Document(condition) => {
            condition.get_array("$in").expect("a list").iter().filter_map(Bson::as_str).collect()
        }
        other => panic!("unexpected condition {other}"),
    };
    let found = ids.into_iter().filter_map(|id| {
        let mut document = stored.get(id)?.clone();
        document.insert(key, id);
        Some(document)
    });
    testkit::scripted_mongodb::batch(found.collect())
}
