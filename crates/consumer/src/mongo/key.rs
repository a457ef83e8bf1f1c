//! The key and the version of an event.
//!
//! The key decides to which document the event belongs. It holds the values of the fields in
//! UPSERT_KEYS. If one of them is not a single value, it is an `_id` derived from the event's id.
//! The same event always has the same key.
//!
//! The version is `(event_timestamp, ingested_at)`, which the guard compares in BSON order.

use std::fmt;

use bson::oid::ObjectId;
use bson::{Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use events::StorableEvent;

/// The types of a key's values. The unique index does not cover null, objects and absent fields:
/// their events are upserted by an `_id` of their own.
pub(super) const INDEXED_TYPES: [&str; 3] = ["string", "number", "bool"];

/// The fields of UPSERT_KEYS: at least one. Each is a path whose parts are joined by dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpsertKeys(Vec<String>);

impl UpsertKeys {
    /// Parses a comma-separated list such as `event_id` or `mode_s,registration`.
    ///
    /// # Errors
    /// The reason, which completes a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields: Vec<String> = Vec::new();
        for field in text.split(',').map(str::trim) {
            if field.split('.').any(|part| part.is_empty() || part.starts_with('$') || part.contains('\0')) {
                return Err("is not a list of fields such as event_id or mode_s,registration".into());
            }
            if field == "_id" || field.starts_with("_id.") {
                return Err("names _id, which MongoDB creates; use event_id".into());
            }
            if fields.iter().any(|other| overlap(other, field)) {
                return Err(format!("names {field} twice"));
            }
            fields.push(field.to_owned());
        }
        Ok(Self(fields))
    }

    /// Fields that were checked by the rules of [`UpsertKeys::parse`].
    pub(crate) fn from_fields(fields: &[String]) -> Self {
        Self(fields.to_vec())
    }

    /// The paths in the given order.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether the key is `event_id` alone, which every event has.
    pub fn is_event_id(&self) -> bool {
        self.0 == ["event_id"]
    }

    /// The identity of a stored document's key.
    pub(super) fn identity_in(&self, document: &Document) -> Option<Vec<u8>> {
        let raw = RawDocumentBuf::try_from(document).ok()?;
        let values: Option<Vec<_>> = self.0.iter().map(|path| scalar_at(&raw, path)).collect();
        match (values, document.get_object_id("_id")) {
            (Some(values), _) => Some(Key::Fields(values).identity()),
            (None, Ok(id)) => Some(Key::Derived(id).identity()),
            (None, Err(_)) => None,
        }
    }

    /// The filter that finds the document of `event` by the unique index.
    pub fn filter(&self, event: &StorableEvent) -> Document {
        let values = match self.key_of(event) {
            Key::Derived(id) => return doc! { "_id": id },
            Key::Fields(values) => values,
        };
        let condition = |value| {
            let mut condition = doc! { "$eq": Bson::try_from(value).unwrap_or(Bson::Null) };
            if !self.is_event_id() {
                condition.insert("$type", INDEXED_TYPES.to_vec());
            }
            Bson::Document(condition)
        };
        self.fields().zip(values).map(|(field, value)| (field.to_owned(), condition(value))).collect()
    }

    pub(super) fn key_of<'a>(&self, event: &'a StorableEvent) -> Key<'a> {
        // The document has the id too, but after the fields of the payload.
        if self.is_event_id() {
            return Key::Fields(vec![RawBsonRef::String(event.id.as_str())]);
        }
        let values = self.0.iter().map(|path| scalar_at(&event.document, path)).collect();
        match values {
            Some(values) => Key::Fields(values),
            None => Key::Derived(events::derived_object_id(&event.id)),
        }
    }
}

impl Default for UpsertKeys {
    fn default() -> Self {
        Self(vec!["event_id".to_owned()])
    }
}

impl fmt::Display for UpsertKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Whether two paths are equal, or one is inside the other.
fn overlap(one: &str, other: &str) -> bool {
    let within =
        |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    one == other || within(one, other) || within(other, one)
}

/// The key of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Key<'a> {
    /// The values of the key fields, in the order of UPSERT_KEYS.
    Fields(Vec<RawBsonRef<'a>>),
    /// The `_id`.
    Derived(ObjectId),
}

impl Key<'_> {
    /// Bytes that are equal for two keys exactly if the server holds the keys for equal.
    pub(super) fn identity(&self) -> Vec<u8> {
        match self {
            Self::Derived(id) => id.bytes().to_vec(),
            Self::Fields(values) => values.iter().fold(vec![b'f'], |mut bytes, value| {
                append_identity(&mut bytes, *value);
                bytes
            }),
        }
    }
}

/// The server holds 1 and 1.0 for equal, also in an index.
fn append_identity(bytes: &mut Vec<u8>, value: RawBsonRef<'_>) {
    match value {
        RawBsonRef::String(text) => {
            bytes.push(b's');
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        RawBsonRef::Boolean(truth) => bytes.extend_from_slice(&[b'b', u8::from(truth)]),
        RawBsonRef::Int32(number) => append_number(bytes, i64::from(number)),
        RawBsonRef::Int64(number) => append_number(bytes, number),
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() < 9.0e15 => {
            append_number(bytes, number as i64);
        }
        RawBsonRef::Double(number) => {
            bytes.push(b'd');
            bytes.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        RawBsonRef::Decimal128(number) => {
            bytes.push(b'm');
            bytes.extend_from_slice(&number.bytes());
        }
        _ => bytes.push(b'?'),
    }
}

fn append_number(bytes: &mut Vec<u8>, number: i64) {
    bytes.push(b'i');
    bytes.extend_from_slice(&number.to_le_bytes());
}

/// The single value at `path`. A field whose name contains dots is not such a path, as in MongoDB.
fn scalar_at<'a>(document: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    let (parent, last) = match path.rsplit_once('.') {
        Some((parents, last)) => {
            let inner = parents.split('.').try_fold(document, |inner, part| inner.get_document(part).ok());
            (inner?, last)
        }
        None => (document, path),
    };
    parent.get(last).ok().flatten().filter(|value| is_scalar(*value))
}

/// Whether [`INDEXED_TYPES`] includes the type of the value.
fn is_scalar(value: RawBsonRef<'_>) -> bool {
    use RawBsonRef::{Boolean, Decimal128, Double, Int32, Int64, String};
    matches!(value, String(_) | Boolean(_) | Int32(_) | Int64(_) | Double(_) | Decimal128(_))
}

/// The version of an event or of a stored document. Timestamps are far below 2^53, so a double
/// holds each exactly.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Version(f64, f64);

impl Version {
    pub(super) fn of(event: &StorableEvent) -> Self {
        Self(event.timestamp.get() as f64, event.ingested_at.get() as f64)
    }

    /// The version of a stored document. Other programs may have written it.
    pub(super) fn read(document: &Document) -> Self {
        Self(rank(document.get("event_timestamp")), rank(document.get("ingested_at")))
    }
}

/// A missing field and null are below every number; other types are above.
fn rank(value: Option<&Bson>) -> f64 {
    match value {
        None | Some(Bson::Null | Bson::Undefined | Bson::MinKey) => f64::NEG_INFINITY,
        Some(Bson::Int32(number)) => f64::from(*number),
        Some(Bson::Int64(number)) => *number as f64,
        Some(Bson::Double(number)) if number.is_nan() => f64::NEG_INFINITY,
        Some(Bson::Double(number)) => *number,
        Some(Bson::Decimal128(number)) => number.to_string().parse().unwrap_or(f64::INFINITY),
        Some(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;
    use bson::rawdoc;

    #[test]
    fn a_list_of_fields_is_parsed_and_other_text_is_rejected() {
        let keys = UpsertKeys::parse("mode_s, position.registration").expect("two fields");
        assert_eq!(keys.fields().collect::<Vec<_>>(), ["mode_s", "position.registration"]);
        assert!(!keys.is_event_id());
        assert!(UpsertKeys::parse("event_id").expect("one field").is_event_id());
        for wrong in
            ["", " ", "a,,b", ".a", "a.", "a..b", "$a", "a.$b", "_id", "_id.x", "a,a", "a,a.b", "a.b,a"]
        {
            assert!(UpsertKeys::parse(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn a_key_field_is_a_path_through_documents_to_a_single_value() {
        let document = rawdoc! {
            "a": { "b": { "c": "deep" }, "n": null }, "a.x": "a name with a dot", "list": [ { "b": 1 } ], "one": 1,
        };
        assert_eq!(scalar_at(&document, "a.b.c"), Some(RawBsonRef::String("deep")));
        assert_eq!(scalar_at(&document, "one"), Some(RawBsonRef::Int32(1)));
        for none in ["a", "a.b", "a.n", "a.x", "list", "list.b", "list.0", "absent", "one.more", "a.b.c.d"] {
            assert_eq!(scalar_at(&document, none), None, "{none}");
        }
    }

    #[test]
    fn keys_have_the_same_identity_only_if_their_values_are_equal() {
        let identity = |values: &[RawBsonRef<'_>]| Key::Fields(values.to_vec()).identity();
        use RawBsonRef::{Boolean, Double, Int32, Int64, String};
        assert_eq!(identity(&[Int32(1)]), identity(&[Double(1.0)]));
        assert_eq!(identity(&[Int64(0)]), identity(&[Double(-0.0)]));
        assert_ne!(identity(&[Int32(1)]), identity(&[String("1")]));
        assert_ne!(identity(&[Int32(1)]), identity(&[Boolean(true)]));
        assert_ne!(identity(&[String("ab"), String("c")]), identity(&[String("a"), String("bc")]));
        assert_ne!(identity(&[Double(0.5)]), identity(&[Double(0.25)]));
    }

    #[test]
    fn versions_compare_as_the_server_compares_the_fields() {
        let version = |document: Document| Version::read(&document);
        let pair = |timestamp: i64, ingested: i64| {
            version(doc! { "event_timestamp": timestamp, "ingested_at": ingested })
        };
        assert!(version(doc! {}) < pair(0, 0));
        assert!(version(doc! { "event_timestamp": null }) < pair(0, 0));
        assert!(version(doc! { "event_timestamp": 5 }) < pair(5, 0));
        assert!(version(doc! { "event_timestamp": 5.5 }) > pair(5, 9));
        assert!(version(doc! { "event_timestamp": "5" }) > pair(253_402_300_799_999, 0));
        assert!(pair(5, 6) > pair(5, 5) && pair(6, 0) > pair(5, 9) && pair(5, 5) == pair(5, 5));
        let decimal: bson::Decimal128 = "5.5".parse().expect("a decimal");
        assert!(version(doc! { "event_timestamp": decimal }) > pair(5, 9));
    }
}
