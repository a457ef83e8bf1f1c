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
mod tests;
