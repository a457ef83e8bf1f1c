//! Fetches the records of a source of the file and sends those that are new.
//!
//! - One fetch of a source runs at a time. Sources do not wait for each other.
//! - A record that was sent and has not changed is not sent again.
//! - A record that can never be stored goes to the dead-letter topic, once. So does a record whose
//!   event is larger than the limit of the broker. If it is too large for that topic too, it is
//!   rejected: it is logged and counted once.
//! - The validators of the pages are kept only after every record of all pages has a delivery
//!   report or a dead letter. So nothing is lost if a fetch ends early.

use std::collections::{HashMap, HashSet};

use events::{Loc, NewEvent, Violation};
use service::tasks::lock;
use sources::{Answer, Context, HttpApi, Records, Source};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::batch::{Batch, Settled};
use crate::error::ApiError;
use crate::extraction::{Extraction, Fault, extract};
use crate::kafka::delivery::DeliveryError;
use crate::kafka::delivery_tracker::DeliveryState;
use crate::pull::client::{Fetched, Page};
use crate::pull::dead_letters::DeadLetter;
use crate::pull::error::PullError;
use crate::pull::kept::{Hash, KeptPage, Validators, hash};
use crate::pull::paging;
use crate::pull::puller::Puller;
use crate::routes::ingest::{Accepted, publish};
use crate::state::AppState;

/// Maximum number of records of one fetch.
const MAX_RECORDS: usize = 100_000;
/// Number of dead letters that are sent side by side.
const DEAD_LETTERS_AT_A_TIME: usize = 64;
/// Number of records, and size of their texts, after which other tasks may run.
const RECORDS_PER_YIELD: usize = 64;
const BYTES_PER_YIELD: usize = 256 * 1024;

/// What a fetch returned.
pub enum Outcome {
    /// Nothing is new.
    NotModified,
    /// The only record of the answer was sent.
    One(Accepted),
    /// The records of the answer have these outcomes.
    Many {
        settled: Settled,
        /// Why the fetch is incomplete, if it is.
        failure: Option<String>,
    },
}

/// One fetch.
struct Fetch<'f> {
    state: &'f AppState,
    source: &'f Source,
    api: &'f HttpApi,
    puller: &'f Puller,
    traceparent: Option<&'f str>,
    dead_letter_topic: String,
    /// Pages whose records were all sent or dead-lettered.
    pages: HashMap<String, KeptPage>,
    /// The records that were sent, in order: the hash of the id, and that of the record.
    sent: Vec<(Hash, Hash)>,
    /// The last record of each id in this fetch. An API may return several revisions of one id, and
    /// the last of them must be the last that is sent.
    latest: HashMap<Hash, Hash>,
    dead_letters: Vec<PendingLetter>,
    dead_lettered: u64,
    /// Records that are too large even for the dead-letter topic.
    rejected: u64,
    unchanged: u64,
    fetched: usize,
    /// Whether a page was received that has changed.
    has_changed: bool,
    /// When the API allows the next request.
    next_request: Option<Instant>,
}

/// A dead letter to send.
struct PendingLetter {
    /// The hash of the record.
    content: Hash,
    /// Whether the event of the record is larger than the limit of the broker.
    is_too_large: bool,
    letter: DeadLetter,
}

impl Puller {
    /// Fetches the source now. `cancelled` ends the requests to the API. It does not end the
    /// delivery of events that Kafka received.
    ///
    /// # Errors
    /// 502: the API returned no record. 503: Kafka is unavailable, and the API gets no request. For
    /// an answer of one record, also the errors of [`publish`].
    pub async fn fetch(
        &self,
        state: &AppState,
        (source, api): (&Source, &HttpApi),
        traceparent: Option<&str>,
        cancelled: &CancellationToken,
    ) -> Result<Outcome, ApiError> {
        let topic = state.sources.topic_of(&source.name);
        if let Err(detail) = state.kafka.ready_for(topic) {
            return Err(ApiError::NotStored { reason: "kafka_away", detail, id: None });
        }
        let dead_letter_topic = state.config.dead_letters_of(topic);
        let name = source.name.as_str();
        let turn = tokio::time::timeout(api.timeout, self.turn.acquire());
        let _turn = tokio::select! {
            turn = turn => turn.map_err(|_| PullError::Busy(api.timeout).into_api_error(name))?,
            () = cancelled.cancelled() => return Err(ApiError::shutting_down(None)),
            () = state.shutdown.abandoned.cancelled() => return Err(ApiError::shutting_down(None)),
        };
        let fetch = Fetch {
            state,
            source,
            api,
            puller: self,
            traceparent,
            dead_letter_topic,
            pages: HashMap::new(),
            sent: Vec::new(),
            latest: HashMap::new(),
            dead_letters: Vec::new(),
            dead_lettered: 0,
            rejected: 0,
            unchanged: 0,
            fetched: 0,
            has_changed: false,
            next_request: None,
        };
        if matches!(api.records, Records::One(_)) && api.paging.is_none() {
            fetch.one(cancelled).await
        } else {
            fetch.many(cancelled).await
        }
    }
}

impl Fetch<'_> {
    fn name(&self) -> &str {
        self.source.name.as_str()
    }

    /// Fetches a page, unless the fetch is cancelled.
    async fn page(&mut self, url: &Url, cancelled: &CancellationToken) -> Result<Option<Page>, ApiError> {
        let known = lock(&self.puller.kept).pages.get(url.as_str()).cloned();
        let fetched = tokio::select! {
            fetched = self.puller.client.fetch(url, known.as_ref().map(|page| &page.validators)) => fetched,
            () = cancelled.cancelled() => return Err(ApiError::shutting_down(None)),
            () = self.state.shutdown.abandoned.cancelled() => return Err(ApiError::shutting_down(None)),
        };
        match fetched.map_err(|error| error.into_api_error(self.name()))? {
            Fetched::NotModified { next_request } => {
                self.next_request = next_request.max(self.next_request);
                self.pages.extend(known.map(|page| (url.as_str().to_owned(), page)));
                Ok(None)
            }
            Fetched::Page(page) => {
                self.next_request = page.next_request.max(self.next_request);
                self.has_changed = true;
                Ok(Some(page))
            }
        }
    }

    /// Ends the fetch. `complete` states that every record has a delivery report or a dead letter.
    /// If not, the validators of the fetch before are void too: some of its records may be replaced
    /// by those that were sent.
    fn end(&mut self, complete: bool) {
        let mut kept = lock(&self.puller.kept);
        if complete {
            kept.pages = std::mem::take(&mut self.pages);
        } else if self.has_changed {
            kept.pages.clear();
        }
        drop(kept);
        if let Some(at) = self.next_request {
            self.puller.client.wait(at.saturating_duration_since(Instant::now()));
        }
        self.count("not_modified", self.unchanged);
        self.count("dead_lettered", self.dead_lettered);
        self.count("rejected", self.rejected);
    }

    fn count(&self, outcome: &'static str, records: u64) {
        self.state.metrics.pulled_records(self.name(), outcome, records);
    }

    /// The key of a record in the hashes of sent records, and its hash. A record without an id of
    /// its own is known by its content.
    fn hashes(record: &sources::Record<'_>, extraction: &Extraction) -> (Hash, Hash) {
        let content = content(record);
        let key = if extraction.id_generated { content } else { hash(&[extraction.id.as_str()]) };
        (key, content)
    }

    fn keep_page(&mut self, url: &Url, page: &Page, records: usize, next: Option<&Url>) {
        if page.validators != Validators::default() {
            let kept = KeptPage { validators: page.validators.clone(), records, next: next.cloned() };
            self.pages.insert(url.as_str().to_owned(), kept);
        }
    }

    /// Fetches an answer that is one record.
    async fn one(mut self, cancelled: &CancellationToken) -> Result<Outcome, ApiError> {
        let url = paging::first(self.api);
        let Some(page) = self.page(&url, cancelled).await? else {
            self.end(true);
            return Ok(Outcome::NotModified);
        };
        let invalid = |error: PullError| error.into_api_error(self.source.name.as_str());
        let records = self.api.records.of(&page.text);
        let mut records = records.map_err(|reason| invalid(PullError::InvalidResponse(reason)))?;
        let Some(record) = records.next() else { return Ok(Outcome::NotModified) };
        let answer = Answer::new(&page.text);
        let context = Context { answer: Some(&answer), key: record.key.as_deref() };
        let outcome = match extract(self.source, record.text, context, self.state.now()) {
            Ok(extraction) => self.publish_one(&record, extraction).await,
            Err(fault) => {
                self.dead_letter(record.text, content(&record), (&fault, false));
                Err(Unsent::Fault(fault))
            }
        };
        let letters = self.send_dead_letters().await;
        let complete = letters.is_ok() && !matches!(outcome, Err(Unsent::NotStored(_)));
        if complete {
            self.keep_page(&url, &page, 1, None);
        }
        self.end(complete);
        letters?;
        outcome.map_err(|unsent| match unsent {
            Unsent::NotStored(error) => error,
            Unsent::Fault(fault) => {
                let faults: Vec<String> = fault.violations.iter().take(5).map(ToString::to_string).collect();
                invalid(PullError::InvalidRecord(faults.join("; ")))
            }
        })
    }

    /// Sends the event of an answer that is one record, unless it was sent before.
    async fn publish_one(
        &mut self,
        record: &sources::Record<'_>,
        extraction: Extraction,
    ) -> Result<Outcome, Unsent> {
        let (key, content) = Self::hashes(record, &extraction);
        if lock(&self.puller.kept).sent.has(&key, &content) {
            self.unchanged += 1;
            return Ok(Outcome::NotModified);
        }
        if lock(&self.puller.kept).too_large.has(&content, &content) {
            return Err(Unsent::Fault(too_large()));
        }
        lock(&self.puller.kept).sent.forget(&key);
        let payload = extraction.event.payload.clone();
        match publish(self.state, extraction.event, extraction.id, self.traceparent).await {
            Ok(accepted) => {
                lock(&self.puller.kept).sent.insert(key, content);
                self.count("accepted", 1);
                Ok(Outcome::One(accepted.with_payload(&payload)))
            }
            Err(ApiError::RecordTooLarge) => {
                let fault = too_large();
                self.dead_letter(record.text, content, (&fault, true));
                Err(Unsent::Fault(fault))
            }
            Err(error) => {
                self.count("failed", 1);
                Err(Unsent::NotStored(error))
            }
        }
    }

    /// Fetches the pages of an answer of many records.
    async fn many(mut self, cancelled: &CancellationToken) -> Result<Outcome, ApiError> {
        let mut batch = Batch::new(self.state, None, None, self.traceparent);
        let result = self.read_pages(&mut batch, cancelled).await;
        let letters = self.send_dead_letters().await;
        let (pages, error) = match (result, letters) {
            (Ok(pages), Ok(())) => (pages, None),
            (Err(error), _) | (_, Err(error)) => (0, Some(error)),
        };
        let is_empty = batch.results.len() == 0 && self.unchanged == 0;
        match error {
            // Nothing was received, so the error is the whole response.
            Some(error) if is_empty => {
                self.end(false);
                return Err(error);
            }
            Some(ref error) => batch.reject_rest(error),
            None => {}
        }
        batch.results.set_unchanged(self.unchanged);
        let mut settled = batch.settle().await;
        let mut kept = lock(&self.puller.kept);
        let mut failed = 0;
        for ((key, content), state) in self.sent.iter().zip(&settled.states) {
            match state {
                DeliveryState::Stored { .. } => kept.sent.insert(*key, *content),
                // It has a dead letter, or the fetch has an error.
                DeliveryState::Failed(error)
                    if settled.errors.get(*error) == Some(&DeliveryError::TooLarge) => {}
                DeliveryState::Pending | DeliveryState::Failed(_) => failed += 1,
            }
        }
        drop(kept);
        self.count("accepted", u64::try_from(settled.accepted).unwrap_or(u64::MAX));
        self.count("failed", failed);
        self.end(error.is_none() && failed == 0);
        match error {
            None if pages == 0 => Ok(Outcome::NotModified),
            error => {
                let failure = error.map(|error| error.problem().detail);
                let failure = failure.or_else(|| {
                    (failed > 0).then(|| format!("{failed} records were not acknowledged by kafka"))
                });
                if let Some(failure) = &failure {
                    settled.results.set_incomplete(failure);
                }
                Ok(Outcome::Many { settled, failure })
            }
        }
    }

    /// Reads all pages and sends their records. Returns the number of pages that have changed.
    async fn read_pages(
        &mut self,
        batch: &mut Batch<'_>,
        cancelled: &CancellationToken,
    ) -> Result<usize, ApiError> {
        let name = self.source.name.as_str();
        let max_pages = self.api.paging.as_ref().map_or(1, |paging| paging.max_pages);
        let (mut next, mut visited, mut changed) = (Some(paging::first(self.api)), HashSet::new(), 0);
        // Whether the last page has records that were not fetched before. The next may have some too.
        let mut has_new = false;
        for _ in 0..max_pages {
            let Some(url) = next.take() else { break };
            if !visited.insert(url.as_str().to_owned()) {
                let error = PullError::InvalidResponse("its next page was fetched before".into());
                return Err(error.into_api_error(name));
            }
            let Some(page) = self.page(&url, cancelled).await? else {
                let kept = self.pages.get(url.as_str());
                next = kept.and_then(|kept| kept.next.clone());
                self.fetched += kept.map_or(0, |kept| kept.records);
                continue;
            };
            changed += 1;
            let sent_before = self.sent.len();
            let records = self.read_page(&page, batch).await?;
            has_new = self.sent.len() > sent_before;
            self.send_dead_letters().await?;
            self.fetched += records;
            let around = (page.text.as_str(), &page.headers);
            next = paging::next(self.api, &url, around, (records, self.fetched))
                .map_err(|error| error.into_api_error(name))?;
            self.keep_page(&url, &page, records, next.as_ref());
        }
        if next.is_some() && has_new {
            tracing::warn!(
                source = name,
                max_pages,
                "api has more pages than max_pages, they are not fetched"
            );
            batch.results.set_has_more();
        }
        Ok(changed)
    }

    /// Sends the records of a page and waits for their delivery, because only the broker knows
    /// which of them are too large. Returns their number.
    async fn read_page(&mut self, page: &Page, batch: &mut Batch<'_>) -> Result<usize, ApiError> {
        let (first, mut sent) = (self.sent.len(), Vec::new());
        let read = self.send_records(page, batch, &mut sent).await;
        for slot in batch.too_large_since(first).await {
            let (_, content) = self.sent[slot];
            self.dead_letter(sent[slot - first], content, (&too_large(), true));
        }
        let letters = self.send_dead_letters().await;
        read.and_then(|count| letters.map(|()| count))
    }

    /// Sends the records of a page, and adds the texts of those that were sent. Returns the number
    /// of all records.
    async fn send_records<'p>(
        &mut self,
        page: &'p Page,
        batch: &mut Batch<'_>,
        sent: &mut Vec<&'p str>,
    ) -> Result<usize, ApiError> {
        let name = self.source.name.as_str();
        let records = self.api.records.of(&page.text);
        let records = records.map_err(|reason| PullError::InvalidResponse(reason).into_api_error(name))?;
        let (answer, mut count, mut bytes) = (Answer::new(&page.text), 0, 0);
        for record in records {
            count += 1;
            bytes += record.text.len();
            if self.fetched + count > MAX_RECORDS {
                return Err(PullError::TooManyRecords(MAX_RECORDS).into_api_error(name));
            }
            if self.state.shutdown.abandoned.is_cancelled() {
                return Err(ApiError::shutting_down(None));
            }
            let context = Context { answer: Some(&answer), key: record.key.as_deref() };
            match extract(self.source, record.text, context, self.state.now()) {
                Ok(extraction) => {
                    let hashes = Self::hashes(&record, &extraction);
                    if self.is_settled(&hashes) {
                        self.unchanged += 1;
                    } else {
                        batch.send(NewEvent { id: Some(extraction.id), ..extraction.event }).await?;
                        self.sent.push(hashes);
                        sent.push(record.text);
                    }
                }
                Err(fault) if self.dead_letter(record.text, content(&record), (&fault, false)) => {
                    let error = ApiError::Violations(fault.violations);
                    batch.results.reject(&error)?;
                    self.state.metrics.events_rejected(error.reason(), 1);
                }
                Err(_) => self.unchanged += 1,
            }
            if self.dead_letters.len() >= DEAD_LETTERS_AT_A_TIME {
                self.send_dead_letters().await?;
            }
            if count.is_multiple_of(RECORDS_PER_YIELD) || bytes >= BYTES_PER_YIELD {
                bytes = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(count)
    }

    /// Whether a record needs no further event: it was sent, or its event is too large. If not, the
    /// record of its id that was sent before is forgotten, so that it is sent again after this one.
    fn is_settled(&mut self, (key, content): &(Hash, Hash)) -> bool {
        let mut kept = lock(&self.puller.kept);
        let is_sent = match self.latest.insert(*key, *content) {
            Some(before) => before == *content,
            None => kept.sent.has(key, content),
        };
        if is_sent || kept.too_large.has(content, content) {
            return true;
        }
        kept.sent.forget(key);
        false
    }

    /// Adds the dead letter of a record, unless it has one already. Returns whether it was added.
    fn dead_letter(&mut self, record: &str, content: Hash, (fault, is_too_large): (&Fault, bool)) -> bool {
        let known = lock(&self.puller.kept).lettered(is_too_large).has(&content, &content)
            || self.dead_letters.iter().any(|pending| pending.content == content);
        if !known {
            let letter = DeadLetter::new(record, fault);
            self.dead_letters.push(PendingLetter { content, is_too_large, letter });
        }
        !known
    }

    /// Sends the dead letters so far.
    ///
    /// # Errors
    /// One of them is not known to be stored.
    async fn send_dead_letters(&mut self) -> Result<(), ApiError> {
        if self.dead_letters.is_empty() {
            return Ok(());
        }
        let letters = std::mem::take(&mut self.dead_letters);
        let (kafka, topic) = (&self.state.kafka, self.dead_letter_topic.clone());
        let (topic, name) = (topic.as_str(), self.source.name.as_str());
        let sends = letters.iter().map(|pending| pending.letter.send(kafka, topic, name));
        let outcomes = futures::future::join_all(sends).await;
        let (mut failure, mut stored, mut rejected) = (None, Vec::new(), Vec::new());
        for (PendingLetter { content, is_too_large, letter }, outcome) in letters.iter().zip(outcomes) {
            match outcome {
                Ok(()) => stored.push(letter),
                Err(DeliveryError::TooLarge) => rejected.push(letter),
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            }
            lock(&self.puller.kept).lettered(*is_too_large).insert(*content, *content);
        }
        self.dead_lettered += log(name, &stored, "fetched records sent to dead-letter topic");
        self.rejected +=
            log(name, &rejected, "fetched records rejected: too large for the dead-letter topic");
        match failure {
            None => Ok(()),
            Some(error) => Err(match error.into_api_error(crate::http::headers::new_id()) {
                ApiError::NotStored { reason, detail, .. } => {
                    let detail = format!("a dead letter in topic {topic}: {detail}");
                    ApiError::NotStored { reason, detail, id: None }
                }
                ApiError::UnknownOutcome { detail, .. } => {
                    let detail = format!("a dead letter in topic {topic}: {detail}");
                    ApiError::NotStored { reason: "kafka_refused", detail, id: None }
                }
                error => error,
            }),
        }
    }
}

/// Logs what became of records. Returns their number.
fn log(source: &str, letters: &[&DeadLetter], event: &'static str) -> u64 {
    let count = letters.len() as u64;
    if let Some(first) = letters.first() {
        first.log(source, count, event);
    }
    count
}

/// Why an answer of one record was not sent.
enum Unsent {
    /// It is not known to be stored. The next fetch sends it again.
    NotStored(ApiError),
    /// It can never be stored.
    Fault(Fault),
}

/// The hash of a record.
fn content(record: &sources::Record<'_>) -> Hash {
    hash(&[record.text, record.key.as_deref().unwrap_or_default()])
}

/// The fault of a record whose event is larger than the limit of the broker.
fn too_large() -> Fault {
    let loc = vec![Loc::Name("body".into())];
    let msg = "Record is larger than kafka's limit for a record of the topic".into();
    Fault { class: "RecordFault", violations: vec![Violation { loc, msg, kind: "record_too_large" }] }
}
