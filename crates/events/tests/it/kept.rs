//! The inputs in `corpus` and mutations of them. The tests of producer and consumer include this
//! file.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Fragments that break parsers.
const PIECES: [&[u8]; 30] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\n",
    b" ",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\\u0000",
    b"\\ud800",
    b"\\ude00",
    b"null",
    b"1e9999",
    b"-0",
    b"0",
    b"9223372036854775808",
    b".5",
    b"E+",
    b"\"id\":",
    b"\"source\":\"s\",",
    b"\"payload\":{}",
    b"\"timestamp\":-1,",
    b"\"$a.b\":",
    b"\"payload_conflicts\":",
];

/// All files of a folder of `corpus`, by name.
pub fn kept(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/corpus").join(folder);
    let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut files: Vec<_> = files.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect();
    files.sort();
    assert!(files.len() > 10, "{}: {} files", folder.display(), files.len());
    files
}

/// A mutation of an input.
#[derive(Debug, Clone)]
enum Edit {
    Byte(Index, u8),
    Piece(Index, &'static [u8]),
    Cut(Index, usize),
    Double(Index, usize),
    From(Vec<u8>, Index, Index, usize),
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>) {
        let at = |index: &Index, input: &[u8]| index.index(input.len() + 1);
        let range = |index: &Index, length: usize, input: &[u8]| {
            let start = at(index, input);
            start..(start + length).min(input.len())
        };
        match self {
            Self::Byte(index, byte) if !input.is_empty() => {
                let at = index.index(input.len());
                input[at] = *byte;
            }
            Self::Byte(_, byte) => input.push(*byte),
            Self::Piece(index, piece) => {
                let at = at(index, input);
                input.splice(at..at, piece.iter().copied());
            }
            Self::Cut(index, length) => drop(input.drain(range(index, *length, input))),
            Self::Double(index, length) => {
                let range = range(index, *length, input);
                let (end, piece) = (range.end, input[range].to_vec());
                input.splice(end..end, piece);
            }
            Self::From(other, from, index, length) => {
                let piece = other[range(from, *length, other)].to_vec();
                let at = at(index, input);
                input.splice(at..at, piece);
            }
        }
    }
}

/// Mutations of the inputs in `folder`.
pub fn near(folder: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let inputs: Vec<Vec<u8>> = kept(folder).into_iter().map(|(_, bytes)| bytes).collect();
    let edit = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        (any::<Index>(), select(PIECES.to_vec())).prop_map(|(at, piece)| Edit::Piece(at, piece)),
        (any::<Index>(), 1_usize..30).prop_map(|(at, length)| Edit::Cut(at, length)),
        (any::<Index>(), 1_usize..60).prop_map(|(at, length)| Edit::Double(at, length)),
        (select(inputs.clone()), any::<Index>(), any::<Index>(), 1_usize..60)
            .prop_map(|(other, from, at, length)| Edit::From(other, from, at, length)),
    ];
    (select(inputs), vec(edit, 0..6)).prop_map(|(mut input, edits)| {
        edits.iter().for_each(|edit| edit.apply(&mut input));
        input
    })
}

/// An input as a failed test prints it, to be added to the corpus.
pub fn shown(input: &[u8]) -> String {
    format!("b\"{}\"", input.escape_ascii())
}
