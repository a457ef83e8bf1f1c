//! The response to a batch request: one status for the batch and one result for each event, in
//! input order. The results are written while they are sent, one page at a time.

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

use crate::batch::ingest::parse_event;
use crate::batch::results::{Entry, ResultLog, Summary, rejection_json, to_json};
use crate::error::ApiError;
use crate::kafka::batch_publisher::BatchOutcome;
use crate::kafka::delivery::DeliveryError;
use crate::kafka::delivery_tracker::DeliveryState;
use crate::state::{Admission, AppState, Permit};

#[derive(Serialize)]
struct Acceptance<'a> {
    index: usize,
    status: u16,
    id: &'a str,
    partition: i32,
    offset: i64,
}

/// The response. `held` is dropped after its last byte: until then the request counts as unfinished
/// and keeps its permit.
pub fn batch_response(
    producer: AppState,
    summary: &Summary,
    (results, outcome): (ResultLog, BatchOutcome),
    held: (Admission, Arc<Permit>),
) -> Response {
    let status = summary.status();
    let is_problem = status.is_client_error() || status.is_server_error();
    let problem = ApiError::whole_batch(status, summary.body_cut);
    let mut head = if is_problem { to_json(&problem) } else { b"{}".to_vec() };
    // The counts and the results continue the JSON object.
    head.pop();
    let comma = if is_problem { "," } else { "" };
    let rejected = summary.results - summary.accepted;
    let counts = format!("{comma}\"accepted\":{},\"rejected\":{rejected},\"results\":[", summary.accepted);
    head.extend_from_slice(counts.as_bytes());
    let (pages, memory_permits) = results.into_pages();
    let body = ResultsBody {
        producer,
        head: Some(head),
        pages,
        states: outcome.states.pages.into_iter().flatten(),
        errors: outcome.errors,
        index: 0,
        ended: false,
        _held: (held, memory_permits),
    };
    let mut response = Body::from_stream(futures::stream::iter(body)).into_response();
    *response.status_mut() = status;
    let media_type = if is_problem { "application/problem+json" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(retry_after) = problem.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs()));
    }
    response
}

/// The body of the response, in chunks.
struct ResultsBody {
    producer: AppState,
    head: Option<Vec<u8>>,
    pages: IntoIter<Vec<u8>>,
    states: Flatten<IntoIter<Vec<DeliveryState>>>,
    errors: Vec<DeliveryError>,
    index: usize,
    ended: bool,
    _held: ((Admission, Arc<Permit>), Option<OwnedSemaphorePermit>),
}

impl Iterator for ResultsBody {
    type Item = Result<Bytes, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut chunk = self.head.take().unwrap_or_default();
        match self.pages.next() {
            Some(page) => self.write_page(&page, &mut chunk),
            None => {
                chunk.extend_from_slice(b"]}");
                self.ended = true;
            }
        }
        Some(Ok(chunk.into()))
    }
}

impl ResultsBody {
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
            Entry::SentWithUuid(id) => {
                let mut text = [0; Hyphenated::LENGTH];
                self.write_sent(id.hyphenated().encode_lower(&mut text), chunk);
            }
            Entry::Sent(id) => self.write_sent(id, chunk),
            Entry::Rejected(json) => chunk.extend_from_slice(json),
            Entry::Unparsed(text) => {
                if let Err(error) = parse_event(&self.producer, text) {
                    chunk.extend_from_slice(&rejection_json(self.index, &error));
                }
            }
        }
    }

    fn write_sent(&mut self, id: &str, chunk: &mut Vec<u8>) {
        let index = self.index;
        let (partition, offset) = match self.states.next() {
            Some(DeliveryState::Stored { partition, offset }) => (partition, offset),
            state => {
                let error = match state {
                    Some(DeliveryState::Failed(error_index)) => {
                        self.errors.get(error_index as usize).cloned()
                    }
                    _ => None,
                };
                let error = error.unwrap_or_else(|| DeliveryError::Unknown("its outcome was lost".into()));
                // The id was valid when the event was sent.
                if let Ok(id) = EventId::new(id) {
                    chunk.extend_from_slice(&rejection_json(index, &error.into_api_error(id)));
                }
                return;
            }
        };
        let accepted = Acceptance { index, status: StatusCode::ACCEPTED.as_u16(), id, partition, offset };
        _ = serde_json::to_writer(chunk, &accepted);
    }
}
