//! Writes BSON front to back into one buffer for a document and everything inside it.
//!
//! The library's builder copies each subdocument once per level and has its own type of keys. This
//! writer writes each byte once.

/// BSON's type numbers for the types of JSON.
pub(crate) mod kind {
    pub(crate) const DOUBLE: u8 = 0x01;
    pub(crate) const STRING: u8 = 0x02;
    pub(crate) const DOCUMENT: u8 = 0x03;
    pub(crate) const ARRAY: u8 = 0x04;
    pub(crate) const BOOLEAN: u8 = 0x08;
    pub(crate) const NULL: u8 = 0x0A;
    pub(crate) const INT32: u8 = 0x10;
    pub(crate) const INT64: u8 = 0x12;
    pub(crate) const DECIMAL128: u8 = 0x13;
}

/// The bytes written so far. A key must not have a NUL.
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

/// The position of a document's length, which is written last.
#[must_use]
pub(crate) struct Open(usize);

/// The position of an element's type, which is written after its value.
#[must_use]
pub(crate) struct Element(usize);

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Starts a document or an array.
    pub(crate) fn open(&mut self) -> Open {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        Open(at)
    }

    /// Ends a document or an array. The limit of a document rejects a length that does not fit
    /// later.
    pub(crate) fn close(&mut self, open: &Open) {
        self.bytes.push(0);
        let length = i32::try_from(self.bytes.len() - open.0).unwrap_or(i32::MAX);
        if let Some(place) = self.bytes.get_mut(open.0..open.0 + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Starts an element. Its value follows, then [`Writer::set_kind`].
    pub(crate) fn key(&mut self, key: &str) -> Element {
        let at = self.bytes.len();
        self.bytes.push(kind::NULL);
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(0);
        Element(at)
    }

    /// Starts an element of an array. Its key is the index as decimal text.
    pub(crate) fn index(&mut self, index: usize) -> Element {
        let mut digits = [0_u8; 20];
        let mut first = digits.len();
        let mut rest = index;
        for (place, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            first = place;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let at = self.bytes.len();
        self.bytes.push(kind::NULL);
        self.bytes.extend_from_slice(digits.get(first..).unwrap_or_default());
        self.bytes.push(0);
        Element(at)
    }

    pub(crate) fn set_kind(&mut self, element: &Element, kind: u8) {
        if let Some(place) = self.bytes.get_mut(element.0) {
            *place = kind;
        }
    }

    /// Writes the value of a string.
    pub(crate) fn text(&mut self, text: &str) {
        let length = i32::try_from(text.len() + 1).unwrap_or(i32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    pub(crate) fn string(&mut self, key: &str, text: &str) {
        let element = self.key(key);
        self.text(text);
        self.set_kind(&element, kind::STRING);
    }

    /// Writes a subdocument from the bytes of its elements.
    pub(crate) fn document(&mut self, key: &str, elements: &[u8]) {
        let element = self.key(key);
        let open = self.open();
        self.bytes.extend_from_slice(elements);
        self.close(&open);
        self.set_kind(&element, kind::DOCUMENT);
    }

    pub(crate) fn int64(&mut self, key: &str, integer: i64) {
        let element = self.key(key);
        self.bytes.extend_from_slice(&integer.to_le_bytes());
        self.set_kind(&element, kind::INT64);
    }
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, cstr, rawdoc};

    use super::{Writer, kind};

    #[test]
    fn the_bytes_equal_those_of_the_library() {
        let mut writer = Writer::with_capacity(0);
        let document = writer.open();
        writer.string("a", "é\0");
        let element = writer.key("list");
        let list = writer.open();
        for index in [0, 9, 10, 1234] {
            let item = writer.index(index);
            writer.bytes.extend_from_slice(&1_i32.to_le_bytes());
            writer.set_kind(&item, kind::INT32);
        }
        writer.close(&list);
        writer.set_kind(&element, kind::DOCUMENT);
        writer.int64("n", -5);
        writer.close(&document);

        let mut list = RawDocumentBuf::new();
        for key in [cstr!("0"), cstr!("9"), cstr!("10"), cstr!("1234")] {
            list.append(key, 1_i32);
        }
        let expected = rawdoc! { "a": "é\0", "list": list, "n": -5_i64 };
        assert_eq!(writer.bytes, expected.into_bytes());
    }
}
