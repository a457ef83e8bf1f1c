//! The load generator: sends events to a producer as a good client does, and writes each outcome to
//! a ledger. An event without a final response is retried with the same id and the same body until
//! it has one, or until the run ends. [`crate::verify`] reads the ledger.

mod client;
mod latency;
mod pending_event;
mod response;
mod run;
mod schedule;
mod summary;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::Source;
use kafka::BoxError;
use service::lock::lock;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Header, Ledger};
use crate::options::LoadOptions;
use crate::progress::{PlainLines, Progress};
use crate::workload::Workload;
use client::Client;
use run::{Run, ShutdownPhases, now_ms};
use schedule::Schedule;
pub use summary::{Counters, Summary};

/// Period of the progress line and of the ledger's flush.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);
/// Minimum time over which the progress line computes the rate.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// Where events are sent, and their source.
#[derive(Debug, Clone)]
pub struct Target {
    /// The producer's address, call timeout, API key and certificates.
    pub producer: poller::Config,
    /// Source of the events.
    pub source: Source,
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
    service::process::raise_open_files_limit();
    let client = Client::new(&target.producer, options.batch > 1)?;
    let header = header(target, options, client.api_version().await);
    let ledger = Ledger::create(options.ledger.as_deref(), &header)?;
    let started = Instant::now();
    let schedule = Schedule::new(header.workload, options, started);
    let planned = schedule.planned();
    let run = Arc::new(Run {
        header,
        client,
        ledger,
        schedule: Mutex::new(schedule),
        planned,
        counters: Mutex::default(),
        shutdown: ShutdownPhases::default(),
    });
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        workers.spawn(Arc::clone(&run).work());
    }
    let plain = if options.json { PlainLines::Off } else { PlainLines::Stderr };
    let show = show_progress(&run, Progress::start(planned, plain));
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
        },
        api_version,
    }
}

async fn finished(workers: &mut JoinSet<std::io::Result<()>>) -> Result<(), BoxError> {
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Shows the progress. Returns only if the ledger cannot be written.
async fn show_progress(run: &Run, mut progress: Progress) -> std::io::Result<()> {
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
