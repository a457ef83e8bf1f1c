//! The answer to a batch: one status for the whole, one result for each event, in input order. The results are
//! written while they are sent, a page at a time.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::iter::Flatten;
use std::sync::Arc;
use std::vec::IntoIter;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use events::EventId;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use uuid::fmt::Hyphenated;

use super::ingest::judge;
use super::results::{Entry, Journal};
use crate::app::Producer;
use crate::error::ApiError;
use crate::kafka::batch_publisher::Outcomes;
use crate::kafka::delivery::SendError;
use crate::kafka::delivery_tracker::Slot;
use crate::serving::Place;
use crate::stopping::Admission;

/// What all results amount to.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many there are.
    pub results: usize,
    /// How many are 202.
    pub accepted: usize,
    /// The others' statuses.
    statuses: BTreeSet<StatusCode>,
    /// Whether the body was cut off: then the rest of it is still to be sent.
    cut: bool,
}

impl Summary {
    /// A further result is a refusal.
    pub fn refused(&mut self, error: &ApiError) {
        self.results += 1;
        self.refused_deliveries(error);
    }

    /// Results that are there already are refusals.
    pub fn refused_deliveries(&mut self, error: &ApiError) {
        self.statuses.insert(error.status());
        self.cut |= matches!(error, ApiError::BodyCut);
    }

    /// 202 if every event was accepted; 207 if some were, or if the others differ; else what all share.
    fn status(&self) -> StatusCode {
        let mut statuses = self.statuses.iter();
        match (statuses.next(), statuses.next()) {
            (None, _) => StatusCode::ACCEPTED,
            (Some(shared), None) if self.accepted == 0 => *shared,
            _ => StatusCode::MULTI_STATUS,
        }
    }
}

#[derive(Serialize)]
struct Stored<'a> {
    index: usize,
    status: u16,
    id: &'a str,
    partition: i32,
    offset: i64,
}

#[derive(Serialize)]
struct Refused<'a> {
    index: usize,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    detail: &'a str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a serde_json::Value>,
}

/// A result that is a refusal.
pub fn refusal_json(index: usize, error: &ApiError) -> Vec<u8> {
    let problem = error.problem();
    json(&Refused {
        index,
        status: problem.status.as_u16(),
        id: problem.id.as_deref(),
        detail: &problem.detail,
        retryable: problem.retryable,
        errors: problem.errors.as_ref(),
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Texts and numbers always serialise into memory.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The answer. `held` is kept until its last byte is written: the request is unfinished and has its place until then.
pub fn answer(
    producer: Producer,
    summary: &Summary,
    (journal, outcomes): (Journal, Outcomes),
    held: (Admission, Arc<Place>),
) -> Response {
    let status = summary.status();
    let problem = status.is_client_error() || status.is_server_error();
    let whole = ApiError::whole_batch(status, summary.cut);
    let mut head = if problem { json(&whole) } else { b"{}".to_vec() };
    head.pop();
    let comma = if problem { "," } else { "" };
    let rejected = summary.results - summary.accepted;
    let counts = format!("{comma}\"accepted\":{},\"rejected\":{rejected},\"results\":[", summary.accepted);
    head.extend_from_slice(counts.as_bytes());
    let (pages, journal_room) = journal.into_pages();
    let results = Results {
        producer,
        head: Some(head),
        pages,
        slots: outcomes.closed.pages.into_iter().flatten(),
        failures: outcomes.failures,
        index: 0,
        over: false,
        _held: (held, journal_room),
    };
    let mut response = Body::from_stream(futures::stream::iter(results)).into_response();
    *response.status_mut() = status;
    let media_type = if problem { "application/problem+json" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(seconds) = whole.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.as_secs()));
    }
    response
}

/// The results on their way out.
struct Results {
    producer: Producer,
    head: Option<Vec<u8>>,
    pages: IntoIter<Vec<u8>>,
    slots: Flatten<IntoIter<Vec<Slot>>>,
    failures: Vec<SendError>,
    index: usize,
    over: bool,
    _held: ((Admission, Arc<Place>), Option<OwnedSemaphorePermit>),
}

impl Iterator for Results {
    type Item = Result<Bytes, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let mut chunk = self.head.take().unwrap_or_default();
        match self.pages.next() {
            Some(page) => self.write_page(&page, &mut chunk),
            None => {
                chunk.extend_from_slice(b"]}");
                self.over = true;
            }
        }
        Some(Ok(chunk.into()))
    }
}

impl Results {
    fn write_page(&mut self, page: &[u8], chunk: &mut Vec<u8>) {
        let mut rest = page;
        while let Some((entry, after)) = Entry::read(rest) {
            if self.index > 0 {
                chunk.push(b',');
            }
            self.write(entry, chunk);
            self.index += 1;
            rest = after;
        }
    }

    fn write(&mut self, entry: Entry<'_>, chunk: &mut Vec<u8>) {
        match entry {
            Entry::Generated(id) => {
                let mut text = [0; Hyphenated::LENGTH];
                self.write_sent(id.hyphenated().encode_lower(&mut text), chunk);
            }
            Entry::Named(id) => self.write_sent(id, chunk),
            Entry::Refused(json) => chunk.extend_from_slice(json),
            Entry::Again(text) => {
                if let Err(error) = judge(&self.producer, text) {
                    chunk.extend_from_slice(&refusal_json(self.index, &error));
                }
            }
        }
    }

    fn write_sent(&mut self, id: &str, chunk: &mut Vec<u8>) {
        let index = self.index;
        let (partition, offset) = match self.slots.next() {
            Some(Slot::Stored { partition, offset }) => (partition, offset),
            slot => {
                let failure = match slot {
                    Some(Slot::Failed(failure)) => self.failures.get(failure as usize).cloned(),
                    _ => None,
                };
                let failure = failure.unwrap_or_else(|| SendError::Unknown("its outcome was lost".into()));
                // It was an id when it was sent.
                if let Ok(id) = EventId::new(id) {
                    chunk.extend_from_slice(&refusal_json(index, &ApiError::not_sent(failure, id)));
                }
                return;
            }
        };
        let stored = Stored { index, status: StatusCode::ACCEPTED.as_u16(), id, partition, offset };
        _ = serde_json::to_writer(chunk, &stored);
    }
}
