//! Takes the events of a batch one after another: each is judged, and sent or refused, and none waits for another's
//! acknowledgement. What is kept of an event is its id, or why it was refused.

use std::sync::Arc;

use events::{Draft, Event, EventId, Refusal, Source};
use uuid::Uuid;

use super::response::{Summary, refusal_json};
use super::results::{Entry, Journal, NoRoom};
use crate::app::Producer;
use crate::error::ApiError;
use crate::ingest::id_of;
use crate::kafka::batch_publisher::{Batch, Outcomes};
use crate::kafka::delivery::Record;

/// The events of one request so far.
pub struct Intake<'p> {
    producer: &'p Producer,
    sending: Batch<'p>,
    traceparent: Option<&'p str>,
    journal: Journal,
    summary: Summary,
    /// What sources are counted by; the first that come may be the last, too.
    labels: Vec<String>,
    last_source: Option<(Source, u32)>,
}

impl<'p> Intake<'p> {
    /// Nothing taken yet.
    pub fn new(producer: &'p Producer, traceparent: Option<&'p str>) -> Self {
        let delivery_seconds = producer.metrics.delivery_seconds();
        let sending = producer.kafka.batch(traceparent, delivery_seconds, producer.stopping.give_up_token());
        Self {
            producer,
            sending,
            traceparent,
            journal: Journal::new(Arc::clone(&producer.journals)),
            summary: Summary::default(),
            labels: Vec::new(),
            last_source: None,
        }
    }

    /// How many events were taken, refused ones included.
    pub fn events(&self) -> usize {
        self.summary.results
    }

    /// Takes the event that `text` is.
    ///
    /// # Errors
    /// 503: there is no memory for its result.
    pub async fn take(&mut self, text: &[u8]) -> Result<(), ApiError> {
        match judge(self.producer, text) {
            Ok(draft) => self.send(draft).await,
            Err(error) => self.refuse(&error, Some(text)),
        }
    }

    /// Notes the next result, which is a refusal; `text` is what would be refused in the same way again.
    ///
    /// # Errors
    /// 503: there is no memory for it.
    pub fn refuse(&mut self, error: &ApiError, text: Option<&[u8]>) -> Result<(), ApiError> {
        let json = refusal_json(self.summary.results, error);
        let entry = match text {
            Some(text) if text.len() < json.len() => Entry::Again(text),
            _ => Entry::Refused(&json),
        };
        self.journal.push(entry).map_err(no_room)?;
        self.refused(error);
        Ok(())
    }

    /// Notes the last result: what broke the batch.
    pub fn broke(&mut self, error: &ApiError) {
        let json = refusal_json(self.summary.results, error);
        self.journal.push_last(Entry::Refused(&json));
        self.refused(error);
    }

    fn refused(&mut self, error: &ApiError) {
        self.summary.refused(error);
        self.producer.metrics.rejected(error.reason(), 1);
    }

    async fn send(&mut self, draft: Draft) -> Result<(), ApiError> {
        let id = match &draft.id {
            Some(id) => {
                self.journal.push(Entry::Named(id.as_str())).map_err(no_room)?;
                id.clone()
            }
            None => {
                let id = Uuid::now_v7();
                self.journal.push(Entry::Generated(id)).map_err(no_room)?;
                id_of(id)
            }
        };
        self.summary.results += 1;
        let label = self.label(&draft.source);
        let ingested_at = self.producer.clock.stamp(&id).await;
        let event = Event::new(draft, id, ingested_at, &self.producer.config.api_version);
        let value = event.to_json();
        let record = Record {
            key: event.id.as_str(),
            value: &value,
            timestamp_ms: ingested_at.get(),
            traceparent: self.traceparent,
        };
        self.sending.send(record, label).await;
        Ok(())
    }

    fn label(&mut self, source: &Source) -> u32 {
        if let Some((last, label)) = &self.last_source
            && last == source
        {
            return *label;
        }
        let text = self.producer.metrics.label(source);
        let known = self.labels.iter().position(|known| *known == text);
        let label = known.unwrap_or_else(|| {
            self.labels.push(text);
            self.labels.len() - 1
        });
        let label = u32::try_from(label).unwrap_or_default();
        self.last_source = Some((source.clone(), label));
        label
    }

    /// Waits for the outcome of what was sent, and counts it.
    pub async fn finish(self) -> (Summary, Journal, Outcomes) {
        let mut summary = self.summary;
        let outcomes = self.sending.finish().await;
        let metrics = &self.producer.metrics;
        for (label, count) in self.labels.iter().zip(&outcomes.closed.stored_by_label) {
            metrics.accepted_many(label, *count);
            summary.accepted += usize::try_from(*count).unwrap_or(usize::MAX);
        }
        for (error, count) in outcomes.failed() {
            let error = ApiError::not_sent(error.clone(), no_id());
            metrics.rejected(error.reason(), count);
            summary.refused_deliveries(&error);
            self.producer.note_failure(&error.problem().detail);
        }
        (summary, self.journal, outcomes)
    }
}

/// It and what follows is not stored.
fn no_room(NoRoom: NoRoom) -> ApiError {
    ApiError::overloaded("too many results of batches are being sent: send the rest in another batch")
}

/// Stands for every id where only the kind of a failure counts.
fn no_id() -> EventId {
    id_of(Uuid::nil())
}

/// The event that `text` is.
///
/// # Errors
/// 400, 422: always the same for the same text.
pub fn judge(producer: &Producer, text: &[u8]) -> Result<Draft, ApiError> {
    let draft = events::parse_request(text, &producer.rules).map_err(|refusal| match refusal {
        Refusal::Empty => ApiError::nothing_for_an_event(),
        refusal => ApiError::refusal(refusal, "event", None),
    })?;
    if draft.id.is_none() && producer.config.require_id { Err(ApiError::IdMissing) } else { Ok(draft) }
}
