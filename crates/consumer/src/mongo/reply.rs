//! Reads the whole reply to a write. Only what the reply confirms has happened: a reply with
//! inconsistent numbers is an error, never a success. The outcome of a batch adds the replies up:
//! each of its events is counted, rejected or unfinished, and only one of these.

use bson::{Bson, Document};

use super::error::{self, CommandError, TransientError};

/// The reply to one command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    /// Documents that were inserted, or matched by an update.
    pub(super) n: usize,
    /// Documents that an update changed.
    pub(super) n_modified: usize,
    /// The statements that failed, in the order of their positions.
    pub(super) errors: Vec<StatementError>,
}

/// The error of one statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatementError {
    pub(super) position: usize,
    pub(super) cause: CommandError,
    /// The fields of the index that has the value already.
    pub(super) duplicate_of: Option<Vec<String>>,
}

impl Reply {
    /// Reads the reply to a command of `sent` statements.
    ///
    /// # Errors
    /// A field is missing or impossible, or the write concern was not met. Then nothing of this
    /// command is durable, not even the reason for an error.
    pub(super) fn read(reply: &Document, sent: usize) -> Result<Self, TransientError> {
        let read = Self::read_counts(reply, sent).map_err(TransientError::new)?;
        write_concern_error(reply).map_or(Ok(read), Err)
    }

    fn read_counts(reply: &Document, sent: usize) -> Result<Self, String> {
        let n = count(reply, "n")?.ok_or("the reply has no n")?;
        let n_modified = count(reply, "nModified")?.unwrap_or(0);
        let mut errors = match reply.get("writeErrors") {
            None => Vec::new(),
            Some(Bson::Array(errors)) => errors.iter().map(StatementError::read).collect::<Result<_, _>>()?,
            Some(_) => return Err("the reply's writeErrors is not an array".into()),
        };
        errors.sort_by_key(|error| error.position);
        let distinct = errors.windows(2).all(|pair| pair[0].position < pair[1].position);
        if !distinct || errors.last().is_some_and(|error| error.position >= sent) {
            return Err("the reply's writeErrors name a statement twice or one that was not sent".into());
        }
        if n + errors.len() > sent || n_modified > n {
            return Err(format!("the reply counts {n} of {sent} statements, {} failed", errors.len()));
        }
        Ok(Self { n, n_modified, errors })
    }
}

impl StatementError {
    fn read(entry: &Bson) -> Result<Self, String> {
        let entry = entry.as_document().ok_or("an entry of writeErrors is not a document")?;
        let position = count(entry, "index")?.ok_or("an entry of writeErrors has no index")?;
        let code = count(entry, "code")?.and_then(|code| i32::try_from(code).ok());
        let code = code.ok_or("an entry of writeErrors has no code")?;
        let message = entry.get_str("errmsg").unwrap_or_default().to_owned();
        let duplicate_of = match entry.get_document("keyPattern") {
            Ok(pattern) => Some(pattern.keys().cloned().collect()),
            Err(_) => fields_of_index_name(&message),
        };
        let cause = CommandError { code, code_name: error::code_name(code), message };
        Ok(Self { position, cause, duplicate_of })
    }

    /// Whether the duplicate is in the index over exactly `fields`, in any order and direction.
    /// Then the whole key exists.
    pub(super) fn is_duplicate_of<'a>(&self, fields: impl Iterator<Item = &'a str>) -> bool {
        let Some(indexed) = &self.duplicate_of else { return false };
        let mut fields: Vec<&str> = fields.collect();
        let mut indexed: Vec<&str> = indexed.iter().map(String::as_str).collect();
        fields.sort_unstable();
        indexed.sort_unstable();
        fields == indexed
    }
}

/// A nonnegative whole number of any numeric type.
fn count(document: &Document, field: &str) -> Result<Option<usize>, String> {
    let number = match document.get(field) {
        None => return Ok(None),
        Some(Bson::Int32(number)) => i64::from(*number),
        Some(Bson::Int64(number)) => *number,
        Some(Bson::Double(number)) if number.fract() == 0.0 => *number as i64,
        Some(_) => return Err(format!("the reply's {field} is not a whole number")),
    };
    usize::try_from(number).map(Some).map_err(|_| format!("the reply's {field} is negative"))
}

fn write_concern_error(reply: &Document) -> Option<TransientError> {
    let error = reply.get("writeConcernError")?.as_document();
    let text = error.and_then(|error| error.get_str("errmsg").ok()).unwrap_or("no reason given");
    let code = error.and_then(|error| count(error, "code").ok()?).and_then(|code| i32::try_from(code).ok());
    let reason = format!("the write concern was not met: {text}");
    Some(TransientError { reason, timed_out: code.is_some_and(error::is_time_limit) })
}

/// Older servers name the index only in the message: `… index: mode_s_1_registration_1 dup key: …`.
/// A default name consists of the fields and their directions.
fn fields_of_index_name(message: &str) -> Option<Vec<String>> {
    let (_, rest) = message.split_once("index: ")?;
    let name = rest.split(" dup key").next()?.trim();
    if name == "_id_" {
        return Some(vec!["_id".to_owned()]);
    }
    let mut fields = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let end = rest.find("_1_").or_else(|| rest.len().checked_sub(2).filter(|at| rest[*at..] == *"_1"))?;
        fields.push(rest[..end].to_owned());
        rest = rest.get(end + 3..).unwrap_or_default();
    }
    Some(fields)
}

/// The result of [`Store::apply`](super::Store::apply). Each index of an event appears
/// exactly once: within `counts`, in `rejected` or in `unfinished`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BatchOutcome {
    /// Finished events: written with the write concern, or superseded.
    pub counts: Counts,
    /// Events that the server will never accept, by ascending index.
    pub rejected: Vec<Rejected>,
    /// Indexes of the events to retry, ascending.
    pub unfinished: Vec<usize>,
    /// The events of `unfinished` that the server rejected with an unlisted code, in a statement or
    /// a command of their own. Whether a retry helps is unknown.
    pub unlisted: Vec<Rejected>,
    /// Why `unfinished` is not empty.
    pub error: Option<TransientError>,
    /// Events written to the collection so far, by all users of the store.
    pub written: u64,
}

/// Finished events by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The document is new.
    pub inserted: u64,
    /// The document changed.
    pub updated: u64,
    /// The document was the same already, as after a replay.
    pub unchanged: u64,
    /// The stored document or a delete is newer and was kept.
    pub superseded: u64,
    /// The document was deleted, or there was none.
    pub deleted: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.unchanged += other.unchanged;
        self.superseded += other.superseded;
        self.deleted += other.deleted;
    }

    /// The number of finished events.
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.superseded + self.deleted
    }
}

/// An event that the server rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The index of the event in its batch.
    pub index: usize,
    /// The server's error code.
    pub code: i32,
    /// The name of the code, such as `DocumentValidationFailure`.
    pub code_name: String,
    /// The server's message. It may quote values of the document, so it belongs in a dead letter
    /// and not in a log.
    pub reason: String,
}

impl Rejected {
    pub(super) fn new(index: usize, error: CommandError) -> Self {
        Self { index, code: error.code, code_name: error.code_name, reason: error.message }
    }
}

impl BatchOutcome {
    /// No event was written: all `events` are unfinished.
    pub(super) fn unfinished(events: usize, error: TransientError) -> Self {
        Self { unfinished: (0..events).collect(), error: Some(error), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn a_reply_is_read_completely() {
        let reply = doc! { "ok": 1.0, "n": 1, "writeErrors": [
            { "index": 2, "code": 121, "errmsg": "Document failed validation" },
            { "index": 0, "code": 11000, "keyPattern": { "registration": 1, "mode_s": -1 }, "errmsg": "E11000" },
        ] };
        let read = Reply::read(&reply, 3).expect("a reply");
        assert_eq!((read.n, read.n_modified), (1, 0));
        assert_eq!(read.errors.iter().map(|error| error.position).collect::<Vec<_>>(), [0, 2]);
        assert!(read.errors[0].is_duplicate_of(["mode_s", "registration"].into_iter()));
        assert!(!read.errors[0].is_duplicate_of(["mode_s"].into_iter()));
        assert!(!read.errors[1].is_duplicate_of(std::iter::empty()));
        let mut reply = reply;
        reply.insert("writeConcernError", doc! { "code": 64, "errmsg": "timed out" });
        let unmet = TransientError::new("the write concern was not met: timed out");
        assert_eq!(Reply::read(&reply, 3), Err(unmet));
    }

    #[test]
    fn an_inconsistent_reply_is_an_error() {
        let wrong = [
            doc! { "ok": 1 },
            doc! { "n": "2" },
            doc! { "n": -1 },
            doc! { "n": 3 },
            doc! { "n": 1, "nModified": 2 },
            doc! { "n": 2, "writeErrors": [{ "index": 0, "code": 1 }] },
            doc! { "n": 0, "writeErrors": [{ "index": 2, "code": 1 }] },
            doc! { "n": 0, "writeErrors": [{ "index": 0, "code": 1 }, { "index": 0, "code": 1 }] },
            doc! { "n": 0, "writeErrors": [{ "index": 0 }] },
            doc! { "n": 0, "writeErrors": [{ "code": 1 }] },
            doc! { "n": 0, "writeErrors": 1 },
        ];
        for reply in wrong {
            assert!(Reply::read(&reply, 2).is_err(), "{reply}");
        }
        assert_eq!(
            Reply::read(&doc! { "n": 2_i64, "nModified": 1.0 }, 2).map(|reply| reply.n_modified),
            Ok(1)
        );
        assert!(Reply::read(&doc! { "n": 2, "writeConcernError": 1 }, 2).is_err());
    }

    #[test]
    fn the_index_comes_from_the_message_if_there_is_no_key_pattern() {
        let fields = |name: &str| fields_of_index_name(&format!("E11000 … index: {name} dup key: {{ : 1 }}"));
        assert_eq!(fields("_id_"), Some(vec!["_id".to_owned()]));
        assert_eq!(fields("event_id_1"), Some(vec!["event_id".to_owned()]));
        assert_eq!(fields("a.b_1_c_1"), Some(vec!["a.b".to_owned(), "c".to_owned()]));
        assert_eq!(fields("of_the_user"), None);
        assert_eq!(fields_of_index_name("E11000"), None);
    }
}
