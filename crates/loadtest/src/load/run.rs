//! A run: workers take requests from the schedule and retry until each event has a final response.
//! Guarantee: at the end, each event that was sent has exactly one line in the ledger. All attempts
//! of an event have the same id and the same body.
//!
//! A run ends in phases: no new events, then no retries, then no waiting for responses. A run with
//! a limited duration or number of events always ends, whatever the producer does.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use service::backoff::Backoff;
use service::lock::lock;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::client::{AttemptResult, Client};
use super::pending_event::PendingEvent;
use super::response::{AttemptOutcome, Receipt};
use super::schedule::{Schedule, ScheduledRequest};
use super::summary::Counters;
use crate::ledger::{Header, Ledger, Outcome};
use crate::options::LoadOptions;

/// Maximum size of a request: half of the producer's MAX_BATCH_BYTES.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// After a stop signal, how long requests in flight may still get a response.
const FINISH_TIMEOUT: Duration = Duration::from_secs(8);
/// Period of the check for a stalled run.
const STALL_CHECK_PERIOD: Duration = Duration::from_millis(100);

/// The phases in which a run ends; each token is cancelled at the start of its phase.
#[derive(Debug, Default)]
pub struct ShutdownPhases {
    /// All planned events were sent once.
    pub all_sent: CancellationToken,
    /// No new events are sent.
    pub no_new_events: CancellationToken,
    /// No event is retried.
    pub no_retries: CancellationToken,
    /// Requests in flight are abandoned.
    pub abandon_requests: CancellationToken,
}

/// The shared state of the workers.
#[derive(Debug)]
pub struct Run {
    /// The run, as in the ledger's first line.
    pub header: Header,
    /// The client of the producer.
    pub client: Client,
    /// The ledger.
    pub ledger: Ledger,
    /// The requests to send.
    pub schedule: Mutex<Schedule>,
    /// Number of events of the run, if it is limited.
    pub planned: Option<u64>,
    /// Counters so far.
    pub counters: Mutex<Counters>,
    /// Phases of the end.
    pub shutdown: ShutdownPhases,
}

impl Run {
    /// Sends requests until the schedule ends.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub async fn work(self: Arc<Self>) -> io::Result<()> {
        while let Some(ScheduledRequest { events, due }) = self.next_request() {
            if let Some(due) = due {
                tokio::select! {
                    biased;
                    () = self.shutdown.no_new_events.cancelled() => break,
                    () = sleep_until(due) => {}
                }
            }
            let due = due.unwrap_or_else(Instant::now);
            let mut request: Vec<PendingEvent> = Vec::with_capacity(events.len());
            let mut bytes = 0;
            for event in events {
                let event = PendingEvent::new(&self.header, event);
                if bytes + event.body.len() > MAX_REQUEST_BYTES && !request.is_empty() {
                    self.deliver(std::mem::take(&mut request), due).await?;
                    bytes = 0;
                }
                bytes += event.body.len() + 1;
                request.push(event);
            }
            self.deliver(request, due).await?;
        }
        Ok(())
    }

    fn next_request(&self) -> Option<ScheduledRequest> {
        if self.shutdown.no_new_events.is_cancelled() {
            return None;
        }
        lock(&self.schedule).next_request()
    }

    /// Sends the events of one request until each has a final response, or retries have ended.
    async fn deliver(&self, mut pending: Vec<PendingEvent>, due: Instant) -> io::Result<()> {
        self.count_new(&pending);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while !pending.is_empty() {
            let (results, retry_after) = tokio::select! {
                sent = self.client.send(&pending) => sent,
                () = self.shutdown.abandon_requests.cancelled() => {
                    (vec![AttemptResult::Interrupted; pending.len()], None)
                }
            };
            let mut retries = Vec::new();
            for (event, result) in pending.into_iter().zip(results) {
                retries.extend(self.apply_result(event, result, due)?);
            }
            pending = retries;
            if pending.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = self.shutdown.no_retries.cancelled() => {
                    for event in pending {
                        self.finish(event, None, false)?;
                    }
                    break;
                }
                () = sleep(retry_after.unwrap_or_else(|| backoff.next_delay())) => {}
            }
        }
        Ok(())
    }

    fn count_new(&self, new: &[PendingEvent]) {
        let mut counters = lock(&self.counters);
        for PendingEvent { event, .. } in new {
            counters.events += 1;
            counters.superseded += u64::from(event.is_superseded);
            counters.hostile += u64::from(event.is_hostile);
        }
        if self.planned == Some(counters.events) {
            self.shutdown.all_sent.cancel();
        }
    }

    /// Records an attempt. Returns the event if it must be retried.
    fn apply_result(
        &self,
        mut event: PendingEvent,
        result: AttemptResult,
        due: Instant,
    ) -> io::Result<Option<PendingEvent>> {
        {
            let mut counters = lock(&self.counters);
            match &result {
                AttemptResult::Response(response) => {
                    *counters.responses.entry(response.status).or_default() += 1;
                }
                AttemptResult::Unreachable(reason) => {
                    counters.unreachable += 1;
                    counters.unreachable_reason = Some(Arc::clone(reason));
                }
                AttemptResult::Interrupted => counters.interrupted += 1,
            }
        }
        let (status, outcome) = result.into_parts();
        event.record_attempt(status, &outcome, now_ms());
        match outcome {
            AttemptOutcome::Retryable | AttemptOutcome::Unknown => return Ok(Some(event)),
            AttemptOutcome::Rejected => self.finish(event, None, true)?,
            AttemptOutcome::Accepted(receipt) => {
                lock(&self.counters).latencies.add(due.elapsed());
                self.finish(event, Some(receipt), true)?;
            }
        }
        Ok(None)
    }

    fn finish(&self, event: PendingEvent, receipt: Option<Receipt>, is_final: bool) -> io::Result<()> {
        let line = event.into_line(receipt);
        let mut counters = lock(&self.counters);
        match line.outcome {
            Outcome::Accepted => counters.accepted += 1,
            Outcome::Rejected => counters.rejected += 1,
            Outcome::Unknown => counters.unknown += 1,
        }
        counters.unanswered += u64::from(!is_final);
        drop(counters);
        self.ledger.write(&line)
    }

    /// Starts the shutdown phases when they are due. Never returns.
    pub async fn run_shutdown(&self, options: &LoadOptions, started: Instant, stop: &CancellationToken) {
        // With a rate, late events may still be sent during the grace period.
        let is_scheduled = options.rate.is_some();
        let late = if is_scheduled { options.grace } else { Duration::ZERO };
        let new_until = options.run_for.map(|run_for| started + run_for + late);
        let mut grace = options.grace;
        tokio::select! {
            () = at(new_until) => grace -= late,
            () = self.stalled(grace), if new_until.is_none() => grace = Duration::ZERO,
            () = self.shutdown.all_sent.cancelled() => {}
            () = stop.cancelled() => {}
        }
        self.shutdown.no_new_events.cancel();
        tokio::select! {
            () = sleep(grace) => {}
            () = stop.cancelled() => {}
        }
        self.shutdown.no_retries.cancel();
        if stop.is_cancelled() {
            sleep(FINISH_TIMEOUT).await;
        }
        self.shutdown.abandon_requests.cancel();
        // The workers end without further signals.
        std::future::pending::<()>().await;
    }

    /// Returns when events were pending for `timeout` and none got a final response. Never returns
    /// if the number of events is not limited.
    async fn stalled(&self, timeout: Duration) {
        if self.planned.is_none() {
            return std::future::pending().await;
        }
        let (mut last_finished, mut since) = (0, Instant::now());
        while since.elapsed() < timeout {
            sleep(STALL_CHECK_PERIOD.min(timeout)).await;
            let (sent, finished) = {
                let counters = lock(&self.counters);
                (counters.events, counters.finished())
            };
            if sent == finished || finished > last_finished {
                (last_finished, since) = (finished, Instant::now());
            }
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The current time in epoch milliseconds.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
