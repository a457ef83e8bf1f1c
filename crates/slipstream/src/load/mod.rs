//! `slipstream load`: sends events to a producer, as a good client would, and writes down what it was told. An event that
//! was not answered for good is sent again, with the same id and the same body, until it is or the run is over.
//! `slipstream verify` judges by the ledger what became of them.

mod answer;
mod client;
mod config;
mod ending;
mod event;
mod json;
mod latency;
pub mod ledger;
mod options;
mod payload;
mod progress;
mod random;
mod run;
mod sending;
mod tally;
mod tickets;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use service::lock::lock;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{Failure, out};
use client::Client;
pub use config::{Config, Settings};
use ending::Ending;
pub use event::Mix;
use ledger::{Header, Ledger};
pub use options::LoadOptions;
pub use payload::Payload;
use progress::Progress;
use run::{Run, now_ms};
pub use sending::{hex, id_of};
pub use tally::{Summary, Tally};
use tickets::Tickets;

/// How often the progress is shown; the ledger reaches its file as often.
const SHOW_PERIOD: Duration = Duration::from_millis(500);

/// Sends what the command line says. The exit code is 0 if every event was answered for good and not all were refused.
///
/// # Errors
/// A wrong configuration, or a ledger that cannot be written.
pub async fn load(options: LoadOptions, environment: Vec<(String, String)>) -> Result<ExitCode, Failure> {
    let config = Config::new(options.source.clone(), &environment)?;
    let summary = run(&config, &options, &service::signals::stop_token()?).await?;
    let text = if options.json { summary.json().to_string() } else { summary.to_string() };
    out::line(text)?;
    Ok(if summary.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run, until its end or until `stop`.
///
/// # Errors
/// A ledger that exists already or cannot be written; a TLS library without certificates.
pub async fn run(
    config: &Config,
    options: &LoadOptions,
    stop: &CancellationToken,
) -> Result<Summary, Failure> {
    service::process::raise_open_files_limit();
    let client = Client::new(&config.producer, options.batch > 1)?;
    let header = header(config, options, client.api_version().await);
    let ledger = Ledger::create(options.ledger.as_deref(), &header)?;
    let started = Instant::now();
    let tickets = Tickets::new(header.mix, options, started);
    let planned = tickets.planned();
    let run = Arc::new(Run {
        header,
        client,
        ledger,
        tickets: Mutex::new(tickets),
        planned,
        tally: Mutex::default(),
        ending: Ending::default(),
    });
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        workers.spawn(Arc::clone(&run).work());
    }
    let show = show(&run, Progress::start(planned, options.json));
    tokio::select! {
        ended = finished(&mut workers) => ended?,
        () = run.watch(options, started, stop) => {}
        failed = show => failed?,
    }
    run.ledger.flush()?;
    let tally = lock(&run.tally).clone();
    Ok(Summary {
        header: run.header.clone(),
        not_sent: planned.map_or(0, |planned| planned - tally.events),
        lasted: started.elapsed(),
        ledger: options.ledger.as_ref().map(|path| path.display().to_string()),
        tally,
    })
}

fn header(config: &Config, options: &LoadOptions, api_version: Option<String>) -> Header {
    let started_at = now_ms();
    let random = RandomState::new().hash_one(started_at);
    Header {
        // No other run has the same, nor one that begins alike.
        run: format!("load-{started_at:x}-{:08x}", random >> 32),
        source: config.source.to_string(),
        started_at,
        mix: Mix {
            seed: options.seed.unwrap_or(random & 0xFFFF_FFFF),
            keys: options.keys,
            stale_ppm: options.stale,
            hostile_ppm: options.hostile,
        },
        api_version,
    }
}

async fn finished(workers: &mut JoinSet<std::io::Result<()>>) -> Result<(), Failure> {
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Shows the progress for ever, or until the ledger cannot be written.
async fn show(run: &Run, mut progress: Progress) -> std::io::Result<()> {
    let mut tick = interval(SHOW_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        progress.show(&lock(&run.tally));
        run.ledger.flush()?;
    }
}
