//! The document of an event: the fields of the payload, then the metadata.
//!
//! No field of the payload is dropped: a field with a reserved name moves into `payload_conflicts`.

use bson::RawDocumentBuf;

use crate::{
    convert::Converter,
    id::EventId,
    millis::Millis,
    validation::{BrokenRule, Path, Violations},
    writer::{Open, Writer, kind},
};

/// MongoDB's maximum size of a document.
const MAX_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;
/// The size of `_id`: a type, the key with its NUL, an ObjectId.
const OBJECT_ID_BYTES: usize = 1 + 4 + 12;
/// Reserved for `_id` and metadata when a payload is validated alone: an id of 256 characters and
/// API_VERSION.
const METADATA_BYTES: usize = 4096;

const CONFLICTS: &str = "payload_conflicts";
const EXTRA: &str = "envelope_extra";
/// Reserved names at the top level of a document.
const RESERVED: [&[u8]; 9] = [
    b"_id",
    b"event_id",
    b"event_timestamp",
    b"ingested_at",
    b"api_version",
    b"event_timestamp_iso",
    b"ingested_at_iso",
    CONFLICTS.as_bytes(),
    EXTRA.as_bytes(),
];
/// Fields of one index. At most one of them may be an array.
const INDEXED: [&[u8]; 2] = [b"mode_s", b"registration"];

/// The fields of a document that are not from the payload.
pub(crate) struct Metadata<'m> {
    pub(crate) id: &'m EventId,
    pub(crate) timestamp: Millis,
    pub(crate) ingested_at: Millis,
    pub(crate) api_version: Option<&'m str>,
}

/// A document that has its payload and lacks its metadata.
pub(crate) struct DocumentBuilder {
    writer: Writer,
    open: Open,
}

impl DocumentBuilder {
    /// Writes the payload from its JSON text. After a violation the result is unusable.
    pub(crate) fn new(payload: &str, path: &Path<'_>, violations: &mut Violations) -> Self {
        if !payload.starts_with('{') {
            violations.push(path, BrokenRule::new("dict_type", "Input should be a JSON object"));
            return Self::empty();
        }
        let mut converter = Converter::new(payload.len() * 5 / 4 + 512, violations);
        let open = converter.writer.open();
        let mut conflicts = Vec::new();
        let mut arrays = 0;
        converter.payload(payload, path, &mut |member| {
            arrays += u8::from(member.kind == kind::ARRAY && INDEXED.contains(&member.key));
            let reserved = RESERVED.contains(&member.key);
            if reserved {
                conflicts.extend_from_slice(member.element);
            }
            !reserved
        });
        let mut writer = converter.writer;
        if arrays > 1 {
            let msg = "Arrays in both mode_s and registration cannot be stored: one index holds both";
            violations.push(&Path::Name(path, "registration"), BrokenRule::new("parallel_arrays", msg));
        }
        if !conflicts.is_empty() {
            writer.document(CONFLICTS, &conflicts);
        }
        let builder = Self { writer, open };
        builder.check_size(METADATA_BYTES, path, violations);
        builder
    }

    fn empty() -> Self {
        let mut writer = Writer::with_capacity(0);
        let open = writer.open();
        Self { writer, open }
    }

    pub(crate) fn metadata(&mut self, metadata: &Metadata<'_>) {
        let writer = &mut self.writer;
        writer.string("event_id", metadata.id.as_str());
        writer.int64("event_timestamp", metadata.timestamp.get());
        writer.int64("ingested_at", metadata.ingested_at.get());
        if let Some(api_version) = metadata.api_version {
            writer.string("api_version", api_version);
        }
        writer.string("event_timestamp_iso", &metadata.timestamp.iso());
        writer.string("ingested_at_iso", &metadata.ingested_at.iso());
    }

    /// Adds the unknown fields of the envelope, as raw keys and raw values.
    pub(crate) fn extra(&mut self, members: &[(&str, &str)], violations: &mut Violations) {
        if members.is_empty() {
            return;
        }
        let mut converter = Converter::new(256, violations);
        converter.loose_members(members, &Path::Root);
        let extra = converter.writer.bytes;
        self.writer.document(EXTRA, &extra);
    }

    /// The whole document without `_id`, or `None` if there was a violation.
    pub(crate) fn finish(mut self, violations: &mut Violations) -> Option<RawDocumentBuf> {
        self.writer.close(&self.open);
        let path = Path::Name(&Path::Root, "document");
        if violations.is_empty() {
            self.check_size(OBJECT_ID_BYTES, &path, violations);
        }
        if !violations.is_empty() {
            return None;
        }
        violations.take(&path, RawDocumentBuf::from_bytes(self.writer.bytes).map_err(|_| too_large()))
    }

    fn check_size(&self, more_bytes: usize, path: &Path<'_>, violations: &mut Violations) {
        if self.writer.len() + more_bytes > MAX_DOCUMENT_BYTES {
            violations.push(path, too_large());
        }
    }
}

fn too_large() -> BrokenRule {
    BrokenRule::new("document_too_large", "The document would be larger than 16 MiB")
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::{DocumentBuilder, Metadata};
    use crate::{
        id::EventId,
        millis::Millis,
        validation::{Path, Violations},
    };

    fn document(payload: &str, api_version: Option<&str>, extra: &[(&str, &str)]) -> Document {
        let mut violations = Violations::default();
        let mut builder = DocumentBuilder::new(payload, &Path::Root, &mut violations);
        let id = EventId::new("e").unwrap();
        let timestamp = Millis::new(1).unwrap();
        builder.metadata(&Metadata { id: &id, timestamp, ingested_at: Millis::MAX, api_version });
        builder.extra(extra, &mut violations);
        let document = builder.finish(&mut violations).ok_or(violations.into_list()).unwrap();
        Document::try_from(document).unwrap()
    }

    fn metadata() -> Document {
        doc! {
            "event_id": "e", "event_timestamp": 1_i64, "ingested_at": 253_402_300_799_999_i64, "api_version": "1",
            "event_timestamp_iso": "1970-01-01T00:00:00.001Z", "ingested_at_iso": "9999-12-31T23:59:59.999Z",
        }
    }

    #[test]
    fn the_payload_comes_first_and_the_metadata_after_it() {
        let mut expected = doc! { "z": 1_i32, "a": 2_i32 };
        expected.extend(metadata());
        assert_eq!(document(r#"{"z":1,"a":2}"#, Some("1"), &[]), expected);
    }

    #[test]
    fn fields_with_reserved_names_are_kept_in_payload_conflicts() {
        let payload = r#"{"_id":{"a":[1]},"x":1,"event_id":5,"payload_conflicts":{"b":2},"api_version":"p",
            "event_id":6,"envelope_extra":null,"y":{"_id":1}}"#;
        let mut expected = doc! {
            "x": 1_i32, "y": { "_id": 1_i32 },
            "payload_conflicts": {
                "_id": { "a": [1_i32] }, "payload_conflicts": { "b": 2_i32 }, "api_version": "p", "event_id": 6_i32,
                "envelope_extra": null,
            },
        };
        expected.extend(metadata());
        assert_eq!(document(payload, Some("1"), &[]), expected);
    }

    #[test]
    fn unknown_fields_of_the_envelope_are_kept_in_envelope_extra() {
        let extra = [("\"trace\"", "[1]"), ("\"_id\"", "1"), ("\"trace\"", "{\"a\":2}")];
        let mut expected = metadata();
        expected.extend(doc! { "envelope_extra": { "_id": 1_i32, "trace": { "a": 2_i32 } } });
        assert_eq!(document("{}", Some("1"), &extra), expected);
    }

    #[test]
    fn an_absent_api_version_is_omitted() {
        let mut expected = metadata();
        expected.remove("api_version");
        assert_eq!(document("{}", None, &[]), expected);
    }

    #[test]
    fn the_size_of_the_whole_document_is_checked() {
        let mut violations = Violations::default();
        let mut builder = DocumentBuilder::new("{}", &Path::Root, &mut violations);
        builder.extra(&[("\"x\"", &format!("\"{}\"", "x".repeat(16 * 1024 * 1024)))], &mut violations);
        assert!(builder.finish(&mut violations).is_none());
        assert_eq!(violations.into_list()[0].kind, "document_too_large");
    }
}
