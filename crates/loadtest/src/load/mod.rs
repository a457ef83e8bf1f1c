//! The load generator: sends events to a producer as a good client does, and writes each outcome to
//! a ledger. Workers take requests from a schedule. An event without a final response is retried
//! with the same id and the same body until it has one, or until the run ends. At the end, each
//! event that was sent has exactly one line in the ledger. [`crate::verify`] reads the ledger.
//!
//! A run ends in phases: no new events, then no retries, then no waiting for responses. A run with
//! a limited duration or number of events always ends, whatever the producer does.

mod client;
mod summary;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{AttemptOutcome, AttemptResult, Client, PendingEvent, Receipt};
use events::Source;
use kafka::BoxError;
use service::ConfigErrors;
use service::tasks::lock;
use service::time::Backoff;
pub use summary::{Counters, Summary};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Header, Ledger, Outcome};
use crate::options::LoadOptions;
use crate::payload::RecordForm;
use crate::progress::{PLAIN_PERIOD, PlainLines, Progress};
use crate::workload::{Event, Events, Workload};

/// Period of the progress line and of the ledger's flush.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);
/// Minimum time over which the progress line computes the rate.
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// Maximum size of a request: half of the producer's MAX_BATCH_BYTES.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// After a stop signal, how long requests in flight may still get a response.
const FINISH_TIMEOUT: Duration = Duration::from_secs(8);
/// Period of the check for a stalled run.
const STALL_CHECK_PERIOD: Duration = Duration::from_millis(100);

/// Where events are sent, and their source.
#[derive(Debug, Clone)]
pub struct Target {
    /// The producer's address, call timeout, API key and certificates.
    pub producer: poller::Config,
    /// Source of the events.
    pub source: Source,
    /// The form of its records, if it is pushed. Absent: events in envelopes.
    pub record: Option<RecordForm>,
}

impl Target {
    /// The path of the endpoint.
    fn path(&self, is_batch: bool) -> String {
        let source = if self.record.is_some() { format!("/{}", self.source) } else { String::new() };
        format!("ingest{source}{}", if is_batch { "/batch" } else { "" })
    }
}

/// Sends the events of one run, until its end or until `stop`.
///
/// # Errors
/// The ledger exists already or cannot be written, or the TLS library finds no certificates.
pub async fn run(
    target: &Target,
    options: &LoadOptions,
    stop: &CancellationToken,
) -> Result<Summary, BoxError> {
    service::cli::raise_open_files_limit();
    check_ledger(target, options)?;
    let is_batch = options.batch > 1;
    let client = Client::new(&target.producer, &target.path(is_batch), is_batch)?;
    let header = header(target, options, client.api_version().await);
    let ledger = Ledger::create(options.ledger.as_deref(), &header)?;
    let started = Instant::now();
    let schedule = Schedule::new(header.workload, options, started);
    let planned = schedule.planned;
    let run = Arc::new(Run {
        header,
        client,
        ledger,
        schedule: Mutex::new(schedule),
        planned,
        counters: Mutex::default(),
        all_sent: CancellationToken::new(),
        no_new_events: CancellationToken::new(),
        no_retries: CancellationToken::new(),
        abandon_requests: CancellationToken::new(),
    });
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        workers.spawn(Arc::clone(&run).work());
    }
    let plain = if options.json { PlainLines::Off } else { PlainLines::Stderr };
    let show = show_progress(&run, Progress::start(planned, plain, PLAIN_PERIOD));
    tokio::select! {
        ended = finished(&mut workers) => ended?,
        () = run.run_shutdown(options, started, stop) => {}
        failed = show => failed?,
    }
    run.ledger.flush()?;
    let counters = lock(&run.counters).clone();
    Ok(Summary {
        header: run.header.clone(),
        not_sent: planned.map_or(0, |planned| planned - counters.events),
        duration: started.elapsed(),
        ledger: options.ledger.as_ref().map(|path| path.display().to_string()),
        counters,
    })
}

/// Rejects a ledger that `verify` could not judge.
fn check_ledger(target: &Target, options: &LoadOptions) -> Result<(), ConfigErrors> {
    let is_judged = target.record.as_ref().is_none_or(|record| record.timestamp.is_some());
    if is_judged || options.ledger.is_none() {
        return Ok(());
    }
    let why = "have no timestamp, so verify cannot tell the newest event of an id";
    Err(ConfigErrors(vec![("--ledger".to_owned(), format!("the records of {} {why}", target.source))]))
}

fn header(target: &Target, options: &LoadOptions, api_version: Option<String>) -> Header {
    let started_at = now_ms();
    let random = RandomState::new().hash_one(started_at);
    Header {
        // Unique, and no prefix of another run's name.
        run: format!("load-{started_at:x}-{:08x}", random >> 32),
        source: target.source.to_string(),
        started_at,
        workload: Workload {
            seed: options.seed.unwrap_or(random & 0xFFFF_FFFF),
            keys: options.keys,
            superseded_ppm: options.superseded,
            hostile_ppm: options.hostile,
            deletes_ppm: options.deletes,
        },
        record: target.record.clone(),
        api_version,
    }
}

async fn finished(workers: &mut JoinSet<io::Result<()>>) -> Result<(), BoxError> {
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Shows the progress. Returns only if the ledger cannot be written.
async fn show_progress(run: &Run, mut progress: Progress) -> io::Result<()> {
    let mut tick = interval(PROGRESS_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut since, mut accepted, mut rate) = (Instant::now(), 0, 0.0);
    loop {
        tick.tick().await;
        let counters = lock(&run.counters).clone();
        if since.elapsed() >= RATE_WINDOW {
            rate = (counters.accepted - accepted) as f64 / since.elapsed().as_secs_f64();
            (since, accepted) = (Instant::now(), counters.accepted);
        }
        progress.show(counters.finished(), &counters.progress(rate));
        run.ledger.flush()?;
    }
}

/// The state of a run, shared by its workers.
#[derive(Debug)]
struct Run {
    header: Header,
    client: Client,
    ledger: Ledger,
    schedule: Mutex<Schedule>,
    /// Number of events of the run, if it is limited.
    planned: Option<u64>,
    counters: Mutex<Counters>,
    /// Cancelled when all planned events were sent once.
    all_sent: CancellationToken,
    /// No new events are sent once it is cancelled.
    no_new_events: CancellationToken,
    /// No event is retried once it is cancelled.
    no_retries: CancellationToken,
    /// Requests in flight are abandoned once it is cancelled.
    abandon_requests: CancellationToken,
}

impl Run {
    /// Sends requests until the schedule ends.
    async fn work(self: Arc<Self>) -> io::Result<()> {
        while !self.no_new_events.is_cancelled() {
            let Some((events, due)) = lock(&self.schedule).next_request() else { break };
            if let Some(due) = due {
                tokio::select! {
                    biased;
                    () = self.no_new_events.cancelled() => break,
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

    /// Sends the events of one request until each has a final response, or retries have ended.
    async fn deliver(&self, mut pending: Vec<PendingEvent>, due: Instant) -> io::Result<()> {
        self.count_new(&pending);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while !pending.is_empty() {
            let (results, retry_after) = tokio::select! {
                sent = self.client.send(&pending) => sent,
                () = self.abandon_requests.cancelled() => {
                    (vec![AttemptResult::INTERRUPTED; pending.len()], None)
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
                () = self.no_retries.cancelled() => {
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
            counters.deletes += u64::from(event.deletes);
            counters.hostile += u64::from(event.is_hostile);
        }
        if self.planned == Some(counters.events) {
            self.all_sent.cancel();
        }
    }

    /// Records an attempt. Returns the event if it must be retried.
    fn apply_result(
        &self,
        mut event: PendingEvent,
        result: AttemptResult,
        due: Instant,
    ) -> io::Result<Option<PendingEvent>> {
        let AttemptResult { status, outcome, unreachable } = result;
        event.record_attempt(status, &outcome, now_ms());
        let mut counters = lock(&self.counters);
        match (status, unreachable) {
            (Some(status), _) => *counters.responses.entry(status).or_default() += 1,
            (None, Some(reason)) => {
                counters.unreachable += 1;
                counters.unreachable_reason = Some(reason);
            }
            (None, None) => counters.interrupted += 1,
        }
        if let AttemptOutcome::Accepted(_) = outcome {
            counters.latencies.add(due.elapsed());
        }
        drop(counters);
        match outcome {
            AttemptOutcome::Retryable | AttemptOutcome::Unknown => return Ok(Some(event)),
            AttemptOutcome::Rejected => self.finish(event, None, true)?,
            AttemptOutcome::Accepted(receipt) => self.finish(event, Some(receipt), true)?,
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
    async fn run_shutdown(&self, options: &LoadOptions, started: Instant, stop: &CancellationToken) {
        // With a rate, late events may still be sent during the grace period.
        let is_scheduled = options.rate.is_some();
        let late = if is_scheduled { options.grace } else { Duration::ZERO };
        let new_until = options.run_for.map(|run_for| started + run_for + late);
        let mut grace = options.grace;
        tokio::select! {
            () = at(new_until) => grace -= late,
            () = self.stalled(grace), if new_until.is_none() => grace = Duration::ZERO,
            () = self.all_sent.cancelled() => {}
            () = stop.cancelled() => {}
        }
        self.no_new_events.cancel();
        tokio::select! {
            () = sleep(grace) => {}
            () = stop.cancelled() => {}
        }
        self.no_retries.cancel();
        if stop.is_cancelled() {
            sleep(FINISH_TIMEOUT).await;
        }
        self.abandon_requests.cancel();
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

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Generates the requests of a run in order. With a rate, event `n` is due at `n / rate`,
/// independent of other responses. Without a rate, a request is due as soon as a worker is free.
#[derive(Debug)]
struct Schedule {
    events: Events,
    scheduled: u64,
    planned: Option<u64>,
    rate: Option<f64>,
    batch: u64,
    started: Instant,
}

impl Schedule {
    fn new(workload: Workload, options: &LoadOptions, started: Instant) -> Self {
        Self {
            events: Events::new(workload),
            scheduled: 0,
            planned: planned(options),
            rate: options.rate,
            batch: u64::from(options.batch),
            started,
        }
    }

    /// The events of the next request, and when to send them: `None` means at once.
    fn next_request(&mut self) -> Option<(Vec<Event>, Option<Instant>)> {
        let left = self.planned.map_or(u64::MAX, |planned| planned - self.scheduled);
        let count = self.batch.min(left);
        if count == 0 {
            return None;
        }
        let due = self.rate.map(|rate| self.started + Duration::from_secs_f64(self.scheduled as f64 / rate));
        self.scheduled += count;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Some((self.events.by_ref().take(count).collect(), due))
    }
}

/// With a rate and a duration, the events that are due before the end.
fn planned(options: &LoadOptions) -> Option<u64> {
    let scheduled = options.rate.zip(options.run_for);
    let scheduled = scheduled.map(|(rate, run_for)| (rate * run_for.as_secs_f64()).ceil() as u64);
    match (scheduled, options.events) {
        (Some(scheduled), Some(events)) => Some(scheduled.min(events)),
        (scheduled, events) => scheduled.or(events),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn schedule(options: &LoadOptions, started: Instant) -> Schedule {
        let workload = Workload { seed: 1, keys: 3, superseded_ppm: 0, hostile_ppm: 0, deletes_ppm: 0 };
        Schedule::new(workload, options, started)
    }

    fn options(rate: Option<f64>, run_for_ms: Option<u64>, events: Option<u64>) -> LoadOptions {
        let command = LoadOptions::augment_args(clap::Command::new("load"));
        let defaults = LoadOptions::from_arg_matches(&command.get_matches_from(["load"])).unwrap();
        LoadOptions { rate, run_for: run_for_ms.map(Duration::from_millis), events, ..defaults }
    }

    #[test]
    fn a_schedule_has_a_due_time_for_each_request_and_ends() {
        let started = Instant::now();
        let options = LoadOptions { batch: 10, ..options(Some(100.0), Some(250), None) };
        let mut schedule = schedule(&options, started);
        let mut next = || schedule.next_request().map(|(events, due)| (events.len(), due));
        for (events, ms) in [(10, 0), (10, 100), (5, 200)] {
            assert_eq!(next(), Some((events, Some(started + Duration::from_millis(ms)))));
        }
        assert_eq!(next(), None);
    }

    #[test]
    fn the_number_of_events_is_limited_by_the_options_and_the_duration() {
        let now = Instant::now();
        for (options, planned) in [
            (options(None, None, Some(7)), Some(7)),
            (options(Some(10.0), Some(1_000), Some(7)), Some(7)),
            (options(Some(10.0), Some(1_000), Some(70)), Some(10)),
            (options(None, Some(1_000), None), None),
            (options(Some(10.0), None, None), None),
        ] {
            assert_eq!(schedule(&options, now).planned, planned, "{options:?}");
        }
    }
}
