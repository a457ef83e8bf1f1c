//! What is known of each event of a batch before its delivery: its id, or why it was refused. A log of bytes, since
//! a hundred thousand results must fit into little memory; read once, front to back, and freed on the way.

use uuid::Uuid;

/// Pages are read one at a time, and each becomes one chunk of the answer.
const PAGE_BYTES: usize = 16 * 1024;
/// A kind and a length.
const HEADER_BYTES: usize = 5;

const GENERATED: u8 = 0;
const NAMED: u8 = 1;
const REFUSED: u8 = 2;
const AGAIN: u8 = 3;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'j> {
    /// It was sent, with an id of ours.
    Generated(Uuid),
    /// It was sent, with an id of its own.
    Named(&'j str),
    /// It was refused: the result as JSON.
    Refused(&'j [u8]),
    /// It was refused: its text, which is shorter than the result and gives the same one again.
    Again(&'j [u8]),
}

/// The log.
#[derive(Debug, Default)]
pub struct Journal(Vec<Vec<u8>>);

impl Journal {
    /// Adds the next event.
    pub fn push(&mut self, entry: Entry<'_>) {
        let (kind, bytes) = match &entry {
            Entry::Generated(id) => (GENERATED, id.as_bytes().as_slice()),
            Entry::Named(id) => (NAMED, id.as_bytes()),
            Entry::Refused(json) => (REFUSED, *json),
            Entry::Again(text) => (AGAIN, *text),
        };
        let needed = HEADER_BYTES + bytes.len();
        if self.0.last().is_none_or(|page| page.len() + needed > PAGE_BYTES) {
            self.0.push(Vec::new());
        }
        if let Some(page) = self.0.last_mut() {
            page.push(kind);
            page.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            page.extend_from_slice(bytes);
        }
    }

    /// The pages, for [`Entry::read`].
    pub fn into_pages(self) -> std::vec::IntoIter<Vec<u8>> {
        self.0.into_iter()
    }
}

impl<'j> Entry<'j> {
    /// The first entry of a page's rest, and what follows it.
    pub fn read(page: &'j [u8]) -> Option<(Self, &'j [u8])> {
        let (&kind, rest) = page.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let entry = match kind {
            GENERATED => Self::Generated(Uuid::from_slice(bytes).ok()?),
            NAMED => Self::Named(std::str::from_utf8(bytes).ok()?),
            REFUSED => Self::Refused(bytes),
            AGAIN => Self::Again(bytes),
            _ => return None,
        };
        Some((entry, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_in_order_and_a_page_stays_small() {
        let id = Uuid::now_v7();
        let (long, name) = ("x".repeat(3 * PAGE_BYTES), "é".repeat(256));
        let entries: Vec<Entry<'_>> = (0..5_000)
            .map(|number| match number % 5 {
                0 => Entry::Generated(id),
                1 => Entry::Named(&name),
                2 => Entry::Refused(b"{}"),
                3 if number == 13 => Entry::Again(long.as_bytes()),
                _ => Entry::Again(b""),
            })
            .collect();
        let mut journal = Journal::default();
        entries.iter().for_each(|entry| journal.push(*entry));
        let mut expected = entries.iter();
        for page in journal.into_pages() {
            let mut rest = page.as_slice();
            let mut count = 0;
            while let Some((entry, after)) = Entry::read(rest) {
                assert_eq!(Some(&entry), expected.next());
                (rest, count) = (after, count + 1);
            }
            assert!(rest.is_empty());
            assert!(page.len() <= PAGE_BYTES || count == 1);
        }
        assert_eq!(expected.next(), None);
    }
}
