//! Splits a body into the texts of its events while it arrives: the lines of NDJSON or the elements
//! of a JSON array. It checks only the text between the events. The caller parses each event, so
//! one bad event does not affect the others.
//!
//! The chunks of the body do not affect the result. At most one event and one chunk are in memory.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2};

use crate::http::headers::{ContentCoding, format_hint};

/// The media types of a batch, as text for an error.
pub const RIGHT_TYPES: &str =
    "send a JSON array with Content-Type: application/json, or one event a line with application/x-ndjson";

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The format of a batch body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON array. Each element is an event.
    Array,
    /// NDJSON. Each line that is not blank is an event.
    Lines,
}

/// The next event of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The text of an event.
    Event(Bytes),
    /// An event longer than the limit.
    TooLong,
}

/// The state of the parser in an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    BeforeArray,
    BeforeElement { first: bool },
    Element { depth: usize },
    Text { depth: usize, escaped: bool },
    AfterArray,
}

/// The state between two chunks.
#[derive(Debug)]
pub struct Splitter {
    format: Format,
    max_event_bytes: usize,
    state: State,
    chunk: Bytes,
    /// Index of the next byte in the chunk.
    at: usize,
    /// Index in the chunk at which the current event starts.
    start: usize,
    /// The part of the current event that earlier chunks contained.
    carried: BytesMut,
    too_long: bool,
    /// Length of all earlier chunks.
    earlier_bytes: u64,
}

impl Splitter {
    /// Events longer than `max_event_bytes` become [`Piece::TooLong`].
    pub fn new(format: Format, max_event_bytes: usize) -> Self {
        Self {
            format,
            max_event_bytes,
            state: State::BeforeArray,
            chunk: Bytes::new(),
            at: 0,
            start: 0,
            carried: BytesMut::new(),
            too_long: false,
            earlier_bytes: 0,
        }
    }

    /// Detects from the `first` bytes that the body is not text in this format. Returns the reason.
    pub fn misfit(&self, first: &[u8], coding: ContentCoding) -> Option<&'static str> {
        let reason = format_hint(first, coding)?;
        // In NDJSON a byte order mark makes only its line invalid.
        let only_line = self.format == Format::Lines && first.starts_with(BYTE_ORDER_MARK);
        (!only_line).then_some(reason)
    }

    /// Adds the next chunk. All events of the chunk before it must have been taken.
    pub fn feed(&mut self, chunk: Bytes) {
        self.earlier_bytes += self.chunk.len() as u64;
        (self.chunk, self.at, self.start) = (chunk, 0, 0);
    }

    /// Returns the next complete event. `None` if it needs another chunk.
    ///
    /// # Errors
    /// The body is not an array, or text follows the array. The text states where.
    pub fn next(&mut self) -> Result<Option<Piece>, String> {
        match self.format {
            Format::Lines => Ok(self.next_line()),
            Format::Array => self.next_element(),
        }
    }

    /// Ends the body. Returns the last line if no line end follows it.
    ///
    /// # Errors
    /// The array has no end.
    pub fn last(&mut self) -> Result<Option<Piece>, String> {
        match (self.format, self.state) {
            (Format::Lines, _) => Ok(Some(self.cut(self.at)).filter(|piece| !is_blank(piece))),
            (Format::Array, State::AfterArray) => Ok(None),
            (Format::Array, State::BeforeArray) => Err("there is no array".into()),
            (Format::Array, _) => Err(format!("the array has no end, after {} bytes", self.position())),
        }
    }

    fn next_line(&mut self) -> Option<Piece> {
        while let Some(length) = memchr(b'\n', &self.chunk[self.at..]) {
            let piece = self.cut(self.at + length);
            self.at += length + 1;
            self.start = self.at;
            if !is_blank(&piece) {
                return Some(piece);
            }
        }
        self.carry();
        None
    }

    fn next_element(&mut self) -> Result<Option<Piece>, String> {
        while let Some(&byte) = self.chunk.get(self.at) {
            match self.state {
                State::Text { depth, escaped } => self.text(depth, escaped),
                State::Element { depth } => {
                    if let Some(piece) = self.element(depth, byte) {
                        return Ok(Some(piece));
                    }
                }
                _ if is_space(byte) => self.at += 1,
                State::BeforeArray if byte == b'[' => {
                    self.state = State::BeforeElement { first: true };
                    self.at += 1;
                }
                State::BeforeElement { first: true } if byte == b']' => {
                    self.state = State::AfterArray;
                    self.at += 1;
                }
                State::BeforeElement { .. } => {
                    self.state = State::Element { depth: 0 };
                    self.start = self.at;
                }
                State::BeforeArray if byte == b'{' => {
                    return Err(
                        "it is not a JSON array; for lines send Content-Type: application/x-ndjson".into()
                    );
                }
                State::BeforeArray => return Err("it is not a JSON array".into()),
                State::AfterArray => {
                    return Err(format!("something follows the array, after {} bytes", self.position()));
                }
            }
        }
        self.carry();
        Ok(None)
    }

    /// Skips a string, up to its end or the end of the chunk.
    fn text(&mut self, depth: usize, escaped: bool) {
        if escaped {
            self.at += 1;
            self.state = State::Text { depth, escaped: false };
        } else if let Some(length) = memchr2(b'"', b'\\', &self.chunk[self.at..]) {
            self.at += length + 1;
            let quote = self.chunk[self.at - 1] == b'"';
            self.state = if quote { State::Element { depth } } else { State::Text { depth, escaped: true } };
        } else {
            self.at = self.chunk.len();
        }
    }

    /// Processes a byte of an element outside its strings. Returns the element at its end.
    fn element(&mut self, depth: usize, byte: u8) -> Option<Piece> {
        let next = match byte {
            b',' if depth == 0 => State::BeforeElement { first: false },
            b']' if depth == 0 => State::AfterArray,
            b'"' => State::Text { depth, escaped: false },
            b'{' | b'[' => State::Element { depth: depth + 1 },
            // More closing than opening brackets: not JSON. The parser of the event rejects it.
            b'}' | b']' => State::Element { depth: depth.saturating_sub(1) },
            _ => {
                self.at += 1;
                return None;
            }
        };
        let piece =
            matches!(next, State::BeforeElement { .. } | State::AfterArray).then(|| self.cut(self.at));
        self.state = next;
        self.at += 1;
        piece
    }

    /// Takes the event that ends before `end`, without trailing white space.
    fn cut(&mut self, end: usize) -> Piece {
        let length = trimmed(&self.chunk[self.start..end]);
        if std::mem::take(&mut self.too_long) || self.exceeds(length) {
            self.carried.clear();
            return Piece::TooLong;
        }
        let part = self.start..self.start + length;
        if self.carried.is_empty() {
            return Piece::Event(self.chunk.slice(part));
        }
        self.carried.extend_from_slice(&self.chunk[part]);
        let length = trimmed(&self.carried);
        self.carried.truncate(length);
        Piece::Event(self.carried.split().freeze())
    }

    /// Whether `length` more bytes make the event too long. The last of them is not white space.
    fn exceeds(&self, length: usize) -> bool {
        length > 0 && self.carried.len() + length > self.max_event_bytes
    }

    /// Keeps the part of an event that continues in the next chunk.
    fn carry(&mut self) {
        self.at = self.chunk.len();
        if self.format == Format::Array && !matches!(self.state, State::Element { .. } | State::Text { .. }) {
            return;
        }
        let part = &self.chunk[self.start..];
        self.too_long |= self.exceeds(trimmed(part));
        if self.too_long {
            self.carried = BytesMut::new();
        } else {
            // Bytes above the limit are white space. If other bytes follow, the event is too long
            // even without them.
            let room = self.max_event_bytes - self.carried.len();
            self.carried.extend_from_slice(&part[..part.len().min(room)]);
        }
        self.start = self.at;
    }

    fn position(&self) -> u64 {
        self.earlier_bytes + self.at as u64
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// The length of `text` without trailing white space.
fn trimmed(text: &[u8]) -> usize {
    text.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1)
}

fn is_blank(piece: &Piece) -> bool {
    matches!(piece, Piece::Event(text) if text.iter().all(|byte| is_space(*byte)))
}

#[cfg(test)]
mod tests {
    //! The splitter finds the same events as serde_json, for every chunking of every body.

    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::{Format, Piece, Splitter};

    const LIMIT: usize = 60;

    /// The pieces of `body`, chunked at each of `cuts`, and the error that ended the split.
    fn split(format: Format, body: &[u8], cuts: &[usize]) -> (Vec<Piece>, Option<String>) {
        let mut splitter = Splitter::new(format, LIMIT);
        let (mut pieces, mut rest) = (Vec::new(), Bytes::copy_from_slice(body));
        let mut feed = |chunk: Bytes| {
            splitter.feed(chunk);
            loop {
                match splitter.next() {
                    Ok(Some(piece)) => pieces.push(piece),
                    Ok(None) => {
                        assert!(splitter.carried.len() <= LIMIT, "an event above the limit is not kept");
                        return None;
                    }
                    Err(error) => return Some(error),
                }
            }
        };
        for cut in cuts {
            let chunk = rest.split_to((*cut).min(rest.len()));
            if let Some(error) = feed(chunk) {
                return (pieces, Some(error));
            }
        }
        if let Some(error) = feed(rest) {
            return (pieces, Some(error));
        }
        let last = splitter.last();
        pieces.extend(last.clone().ok().flatten());
        (pieces, last.err())
    }

    fn whole(format: Format, body: &str) -> (Vec<Piece>, Option<String>) {
        split(format, body.as_bytes(), &[])
    }

    fn event(text: &str) -> Piece {
        if text.len() > LIMIT {
            Piece::TooLong
        } else {
            Piece::Event(Bytes::copy_from_slice(text.as_bytes()))
        }
    }

    fn is_json(piece: &Piece) -> bool {
        matches!(piece, Piece::Event(text) if serde_json::from_slice::<&RawValue>(text).is_ok())
    }

    /// JSON values that are hard to split: brackets, commas and quotes in strings, escapes,
    /// nesting.
    fn value() -> impl Strategy<Value = String> {
        let text = "\"([a-z,{}\\[\\] é]|\\\\\"|\\\\\\\\|\\\\u00e9|\\\\n){0,12}\"";
        let leaf = prop_oneof![Just("null".to_owned()), "-?[1-9][0-9]{0,3}(\\.[0-9])?", text];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let member =
                ("\"[a-z\\]},]{0,3}\"", inner.clone()).prop_map(|(key, value)| format!("{key} :{value}"));
            prop_oneof![
                vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
                vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(",\n"))),
            ]
        })
    }

    fn space() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just(""), Just(" "), Just("\r\n\t")]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_array_in_any_chunks_has_the_elements_that_serde_json_finds(
            elements in vec((space(), value()), 0..8), around in space(), cuts in vec(0_usize..9, 0..80)
        ) {
            let texts: Vec<String> = elements.iter().map(|(before, text)| format!("{before}{text}")).collect();
            let body = format!("{around}[{}{around}]{around}", texts.join(","));
            let expected: Vec<&RawValue> = serde_json::from_str(&body).unwrap();
            let (pieces, error) = split(Format::Array, body.as_bytes(), &cuts);
            prop_assert_eq!(error, None);
            prop_assert_eq!(pieces.len(), expected.len());
            for (piece, expected) in pieces.iter().zip(&expected) {
                prop_assert_eq!(piece, &event(expected.get()));
            }
        }

        #[test]
        fn ndjson_in_any_chunks_has_its_lines(
            lines in vec("[a-z{}\\[\\]\"\\\\, é\r]{0,40}", 0..8), ended in any::<bool>(), cuts in vec(0_usize..9, 0..80)
        ) {
            let body = lines.join("\n") + if ended { "\n" } else { "" };
            let expected: Vec<Piece> =
                body.split('\n').map(str::trim_ascii_end).filter(|line| !line.is_empty()).map(event).collect();
            prop_assert_eq!(split(Format::Lines, body.as_bytes(), &cuts), (expected, None));
        }

        #[test]
        fn a_hostile_body_is_split_alike_in_any_chunks(
            body in vec(prop_oneof![
                Just(b'['), Just(b']'), Just(b'{'), Just(b'}'), Just(b','), Just(b'"'), Just(b'\\'), Just(b'1'),
                Just(b' '), Just(b'\n'), any::<u8>()
            ], 0..200),
            cuts in vec(0_usize..9, 0..80)
        ) {
            for format in [Format::Array, Format::Lines] {
                prop_assert_eq!(split(format, &body, &cuts), split(format, &body, &[]));
            }
        }

        #[test]
        fn a_body_is_valid_exactly_if_serde_json_reads_it_as_an_array(
            elements in vec(value(), 0..5), at in any::<prop::sample::Index>(), byte in any::<u8>(), cuts in vec(0_usize..9, 0..60)
        ) {
            let mut body = format!("[{}]", elements.join(",")).into_bytes();
            let at = at.index(body.len());
            body[at] = byte;
            let (pieces, error) = split(Format::Array, &body, &cuts);
            prop_assume!(!pieces.contains(&Piece::TooLong));
            let valid = error.is_none() && pieces.iter().all(is_json);
            prop_assert_eq!(valid, serde_json::from_slice::<Vec<&RawValue>>(&body).is_ok());
        }
    }

    #[test]
    fn a_bad_element_leaves_the_others_intact() {
        let (pieces, error) = whole(Format::Array, r#"[{"a":1}, oops, {"b":2}},,"c"x,{"d":[]}]"#);
        let expected = [r#"{"a":1}"#, "oops", r#"{"b":2}}"#, "", r#""c"x"#, r#"{"d":[]}"#];
        assert_eq!((pieces, error), (expected.map(event).to_vec(), None));
    }

    #[test]
    fn an_element_above_the_limit_is_skipped() {
        for (format, body) in [
            (Format::Array, format!("[1,[\"{}\"],2]", "],".repeat(LIMIT))),
            (Format::Lines, format!("1\n{}\n2\n", "x".repeat(LIMIT + 1))),
        ] {
            let expected = vec![event("1"), Piece::TooLong, event("2")];
            assert_eq!(whole(format, &body), (expected.clone(), None));
            assert_eq!(split(format, body.as_bytes(), &[1; 300]), (expected, None));
        }
        let exactly = "x".repeat(LIMIT);
        assert_eq!(whole(Format::Lines, &format!("{exactly}\n")), (vec![event(&exactly)], None));
    }

    #[test]
    fn an_error_between_elements_is_reported() {
        for (body, part) in [
            ("", "there is no array"),
            ("  ", "there is no array"),
            ("{\"a\":1}", "not a JSON array; for lines send"),
            ("\u{feff}[]", "not a JSON array"),
            ("NaN", "not a JSON array"),
            ("[", "no end"),
            ("[1,", "no end, after 3 bytes"),
            ("[\"]", "no end"),
            ("[] []", "something follows the array, after 3 bytes"),
        ] {
            let error = whole(Format::Array, body).1.unwrap();
            assert!(error.contains(part), "{body}: {error}");
        }
        assert_eq!(whole(Format::Array, " [ ] "), (vec![], None));
        assert_eq!(whole(Format::Array, "[1,]"), (vec![event("1"), event("")], None));
        assert_eq!(whole(Format::Lines, "\n \r\n"), (vec![], None));
    }

    #[test]
    fn trailing_white_space_does_not_count_to_the_limit() {
        let exactly = format!("\"{}\"", "x".repeat(LIMIT - 2));
        let too_long = format!("\"{}\"", " ".repeat(LIMIT - 1));
        let blanks = " \r\t".repeat(LIMIT);
        let expected = vec![event(&exactly), event("1"), Piece::TooLong, event(&exactly)];
        for (format, body) in [
            (Format::Lines, format!("{exactly}\r\n1{blanks}\n{too_long}\n{blanks}\n{exactly}{blanks}")),
            (
                Format::Array,
                format!("[{exactly}{blanks}\n, 1{blanks},{too_long}{blanks},{blanks}{exactly}\n]"),
            ),
        ] {
            assert_eq!(whole(format, &body), (expected.clone(), None));
            for size in [1, 7, LIMIT - 1, LIMIT, LIMIT + 1] {
                assert_eq!(
                    split(format, body.as_bytes(), &vec![size; 1000]),
                    (expected.clone(), None),
                    "{size}"
                );
            }
        }
    }
}
