//! The document of an event in BSON: the fields of the payload, then the metadata.
//!
//! No field of the payload is dropped: a field with a reserved name moves into `payload_conflicts`.
//!
//! The conversion decides which payloads can be stored, for producer and consumer. It makes one
//! pass into one buffer and reports every violation with its path. After a violation the bytes are
//! incomplete, and the caller drops them.

use std::borrow::Cow;

use bson::spec::ElementType;
use bson::{Decimal128, RawDocumentBuf};

use crate::{
    fields::{EventId, Millis},
    json::{Cursor, unescape},
    validation::{BrokenRule, Path, Violations},
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

/// Whether a document has its own field of this name at the top level.
pub fn is_reserved_field(name: &str) -> bool {
    RESERVED.contains(&name.as_bytes())
}

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
        Self::with_reserved(payload, path, &[], violations)
    }

    /// As [`DocumentBuilder::new`], with more reserved names.
    pub(crate) fn with_reserved(
        payload: &str,
        path: &Path<'_>,
        reserved: &[Option<&str>],
        violations: &mut Violations,
    ) -> Self {
        if !payload.starts_with('{') {
            violations.push(path, BrokenRule::new("dict_type", "Input should be a JSON object"));
            return Self::empty();
        }
        let mut converter = Converter::new(payload.len() * 5 / 4 + 512, violations);
        let open = converter.writer.open();
        let mut conflicts = Vec::new();
        let mut arrays = 0;
        converter.payload(payload, path, &mut |member| {
            arrays += u8::from(member.kind == ElementType::Array as u8 && INDEXED.contains(&member.key));
            let is_reserved = RESERVED.contains(&member.key)
                || reserved.iter().flatten().any(|reserved| reserved.as_bytes() == member.key);
            if is_reserved {
                conflicts.extend_from_slice(member.element);
            }
            !is_reserved
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

    /// Adds a field at the top. Its name must have no NUL.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.writer.string(name, text);
    }

    /// Adds a date at the top. Its name must have no NUL.
    pub(crate) fn date(&mut self, name: &str, date: Millis) {
        self.writer.date(name, date.get());
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

/// MongoDB accepts 100 levels. Ten are reserved for the fields around a payload.
const MAX_NESTING: usize = 90;

/// Converts JSON values into a BSON buffer.
struct Converter<'f> {
    writer: Writer,
    violations: &'f mut Violations,
    members: Members,
}

impl<'f> Converter<'f> {
    fn new(capacity_bytes: usize, violations: &'f mut Violations) -> Self {
        Self { writer: Writer::with_capacity(capacity_bytes), violations, members: Members::new() }
    }

    /// Writes the members of a whole payload that `keep` accepts, without the length before and the
    /// NUL after them.
    fn payload(&mut self, payload: &str, path: &Path<'_>, keep: &mut dyn FnMut(Written<'_>) -> bool) {
        let first = self.members.count();
        self.read_members(&mut Cursor::new(payload), path, 1);
        self.members.complete(first, &mut self.writer.bytes, keep);
    }

    /// Writes members that are not from one object. `members` are raw keys and raw values.
    fn loose_members(&mut self, members: &[(&str, &str)], path: &Path<'_>) {
        let first = self.members.count();
        for (key, value) in members {
            self.member(key, &mut Cursor::new(value), path, 1);
        }
        self.members.complete(first, &mut self.writer.bytes, &mut |_| true);
    }

    fn object(&mut self, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        let first = self.members.count();
        self.read_members(cursor, path, level);
        self.members.complete(first, &mut self.writer.bytes, &mut |_| true);
    }

    fn read_members(&mut self, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        cursor.enter();
        while let Some(key) = cursor.next_key() {
            self.member(key, cursor, path, level);
        }
    }

    fn member(&mut self, raw_key: &str, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        let key = unescape(raw_key);
        let readable = key.is_some();
        let key = key.unwrap_or(Cow::Borrowed(raw_key));
        let path = Path::Name(path, &key);
        if !readable {
            self.violations.push(&path, BrokenRule::not_unicode());
        }
        if key.contains('\0') {
            self.violations.push(&path, BrokenRule::new("invalid_key", "Key should have no NUL character"));
        }
        let start = self.writer.len();
        let element = self.writer.key(&key);
        self.members.push(start, self.writer.len());
        self.value(&element, cursor, &path, level);
    }

    fn array(&mut self, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        cursor.enter();
        let mut index = 0;
        while cursor.next_item() {
            let element = self.writer.index(index);
            self.value(&element, cursor, &Path::Index(path, index), level);
            index += 1;
        }
    }

    /// `level` is the level of the object or array around the value.
    fn value(&mut self, element: &Element, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        let kind = match cursor.peek() {
            b'{' | b'[' if level >= MAX_NESTING => {
                cursor.value();
                let msg = format!("Nesting should be at most {MAX_NESTING} levels");
                self.violations.push(path, BrokenRule::new("nesting_too_deep", msg));
                ElementType::Null
            }
            b'{' => {
                let open = self.writer.open();
                self.object(cursor, path, level + 1);
                self.writer.close(&open);
                ElementType::EmbeddedDocument
            }
            b'[' => {
                let open = self.writer.open();
                self.array(cursor, path, level + 1);
                self.writer.close(&open);
                ElementType::Array
            }
            b'"' => self.string(cursor.string(), path),
            _ => self.scalar(cursor.scalar(), path),
        };
        self.writer.set_kind(element, kind);
    }

    fn string(&mut self, raw: &str, path: &Path<'_>) -> ElementType {
        match unescape(raw) {
            Some(text) => self.writer.text(&text),
            None => self.violations.push(path, BrokenRule::not_unicode()),
        }
        ElementType::String
    }

    fn scalar(&mut self, text: &str, path: &Path<'_>) -> ElementType {
        let bytes = &mut self.writer.bytes;
        match text {
            "null" => return ElementType::Null,
            "true" | "false" => {
                bytes.push(u8::from(text == "true"));
                return ElementType::Boolean;
            }
            _ => {}
        }
        match number(text) {
            Some(Number::Int32(integer)) => {
                bytes.extend_from_slice(&integer.to_le_bytes());
                ElementType::Int32
            }
            Some(Number::Int64(integer)) => {
                bytes.extend_from_slice(&integer.to_le_bytes());
                ElementType::Int64
            }
            Some(Number::Double(double)) => {
                bytes.extend_from_slice(&double.to_le_bytes());
                ElementType::Double
            }
            Some(Number::Decimal(decimal)) => {
                bytes.extend_from_slice(&decimal.bytes());
                ElementType::Decimal128
            }
            None => {
                let msg = "Number should fit Decimal128 exactly (34 digits, exponent -6176 to 6111)";
                self.violations.push(path, BrokenRule::new("number_out_of_range", msg));
                ElementType::Null
            }
        }
    }
}

/// Up to this number comparing all pairs of keys is faster than sorting.
const FEW: usize = 16;

#[derive(Clone, Copy)]
struct Member {
    /// The first byte of the element: type, key, NUL, value.
    start: usize,
    /// The first byte of the value.
    value: usize,
    kept: bool,
}

/// The members of all incomplete objects, the outermost object first.
struct Members(Vec<Member>);

/// One member of a complete object.
struct Written<'b> {
    key: &'b [u8],
    kind: u8,
    /// The bytes of type, key and value.
    element: &'b [u8],
}

impl Members {
    fn new() -> Self {
        Self(Vec::with_capacity(32))
    }

    /// The number of members so far, which is the index of the next object's first member.
    fn count(&self) -> usize {
        self.0.len()
    }

    /// Adds a member whose element starts at byte `start` and whose value starts at byte `value`.
    fn push(&mut self, start: usize, value: usize) {
        self.0.push(Member { start, value, kept: true });
    }

    /// Completes the object whose members start at `first`. Removes from `bytes` the members that a
    /// later duplicate replaces, and those that `keep` does not accept.
    fn complete(&mut self, first: usize, bytes: &mut Vec<u8>, keep: &mut dyn FnMut(Written<'_>) -> bool) {
        let own = self.0.get_mut(first..).unwrap_or_default();
        mark_replaced(own, bytes);
        let mut to = own.first().map_or(bytes.len(), |member| member.start);
        for index in 0..own.len() {
            let end = own.get(index + 1).map_or(bytes.len(), |next| next.start);
            let Some(member) = own.get(index).filter(|member| member.kept) else { continue };
            let element = bytes.get(member.start..end).unwrap_or_default();
            let kind = element.first().copied().unwrap_or_default();
            if keep(Written { key: key(bytes, member), kind, element }) {
                if to != member.start {
                    bytes.copy_within(member.start..end, to);
                }
                to += end - member.start;
            }
        }
        bytes.truncate(to);
        self.0.truncate(first);
    }
}

fn mark_replaced(members: &mut [Member], bytes: &[u8]) {
    if members.len() <= FEW {
        let mut left = members;
        while let [member, later @ ..] = left {
            member.kept = !later.iter().any(|other| is_same_key(bytes, other, member));
            left = later;
        }
        return;
    }
    let mut sorted: Vec<&mut Member> = members.iter_mut().collect();
    sorted.sort_by(|one, other| key(bytes, one).cmp(key(bytes, other)));
    let mut left = sorted.as_mut_slice();
    while let [member, later @ ..] = left {
        member.kept = later.first().is_none_or(|next| key(bytes, next) != key(bytes, member));
        left = later;
    }
}

fn is_same_key(bytes: &[u8], one: &Member, other: &Member) -> bool {
    // The lengths are known without searching the keys.
    one.value - one.start == other.value - other.start && key(bytes, one) == key(bytes, other)
}

fn key<'b>(bytes: &'b [u8], member: &Member) -> &'b [u8] {
    bytes.get(member.start + 1..member.value.saturating_sub(1)).unwrap_or_default()
}

/// A number in BSON.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Int32(i32),
    Int64(i64),
    Double(f64),
    Decimal(Decimal128),
}

/// The BSON form of a JSON number, `None` if BSON has no such form.
///
/// An integer (no `.`, no `e`) becomes int32, else int64, else Decimal128 if that is exact. A real
/// becomes the nearest double. If the double is infinite, or zero for a nonzero text, the number
/// becomes Decimal128 if that is exact.
fn number(text: &str) -> Option<Number> {
    if text.contains(['.', 'e', 'E']) { real(text) } else { integer(text) }
}

fn integer(text: &str) -> Option<Number> {
    match text.parse::<i64>() {
        Ok(integer) => Some(i32::try_from(integer).map_or(Number::Int64(integer), Number::Int32)),
        Err(_) => decimal(text),
    }
}

fn real(text: &str) -> Option<Number> {
    let double: f64 = text.parse().ok()?;
    let underflow = double == 0.0 && !is_zero(text);
    if double.is_infinite() || underflow { decimal(text) } else { Some(Number::Double(double)) }
}

/// The library rejects a number that Decimal128 cannot hold exactly.
fn decimal(text: &str) -> Option<Number> {
    text.parse().ok().map(Number::Decimal)
}

fn is_zero(text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    !mantissa.contains(|digit: char| matches!(digit, '1'..='9'))
}

/// The bytes written so far. A key must not have a NUL.
struct Writer {
    bytes: Vec<u8>,
}

/// The position of a document's length, which is written last.
#[must_use]
struct Open(usize);

/// The position of an element's type, which is written after its value.
#[must_use]
struct Element(usize);

impl Writer {
    fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Starts a document or an array.
    fn open(&mut self) -> Open {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        Open(at)
    }

    /// Ends a document or an array. The limit of a document rejects a length that does not fit
    /// later.
    fn close(&mut self, open: &Open) {
        self.bytes.push(0);
        let length = i32::try_from(self.bytes.len() - open.0).unwrap_or(i32::MAX);
        if let Some(place) = self.bytes.get_mut(open.0..open.0 + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Starts an element. Its value follows, then [`Writer::set_kind`].
    fn key(&mut self, key: &str) -> Element {
        let at = self.bytes.len();
        self.bytes.push(ElementType::Null as u8);
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(0);
        Element(at)
    }

    /// Starts an element of an array. Its key is the index as decimal text.
    fn index(&mut self, index: usize) -> Element {
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
        self.bytes.push(ElementType::Null as u8);
        self.bytes.extend_from_slice(digits.get(first..).unwrap_or_default());
        self.bytes.push(0);
        Element(at)
    }

    fn set_kind(&mut self, element: &Element, kind: ElementType) {
        if let Some(place) = self.bytes.get_mut(element.0) {
            *place = kind as u8;
        }
    }

    /// Writes the value of a string.
    fn text(&mut self, text: &str) {
        let length = i32::try_from(text.len() + 1).unwrap_or(i32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn string(&mut self, key: &str, text: &str) {
        let element = self.key(key);
        self.text(text);
        self.set_kind(&element, ElementType::String);
    }

    /// Writes a subdocument from the bytes of its elements.
    fn document(&mut self, key: &str, elements: &[u8]) {
        let element = self.key(key);
        let open = self.open();
        self.bytes.extend_from_slice(elements);
        self.close(&open);
        self.set_kind(&element, ElementType::EmbeddedDocument);
    }

    fn date(&mut self, key: &str, ms: i64) {
        let element = self.key(key);
        self.bytes.extend_from_slice(&ms.to_le_bytes());
        self.set_kind(&element, ElementType::DateTime);
    }

    fn int64(&mut self, key: &str, integer: i64) {
        let element = self.key(key);
        self.bytes.extend_from_slice(&integer.to_le_bytes());
        self.set_kind(&element, ElementType::Int64);
    }
}

#[cfg(test)]
mod tests;
