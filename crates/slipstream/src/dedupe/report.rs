//! What was found and done, for people and for programs.

use std::fmt;

use bson::{Bson, Document};
use serde_json::{Value, json};

use super::removal::Done;
use super::row::Row;
use service::plural::{counted, counted_with};

/// What one pass over the collection found.
#[derive(Debug, Default)]
pub struct Found {
    /// Keys that several documents share.
    pub keys: u64,
    /// Documents older than the newest of their key.
    pub in_the_way: u64,
    /// Documents that were not judged, as a key field of theirs holds a list.
    pub lists: u64,
    /// The first of the keys.
    pub examples: Vec<Example>,
}

/// A key that several documents share.
#[derive(Debug)]
pub struct Example {
    /// The newest document, which stays.
    pub newest: Row,
    /// How many share the key.
    pub documents: u64,
}

/// The whole.
#[derive(Debug)]
pub struct Report {
    /// Database and collection.
    pub names: (String, String),
    /// Fields of the key.
    pub fields: Vec<String>,
    /// What the first pass found.
    pub found: Found,
    /// An index in the way: its name, and whether it may be dropped.
    pub index: Option<super::target::Obstacle>,
    /// The name of the unique index, while the server builds it.
    pub building: Option<String>,
    /// With `--apply`: what was done, and the file.
    pub done: Option<(Done, String)>,
}

impl Report {
    /// Whether the unique index can be built now, as far as this command can tell.
    pub fn is_clear(&self) -> bool {
        match &self.done {
            Some((done, _)) => {
                done.changed + done.unwritable == 0
                    && self.index.as_ref().is_none_or(|index| index.dispensable)
            }
            None => self.found.in_the_way == 0 && self.index.is_none(),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let (done, file) =
            self.done.as_ref().map_or((Done::default(), None), |(done, file)| (*done, Some(file)));
        let example = |example: &Example| {
            json!({
                "key": self.key(&example.newest),
                "documents": example.documents,
                "kept": example.newest.id,
            })
        };
        json!({
            "database": self.names.0,
            "collection": self.names.1,
            "upsert_keys": self.fields,
            "applied": self.done.is_some(),
            "clear": self.is_clear(),
            "keys": self.found.keys,
            "documents": self.found.keys + self.found.in_the_way,
            "in_the_way": self.found.in_the_way,
            "removed": done.removed,
            "changed_meanwhile": done.changed,
            "unwritable": done.unwritable,
            "not_judged": self.found.lists,
            "index_in_the_way": self.index.as_ref().map(|index| index.name.as_str()),
            "index_being_built": self.building,
            "file": file,
            "examples": self.found.examples.iter().map(example).collect::<Vec<_>>(),
        })
    }

    fn key(&self, row: &Row) -> Bson {
        let values = row.key.iter().map(|value| value.clone().unwrap_or(Bson::Null));
        Bson::Document(self.fields.iter().cloned().zip(values).collect::<Document>())
    }

    fn found(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { keys, in_the_way, .. } = self.found;
        let fields = self.fields.join(",");
        if in_the_way == 0 {
            return writeln!(f, "no two documents share a value of {fields}");
        }
        writeln!(
            f,
            "values of {fields} that documents share: {keys}; documents in the way: {in_the_way} of {}",
            keys + in_the_way
        )?;
        for Example { newest, documents } in &self.found.examples {
            let [timestamp, ingested_at] = newest.version.each_ref().map(|value| text(value.as_ref()));
            writeln!(
                f,
                "  {}: {}, the newest is {} (event_timestamp {timestamp}, ingested_at {ingested_at})",
                self.key(newest),
                counted(*documents, "document"),
                newest.id
            )?;
        }
        match keys - self.found.examples.len() as u64 {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }

    fn index(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.building {
            writeln!(
                f,
                "index {name} is being built; that fails at its end if documents share a value then"
            )?;
        }
        let Some(index) = &self.index else { return Ok(()) };
        let name = &index.name;
        match (index.dispensable, self.done.is_some()) {
            (true, false) => writeln!(f, "index {name} is not unique and in the way: --apply drops it"),
            (true, true) => writeln!(f, "index {name}, which was not unique, is dropped"),
            (false, _) => writeln!(
                f,
                "index {name} is in the way, and its options may matter to others: drop it by hand, \
                 db.getSiblingDB({:?}).getCollection({:?}).dropIndex({name:?})",
                self.names.0, self.names.1
            ),
        }
    }

    fn outcome(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((done, file)) = &self.done else {
            return match self.is_clear() {
                true => write!(f, "nothing is in the way of the unique index"),
                false => write!(
                    f,
                    "nothing was changed. To keep the newest of each, and have the others written to a file and \
                     removed: --apply --out FILE"
                ),
            };
        };
        if done.removed > 0 {
            let are = counted_with(done.removed, "document", ["is", "are"]);
            writeln!(f, "{are} in {file} and removed")?;
        }
        if done.changed > 0 {
            let changed = counted(done.changed, "document");
            writeln!(f, "{changed} changed meanwhile and stayed: run it again, with another file")?;
        }
        if done.unwritable > 0 {
            let have = counted_with(done.unwritable, "document", ["has", "have"]);
            writeln!(
                f,
                "{have} fields that Extended JSON takes for its own, and stayed: copy and remove by hand"
            )?;
        }
        match self.is_clear() {
            true => write!(f, "the unique index can be built; the consumer does that by itself"),
            false => write!(f, "the unique index cannot be built yet"),
        }
    }
}

fn text(value: Option<&Bson>) -> String {
    value.map_or_else(|| "absent".to_owned(), ToString::to_string)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: ", self.names.0, self.names.1)?;
        self.found(f)?;
        if self.found.lists > 0 {
            writeln!(
                f,
                "not judged, as a key field holds a list: {}",
                counted(self.found.lists, "document")
            )?;
        }
        self.index(f)?;
        self.outcome(f)
    }
}
