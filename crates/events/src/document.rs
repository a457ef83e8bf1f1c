//! The document of an event: the payload's fields, then what the system knows about the event.
//!
//! Nothing of the payload is dropped: a field whose name the metadata needs is kept inside `payload_conflicts`.

use bson::RawDocumentBuf;

use crate::{
    convert::Converter,
    fault::{Breach, Faults, Path},
    id::EventId,
    millis::Millis,
    writer::{Open, Writer, kind},
};

/// MongoDB's limit of a document.
const MAX_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;
/// What `_id` adds: a type, the key with its NUL, an ObjectId.
const OBJECT_ID_BYTES: usize = 1 + 4 + 12;
/// Held back for `_id` and metadata when a payload is judged on its own: an id of 256 characters and room for
/// API_VERSION.
const METADATA_BYTES: usize = 4096;

const CONFLICTS: &str = "payload_conflicts";
const EXTRA: &str = "envelope_extra";
/// Names at the top level of a document that a payload cannot have.
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
/// Fields of one index, of which at most one may be an array.
const INDEXED: [&[u8]; 2] = [b"mode_s", b"registration"];

/// What a document says about its event besides the payload.
pub(crate) struct Metadata<'m> {
    pub(crate) id: &'m EventId,
    pub(crate) timestamp: Millis,
    pub(crate) ingested_at: Millis,
    pub(crate) api_version: Option<&'m str>,
}

/// A document that has its payload and waits for the rest.
pub(crate) struct Draft {
    writer: Writer,
    open: Open,
}

impl Draft {
    /// The payload's part, from its JSON text. It is worthless if that brings a fault.
    pub(crate) fn new(payload: &str, path: &Path<'_>, faults: &mut Faults) -> Self {
        if !payload.starts_with('{') {
            faults.push(path, Breach::new("dict_type", "Input should be a JSON object"));
            return Self::empty();
        }
        let mut converter = Converter::new(payload.len() * 5 / 4 + 512, faults);
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
            faults.push(&Path::Name(path, "registration"), Breach::new("parallel_arrays", msg));
        }
        if !conflicts.is_empty() {
            writer.document(CONFLICTS, &conflicts);
        }
        let draft = Self { writer, open };
        draft.judge_size(METADATA_BYTES, path, faults);
        draft
    }

    fn empty() -> Self {
        let mut writer = Writer::with_capacity(0);
        let open = writer.open();
        Self { writer, open }
    }

    /// Adds the metadata.
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

    /// Adds the fields that the envelope should not have had; raw keys and raw values.
    pub(crate) fn extra(&mut self, members: &[(&str, &str)], faults: &mut Faults) {
        if members.is_empty() {
            return;
        }
        let mut converter = Converter::new(256, faults);
        converter.loose_members(members, &Path::Root);
        let extra = converter.writer.bytes;
        self.writer.document(EXTRA, &extra);
    }

    /// The whole document, without `_id`; None if there was any fault.
    pub(crate) fn finish(mut self, faults: &mut Faults) -> Option<RawDocumentBuf> {
        self.writer.close(&self.open);
        let path = Path::Name(&Path::Root, "document");
        if faults.is_empty() {
            self.judge_size(OBJECT_ID_BYTES, &path, faults);
        }
        if !faults.is_empty() {
            return None;
        }
        faults.take(&path, RawDocumentBuf::from_bytes(self.writer.bytes).map_err(|_| too_large()))
    }

    fn judge_size(&self, more_bytes: usize, path: &Path<'_>, faults: &mut Faults) {
        if self.writer.len() + more_bytes > MAX_DOCUMENT_BYTES {
            faults.push(path, too_large());
        }
    }
}

fn too_large() -> Breach {
    Breach::new("document_too_large", "The document would be larger than 16 MiB")
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::{Draft, Metadata};
    use crate::{
        fault::{Faults, Path},
        id::EventId,
        millis::Millis,
    };

    fn document(payload: &str, api_version: Option<&str>, extra: &[(&str, &str)]) -> Document {
        let mut faults = Faults::default();
        let mut draft = Draft::new(payload, &Path::Root, &mut faults);
        let id = EventId::new("e").unwrap();
        let timestamp = Millis::new(1).unwrap();
        draft.metadata(&Metadata { id: &id, timestamp, ingested_at: Millis::MAX, api_version });
        draft.extra(extra, &mut faults);
        let document = draft.finish(&mut faults).ok_or(faults.into_list()).unwrap();
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
    fn fields_named_like_metadata_are_kept_whole_in_payload_conflicts() {
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
    fn fields_of_the_envelope_that_nobody_knows_are_kept_in_envelope_extra() {
        let extra = [("\"trace\"", "[1]"), ("\"_id\"", "1"), ("\"trace\"", "{\"a\":2}")];
        let mut expected = metadata();
        expected.extend(doc! { "envelope_extra": { "_id": 1_i32, "trace": { "a": 2_i32 } } });
        assert_eq!(document("{}", Some("1"), &extra), expected);
    }

    #[test]
    fn a_version_that_is_unknown_is_left_out() {
        let mut expected = metadata();
        expected.remove("api_version");
        assert_eq!(document("{}", None, &[]), expected);
    }

    #[test]
    fn the_whole_document_is_judged_by_its_size() {
        let mut faults = Faults::default();
        let mut draft = Draft::new("{}", &Path::Root, &mut faults);
        draft.extra(&[("\"x\"", &format!("\"{}\"", "x".repeat(16 * 1024 * 1024)))], &mut faults);
        assert!(draft.finish(&mut faults).is_none());
        assert_eq!(faults.into_list()[0].kind, "document_too_large");
    }
}
