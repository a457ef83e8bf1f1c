//! Writes BSON into one buffer. The documents of a batch become a command without a copy per
//! nesting level.

use bson::oid::ObjectId;
use bson::raw::cstr;
use bson::spec::ElementType;
use bson::{RawBsonRef, RawDocument, RawDocumentBuf};

/// A document that is being written. Nested documents are closed in reverse order.
pub(super) struct BsonWriter {
    bytes: Vec<u8>,
}

/// A document or array that is not closed yet.
#[must_use = "a document that is not closed is not BSON"]
pub(super) struct Open(usize);

impl BsonWriter {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&[0; 4]);
        Self { bytes }
    }

    pub(super) fn open_document(&mut self, key: &str) -> Open {
        self.element(ElementType::EmbeddedDocument, key);
        self.open()
    }

    pub(super) fn open_array(&mut self, key: &str) -> Open {
        self.element(ElementType::Array, key);
        self.open()
    }

    pub(super) fn close(&mut self, Open(start): Open) {
        self.bytes.push(0);
        self.patch_length(start);
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.value(key, RawBsonRef::String(value));
    }

    pub(super) fn boolean(&mut self, key: &str, value: bool) {
        self.value(key, RawBsonRef::Boolean(value));
    }

    /// Writes any value that is not a document.
    pub(super) fn value(&mut self, key: &str, value: RawBsonRef<'_>) {
        let mut alone = RawDocumentBuf::new();
        alone.append(cstr!(""), value);
        let alone = alone.as_bytes();
        self.element(value.element_type(), key);
        self.bytes.extend_from_slice(&alone[6..alone.len() - 1]);
    }

    pub(super) fn document(&mut self, key: &str, document: &RawDocument) {
        self.element(ElementType::EmbeddedDocument, key);
        self.bytes.extend_from_slice(document.as_bytes());
    }

    /// Writes `document` with an `_id` before its fields.
    pub(super) fn document_with_id(&mut self, key: &str, id: ObjectId, document: &RawDocument) {
        let whole = self.open_document(key);
        self.element(ElementType::ObjectId, "_id");
        self.bytes.extend_from_slice(&id.bytes());
        let fields = document.as_bytes();
        self.bytes.extend_from_slice(&fields[4..fields.len() - 1]);
        self.close(whole);
    }

    pub(super) fn finish(mut self) -> Result<RawDocumentBuf, bson::error::Error> {
        self.bytes.push(0);
        self.patch_length(0);
        RawDocumentBuf::from_bytes(self.bytes)
    }

    fn element(&mut self, kind: ElementType, key: &str) {
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(0);
    }

    fn open(&mut self) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        Open(start)
    }

    /// The length always fits: no command reaches 2 GiB.
    fn patch_length(&mut self, start: usize) {
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, doc, rawdoc};

    #[test]
    fn what_is_written_reads_back_as_the_same_document() {
        let id = ObjectId::from_bytes([7; 12]);
        let mut writer = BsonWriter::with_capacity(64);
        writer.text("name", "$value");
        let list = writer.open_array("list");
        writer.document_with_id("0", id, &rawdoc! { "$x": 1, "a.b": { "": "y" } });
        writer.document("1", &rawdoc! {});
        writer.value("2", RawBsonRef::Int64(5));
        writer.close(list);
        let inner = writer.open_document("inner");
        writer.boolean("yes", true);
        writer.close(inner);
        let written = Document::try_from(writer.finish().expect("BSON")).expect("a document");
        let wanted = doc! {
            "name": "$value",
            "list": [ { "_id": id, "$x": 1, "a.b": { "": "y" } }, {}, 5_i64 ],
            "inner": { "yes": true },
        };
        assert_eq!(written, wanted);
    }
}
