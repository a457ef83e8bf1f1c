//! The results of a batch request before its deliveries end: for each event its id or its
//! rejection. They are one log of bytes, because 100,000 results must fit in little memory. The log
//! is read once, from front to back, and released page by page. All logs of the process together
//! use at most [`MAX_BYTES`].

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::error::ApiError;

/// Maximum memory of all logs and of the delivery states that belong to them. It holds the results
/// of three batches of a million events with short ids, or of sixty default batches in which every
/// event is rejected with a long text.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The permits of all logs of a process, one per byte.
pub fn memory_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_BYTES))
}

/// Permits are acquired in steps. A step is small enough for thousands of small batches, and large
/// batches acquire few of them.
const PERMIT_STEP_BYTES: usize = 4 * 1024;
/// Memory of a delivery state.
const STATE_BYTES: usize = 16;

/// Size of a page. Each page becomes one chunk of the response.
const PAGE_BYTES: usize = 16 * 1024;
/// Size of an entry's header: a kind and a length.
const HEADER_BYTES: usize = 5;

const SENT_WITH_UUID: u8 = 0;
const SENT: u8 = 1;
const REJECTED: u8 = 2;
const UNPARSED: u8 = 3;

/// The result of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'l> {
    /// The event was sent with a generated id.
    SentWithUuid(Uuid),
    /// The event was sent with the id that it brought.
    Sent(&'l str),
    /// The event was rejected. The value is its result as JSON.
    Rejected(&'l [u8]),
    /// The event was rejected. The value is its text, which is shorter than the result. Parsing it
    /// again returns the same rejection.
    Unparsed(&'l [u8]),
}

/// The results of one batch request.
#[derive(Debug)]
pub struct ResultLog {
    pages: Vec<Vec<u8>>,
    permits: Arc<Semaphore>,
    acquired: Option<OwnedSemaphorePermit>,
    /// Acquired bytes that are not used yet.
    unused_bytes: usize,
}

/// The logs of all batches use all their memory.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl ResultLog {
    /// Creates an empty log whose memory is limited by `permits`.
    pub fn new(permits: Arc<Semaphore>) -> Self {
        Self { pages: Vec::new(), permits, acquired: None, unused_bytes: 0 }
    }

    /// Adds the result of the next event.
    ///
    /// # Errors
    /// There is no memory for it, and nothing was added.
    pub fn push(&mut self, entry: Entry<'_>) -> Result<(), OutOfMemory> {
        let (bytes, state) = match &entry {
            Entry::SentWithUuid(id) => (id.as_bytes().len(), STATE_BYTES),
            Entry::Sent(id) => (id.len(), STATE_BYTES),
            Entry::Rejected(bytes) | Entry::Unparsed(bytes) => (bytes.len(), 0),
        };
        self.acquire(HEADER_BYTES + bytes + state)?;
        self.push_last(entry);
        Ok(())
    }

    fn acquire(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        if self.unused_bytes < bytes {
            let step = u32::try_from(bytes.max(PERMIT_STEP_BYTES)).map_err(|_| OutOfMemory)?;
            let permit = Arc::clone(&self.permits).try_acquire_many_owned(step).map_err(|_| OutOfMemory)?;
            self.unused_bytes += step as usize;
            match &mut self.acquired {
                Some(acquired) => acquired.merge(permit),
                None => self.acquired = Some(permit),
            }
        }
        self.unused_bytes -= bytes;
        Ok(())
    }

    /// Adds the last result, the error that ended the batch. It needs no permit.
    pub fn push_last(&mut self, entry: Entry<'_>) {
        let (kind, bytes) = match &entry {
            Entry::SentWithUuid(id) => (SENT_WITH_UUID, id.as_bytes().as_slice()),
            Entry::Sent(id) => (SENT, id.as_bytes()),
            Entry::Rejected(json) => (REJECTED, *json),
            Entry::Unparsed(text) => (UNPARSED, *text),
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

    /// The pages, for [`Entry::read`], and the permits of their memory.
    pub fn into_pages(self) -> (std::vec::IntoIter<Vec<u8>>, Option<OwnedSemaphorePermit>) {
        (self.pages.into_iter(), self.acquired)
    }
}

impl<'l> Entry<'l> {
    /// Reads the first entry of `page`. Returns it and the rest of the page.
    pub fn read(page: &'l [u8]) -> Option<(Self, &'l [u8])> {
        let (&kind, rest) = page.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let entry = match kind {
            SENT_WITH_UUID => Self::SentWithUuid(Uuid::from_slice(bytes).ok()?),
            SENT => Self::Sent(std::str::from_utf8(bytes).ok()?),
            REJECTED => Self::Rejected(bytes),
            UNPARSED => Self::Unparsed(bytes),
            _ => return None,
        };
        Some((entry, rest))
    }
}

/// The counts and statuses of all results.
#[derive(Debug, Default)]
pub struct Summary {
    /// Number of results.
    pub results: usize,
    /// Number of results with status 202.
    pub accepted: usize,
    /// The statuses of the other results.
    statuses: BTreeSet<StatusCode>,
    /// Whether the body was truncated. The client can send the missing events in a new request.
    pub body_cut: bool,
}

impl Summary {
    /// Adds a result that is a rejection.
    pub fn add_rejection(&mut self, error: &ApiError) {
        self.results += 1;
        self.add_status(error);
    }

    /// Adds the status of results that are counted already.
    pub fn add_status(&mut self, error: &ApiError) {
        self.statuses.insert(error.status());
        self.body_cut |= matches!(error, ApiError::TruncatedBody);
    }

    /// 202 if every event was accepted, 207 if some were accepted. Otherwise the status that all
    /// results share, or 207 if they differ.
    pub fn status(&self) -> StatusCode {
        let mut statuses = self.statuses.iter();
        match (statuses.next(), statuses.next()) {
            (None, _) => StatusCode::ACCEPTED,
            (Some(shared), None) if self.accepted == 0 => *shared,
            _ => StatusCode::MULTI_STATUS,
        }
    }
}

#[derive(Serialize)]
struct Rejection<'a> {
    index: usize,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    detail: &'a str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a serde_json::Value>,
}

/// The result of a rejected event as JSON.
pub fn rejection_json(index: usize, error: &ApiError) -> Vec<u8> {
    let problem = error.problem();
    to_json(&Rejection {
        index,
        status: problem.status.as_u16(),
        id: problem.id.as_deref(),
        detail: &problem.detail,
        retryable: problem.retryable,
        errors: problem.errors.as_ref(),
    })
}

/// Serializes texts and numbers. This never fails in memory.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_in_the_order_of_writing_and_pages_stay_small() {
        let id = Uuid::now_v7();
        let (long, name) = ("x".repeat(3 * PAGE_BYTES), "é".repeat(256));
        let entries: Vec<Entry<'_>> = (0..5_000)
            .map(|number| match number % 5 {
                0 => Entry::SentWithUuid(id),
                1 => Entry::Sent(&name),
                2 => Entry::Rejected(b"{}"),
                3 if number == 13 => Entry::Unparsed(long.as_bytes()),
                _ => Entry::Unparsed(b""),
            })
            .collect();
        let mut log = ResultLog::new(memory_permits());
        entries.iter().for_each(|entry| log.push(*entry).unwrap());
        let mut expected = entries.iter();
        for page in log.into_pages().0 {
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
    fn all_logs_together_stay_within_the_limit_and_release_their_permits() {
        let permits = Arc::new(Semaphore::new(3 * PERMIT_STEP_BYTES));
        let mut logs: Vec<ResultLog> = (0..3).map(|_| ResultLog::new(Arc::clone(&permits))).collect();
        let text = [b'x'; PERMIT_STEP_BYTES / 2 - HEADER_BYTES];
        for log in &mut logs {
            assert_eq!(log.push(Entry::Unparsed(&text)), Ok(()));
        }
        assert_eq!(logs[0].push(Entry::Unparsed(&text)), Ok(()), "the rest of its step");
        assert_eq!(logs[0].push(Entry::Unparsed(b"")), Err(OutOfMemory));
        let (pages, acquired) = logs.remove(0).into_pages();
        assert_eq!((pages.len(), acquired.is_some(), permits.available_permits()), (1, true, 0));
        drop(acquired);
        let too_long = [b'x'; PERMIT_STEP_BYTES];
        assert_eq!(logs[1].push(Entry::Unparsed(&too_long)), Err(OutOfMemory), "more than is left");
        assert_eq!(logs[1].push(Entry::Unparsed(&text)), Ok(()));
        assert_eq!(logs[1].push(Entry::Unparsed(b"")), Ok(()));
        drop(logs);
        assert_eq!(permits.available_permits(), 3 * PERMIT_STEP_BYTES);
    }
}
