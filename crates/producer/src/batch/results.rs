//! What is known of each event of a batch before its delivery: its id, or why it was refused. A log of bytes, since
//! a hundred thousand results must fit into little memory; read once, front to back, and freed on the way. All
//! journals of the process together stay within [`ROOM_BYTES`].

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// What all journals and the outcomes that belong to them may take: three batches of a million events with short
/// ids, or sixty usual ones of which every event is refused at length. Only batches beside many others, or clients
/// that read slowly, come near it.
const ROOM_BYTES: usize = 64 * 1024 * 1024;
/// What the results of all batches of a process may take.
pub fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM_BYTES))
}

/// Room is taken in steps: small enough for thousands of small batches, and rare in large ones.
const STEP_BYTES: usize = 4 * 1024;
/// What the outcome of a delivery takes.
const SLOT_BYTES: usize = 16;

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
#[derive(Debug)]
pub struct Journal {
    pages: Vec<Vec<u8>>,
    room: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
    /// What is left of what was taken.
    left: usize,
}

/// There is no room for a further event.
#[derive(Debug, PartialEq, Eq)]
pub struct NoRoom;

impl Journal {
    /// An empty one that takes its memory from `room`.
    pub fn new(room: Arc<Semaphore>) -> Self {
        Self { pages: Vec::new(), room, taken: None, left: 0 }
    }

    /// Adds the next event.
    ///
    /// # Errors
    /// The room of all journals is used up; nothing was added.
    pub fn push(&mut self, entry: Entry<'_>) -> Result<(), NoRoom> {
        let (bytes, slot) = match &entry {
            Entry::Generated(id) => (id.as_bytes().len(), SLOT_BYTES),
            Entry::Named(id) => (id.len(), SLOT_BYTES),
            Entry::Refused(bytes) | Entry::Again(bytes) => (bytes.len(), 0),
        };
        self.take(HEADER_BYTES + bytes + slot)?;
        self.push_last(entry);
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if self.left < bytes {
            let step = u32::try_from(bytes.max(STEP_BYTES)).map_err(|_| NoRoom)?;
            let more = Arc::clone(&self.room).try_acquire_many_owned(step).map_err(|_| NoRoom)?;
            self.left += step as usize;
            match &mut self.taken {
                Some(taken) => taken.merge(more),
                None => self.taken = Some(more),
            }
        }
        self.left -= bytes;
        Ok(())
    }

    /// Adds an event for which there need not be room: what broke the batch, after which nothing comes.
    pub fn push_last(&mut self, entry: Entry<'_>) {
        let (kind, bytes) = match &entry {
            Entry::Generated(id) => (GENERATED, id.as_bytes().as_slice()),
            Entry::Named(id) => (NAMED, id.as_bytes()),
            Entry::Refused(json) => (REFUSED, *json),
            Entry::Again(text) => (AGAIN, *text),
        };
        let needed = HEADER_BYTES + bytes.len();
        if self.pages.last().is_none_or(|page| page.len() + needed > PAGE_BYTES) {
            self.pages.push(Vec::new());
        }
        if let Some(page) = self.pages.last_mut() {
            page.push(kind);
            page.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            page.extend_from_slice(bytes);
        }
    }

    /// The pages, for [`Entry::read`], and the room that they take.
    pub fn into_pages(self) -> (std::vec::IntoIter<Vec<u8>>, Option<OwnedSemaphorePermit>) {
        (self.pages.into_iter(), self.taken)
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
        let mut journal = Journal::new(Arc::new(Semaphore::new(ROOM_BYTES)));
        entries.iter().for_each(|entry| journal.push(*entry).unwrap());
        let mut expected = entries.iter();
        for page in journal.into_pages().0 {
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
    #[test]
    fn all_journals_together_stay_within_their_room_and_give_it_back() {
        let room = Arc::new(Semaphore::new(3 * STEP_BYTES));
        let mut journals: Vec<Journal> = (0..3).map(|_| Journal::new(Arc::clone(&room))).collect();
        let text = [b'x'; STEP_BYTES / 2 - HEADER_BYTES];
        for journal in &mut journals {
            assert_eq!(journal.push(Entry::Again(&text)), Ok(()));
        }
        assert_eq!(journals[0].push(Entry::Again(&text)), Ok(()), "the rest of its step");
        assert_eq!(journals[0].push(Entry::Again(b"")), Err(NoRoom));
        let (pages, held) = journals.remove(0).into_pages();
        assert_eq!((pages.len(), held.is_some(), room.available_permits()), (1, true, 0));
        drop(held);
        assert_eq!(journals[1].push(Entry::Again(&[b'x'; STEP_BYTES])), Err(NoRoom), "more than is left");
        assert_eq!(journals[1].push(Entry::Again(&text)), Ok(()));
        assert_eq!(journals[1].push(Entry::Again(b"")), Ok(()));
        drop(journals);
        assert_eq!(room.available_permits(), 3 * STEP_BYTES);
    }
}
