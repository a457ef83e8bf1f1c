//! Takes a body apart into the texts of its events while it arrives: the lines of NDJSON, or the elements of a JSON
//! array. It judges only what stands between them; whether a text is an event is judged by who takes it, so that one
//! bad event harms no other.
//!
//! Guarantee: how the body is cut into chunks changes nothing, and no more than one event and one chunk are held.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2};

use crate::body::{Coding, looks_like};

/// Which media types a batch has.
pub const RIGHT_TYPES: &str =
    "send a JSON array with Content-Type: application/json, or one event a line with application/x-ndjson";

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// What stands around the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON array; each element is an event.
    Array,
    /// NDJSON; each line that is not blank is an event.
    Lines,
}

/// The next event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Its text.
    Event(Bytes),
    /// It is longer than an event may be.
    TooLong,
}

/// Where the splitter is in an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
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
    most_bytes: usize,
    place: Place,
    chunk: Bytes,
    /// The place in the chunk.
    at: usize,
    /// Where in the chunk the present event starts.
    start: usize,
    /// What earlier chunks had of it.
    carried: BytesMut,
    too_long: bool,
    /// Bytes of earlier chunks.
    passed: u64,
}

impl Splitter {
    /// Events longer than `most_bytes` are passed over.
    pub fn new(format: Format, most_bytes: usize) -> Self {
        Self {
            format,
            most_bytes,
            place: Place::BeforeArray,
            chunk: Bytes::new(),
            at: 0,
            start: 0,
            carried: BytesMut::new(),
            too_long: false,
            passed: 0,
        }
    }

    /// What the body is instead of text in this format, as its `first` bytes tell.
    pub fn misfit(&self, first: &[u8], coding: Coding) -> Option<&'static str> {
        let what = looks_like(first, coding)?;
        // Before a line, a byte order mark is wrong in that line alone.
        let of_line = self.format == Format::Lines && first.starts_with(BYTE_ORDER_MARK);
        (!of_line).then_some(what)
    }

    /// Takes the next chunk; the one before must have been read to its end.
    pub fn feed(&mut self, chunk: Bytes) {
        self.passed += self.chunk.len() as u64;
        (self.chunk, self.at, self.start) = (chunk, 0, 0);
    }

    /// The next event that is whole; none until there is another chunk.
    ///
    /// # Errors
    /// The array is none, or something follows it; what and where.
    pub fn next(&mut self) -> Result<Option<Piece>, String> {
        match self.format {
            Format::Lines => Ok(self.next_line()),
            Format::Array => self.next_element(),
        }
    }

    /// After the last chunk: the last line, if no line end follows it.
    ///
    /// # Errors
    /// The array has no end.
    pub fn last(&mut self) -> Result<Option<Piece>, String> {
        match (self.format, self.place) {
            (Format::Lines, _) => Ok(Some(self.cut(self.at)).filter(|piece| !is_blank(piece))),
            (Format::Array, Place::AfterArray) => Ok(None),
            (Format::Array, Place::BeforeArray) => Err("there is no array".into()),
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
            match self.place {
                Place::Text { depth, escaped } => self.text(depth, escaped),
                Place::Element { depth } => {
                    if let Some(piece) = self.element(depth, byte) {
                        return Ok(Some(piece));
                    }
                }
                _ if is_space(byte) => self.at += 1,
                Place::BeforeArray if byte == b'[' => {
                    self.place = Place::BeforeElement { first: true };
                    self.at += 1;
                }
                Place::BeforeElement { first: true } if byte == b']' => {
                    self.place = Place::AfterArray;
                    self.at += 1;
                }
                Place::BeforeElement { .. } => {
                    self.place = Place::Element { depth: 0 };
                    self.start = self.at;
                }
                Place::BeforeArray if byte == b'{' => {
                    return Err(
                        "it is not a JSON array; for lines send Content-Type: application/x-ndjson".into()
                    );
                }
                Place::BeforeArray => return Err("it is not a JSON array".into()),
                Place::AfterArray => {
                    return Err(format!("something follows the array, after {} bytes", self.position()));
                }
            }
        }
        self.carry();
        Ok(None)
    }

    /// Inside a string: up to its end, or that of the chunk.
    fn text(&mut self, depth: usize, escaped: bool) {
        if escaped {
            self.at += 1;
            self.place = Place::Text { depth, escaped: false };
        } else if let Some(length) = memchr2(b'"', b'\\', &self.chunk[self.at..]) {
            self.at += length + 1;
            let quote = self.chunk[self.at - 1] == b'"';
            self.place = if quote { Place::Element { depth } } else { Place::Text { depth, escaped: true } };
        } else {
            self.at = self.chunk.len();
        }
    }

    /// Inside an element and outside its strings.
    fn element(&mut self, depth: usize, byte: u8) -> Option<Piece> {
        let next = match byte {
            b',' if depth == 0 => Place::BeforeElement { first: false },
            b']' if depth == 0 => Place::AfterArray,
            b'"' => Place::Text { depth, escaped: false },
            b'{' | b'[' => Place::Element { depth: depth + 1 },
            // More ends than beginnings: not JSON, which its judge will say.
            b'}' | b']' => Place::Element { depth: depth.saturating_sub(1) },
            _ => {
                self.at += 1;
                return None;
            }
        };
        let piece =
            matches!(next, Place::BeforeElement { .. } | Place::AfterArray).then(|| self.cut(self.at));
        self.place = next;
        self.at += 1;
        piece
    }

    /// The event that ends before `end`, without the white space behind it.
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

    /// Whether the event is too long if `length` more bytes of it come, the last of which is not white space.
    fn exceeds(&self, length: usize) -> bool {
        length > 0 && self.carried.len() + length > self.most_bytes
    }

    /// Keeps what the chunk has of an event that goes on in the next.
    fn carry(&mut self) {
        self.at = self.chunk.len();
        if self.format == Format::Array && !matches!(self.place, Place::Element { .. } | Place::Text { .. }) {
            return;
        }
        let part = &self.chunk[self.start..];
        self.too_long |= self.exceeds(trimmed(part));
        if self.too_long {
            self.carried = BytesMut::new();
        } else {
            // What is above is white space: if anything comes behind it, the event is too long without it, too.
            let room = self.most_bytes - self.carried.len();
            self.carried.extend_from_slice(&part[..part.len().min(room)]);
        }
        self.start = self.at;
    }

    fn position(&self) -> u64 {
        self.passed + self.at as u64
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// The length without the white space at the end.
fn trimmed(text: &[u8]) -> usize {
    text.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1)
}

fn is_blank(piece: &Piece) -> bool {
    matches!(piece, Piece::Event(text) if text.iter().all(|byte| is_space(*byte)))
}

#[cfg(test)]
mod tests;
