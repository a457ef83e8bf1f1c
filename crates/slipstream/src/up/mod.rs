//! `slipstream up`: the whole pipeline on this machine, on real servers, until Ctrl-C. At the end it accounts for
//! every record; the exit code is 0 only if the account balances.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use service::environment::{Environment, value};

use crate::cli::UpOptions;
use crate::stdout;
use count::{Positions, Reading};
use environment::{Places, configs, for_tools};
use house::House;
use kafka::BoxError;
use processes::{Counts, Processes};
use status::{Numbers, StatusLine};
use summary::{Finished, Summary};
use waits::Waits;

pub mod count;
pub mod environment;
pub mod house;
pub mod processes;
pub mod status;
pub mod summary;
mod waits;

/// Where data and logs of `up` stay between runs, in the current directory.
const FOLDER: &str = ".slipstream";
/// How long the consumer may go on after the intake has stopped, to finish what waits.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A run that is up.
struct Run {
    house: House,
    processes: Processes,
    reading: Reading,
    start: Positions,
    left_over: u64,
}

/// Runs until a signal or for the time that the options say.
///
/// # Errors
/// A server cannot be had, a configuration is wrong, or a process ended by itself.
pub async fn up(options: UpOptions, environment: Environment) -> Result<ExitCode, BoxError> {
    let stop = service::signals::stop_token()?;
    service::signals::stop_on_hangup(&stop)?;
    let mut places = first_places(&options, &environment);
    // A wrong variable is told before anything is emptied, fetched or started.
    configs(&environment, &places)?;
    let folder = Path::new(FOLDER);
    let _one_run_at_a_time = devservers::FolderLock::take(folder)?;
    if options.fresh {
        empty(folder)?;
    }
    let log = std::fs::File::create(folder.join("slipstream.log"))?;
    service::logging::start_in_file(log, value(&environment, "RUST_LOG").unwrap_or("info"));
    let mut run = tokio::select! {
        run = start(&options, &environment, folder, &mut places) => run?,
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    announce(
        &run,
        &for_tools(&environment, &places, run.processes.producer_address, run.processes.consumer_address),
    );
    let outcome = tokio::select! {
        () = watch(run.processes.counts(), run.left_over) => Ok(()),
        () = stop.cancelled() => Ok(()),
        () = time_is_up(options.run_for) => Ok(()),
        failure = run.processes.ended() => Err(failure),
    };
    say("stopping");
    let account = finish(&mut run).await;
    run.house.stop().await;
    outcome?;
    let summary = account?;
    say(&summary.to_string());
    Ok(if summary.balances() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Removes the servers' data, and nothing else that a user may have put beside it.
fn empty(folder: &Path) -> std::io::Result<()> {
    for data in ["kafka", "mongodb"].map(|name| folder.join(name)).iter().filter(|data| data.exists()) {
        std::fs::remove_dir_all(data)?;
    }
    Ok(())
}

/// Before anything is started: what the user says, with stand-ins for what is not known yet.
fn first_places(options: &UpOptions, environment: &[(String, String)]) -> Places {
    Places {
        kafka: value(environment, "KAFKA_BROKER").unwrap_or("127.0.0.1:9092").to_owned(),
        mongodb: value(environment, "MONGODB_URI").unwrap_or("mongodb://127.0.0.1:27017").to_owned(),
        adsbdb: None,
        producer: ([127, 0, 0, 1], options.port).into(),
        poll_interval: options.poll_interval,
    }
}

async fn start(
    options: &UpOptions,
    environment: &[(String, String)],
    folder: &Path,
    places: &mut Places,
) -> Result<Run, BoxError> {
    let waits = Waits::start();
    let early = configs(environment, places)?.consumer;
    let is_named = |name: &str| value(environment, name).is_some();
    // Servers that are named are waited for from the first moment on.
    let (house, (), ()) = tokio::try_join!(
        House::start(environment, options, folder, devservers::Progress::new(say)),
        async { if is_named("KAFKA_BROKER") { waits.kafka(&early).await } else { Ok(()) } },
        async {
            if is_named("MONGODB_URI") {
                waits.mongodb(&early).await;
            }
            Ok(())
        },
    )?;
    (places.kafka, places.mongodb) = (house.kafka.clone(), house.mongodb.clone());
    places.adsbdb = house.adsbdb();
    let configs = configs(environment, places)?;
    let reading = Reading::of(&configs.consumer, &configs.producer.topic.name);
    let told = waits.clone();
    let before = reading.wait_for_ever(move |why| told.tell("kafka", &why.to_string()));
    let (start, left_over) = tokio::task::spawn_blocking(move || {
        let start = before.committed()?;
        let left_over = before.count(&start, |_, _| true)?.records;
        Ok::<_, BoxError>((start, left_over))
    })
    .await??;
    let mut processes = Processes::start(configs).await?;
    processes.ready(|why| waits.tell("processes", why)).await?;
    processes.start_poller(environment, places).await?;
    Ok(Run { house, processes, reading, start, left_over })
}

fn announce(run: &Run, variables: &str) {
    let (producer, consumer) = (run.processes.producer_address, run.processes.consumer_address);
    say("slipstream is up");
    run.house.lines.iter().for_each(|line| say(&format!("  {line}")));
    say(&format!("  producer  http://{producer}/health"));
    say(&format!("  consumer  http://{consumer}/health"));
    say(&format!(
        "  try       curl -X POST http://{producer}/ingest -H 'Content-Type: application/json' \
         -d '{{\"source\":\"adsbdb\",\"payload\":{{\"message\":\"Hello\",\"value\":42}}}}'"
    ));
    say(&format!("  tools     export {variables}"));
    say(&format!("  stop      Ctrl-C; logs in {FOLDER}/slipstream.log"));
}

async fn watch(counts: Counts, left_over: u64) {
    let mut line = StatusLine::start();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        let consumed = counts.consumed.snapshot();
        line.show(Numbers {
            accepted: counts.produced.accepted(),
            stored: consumed.inserted + consumed.updated + consumed.unchanged,
            // Until the broker has told where the partitions end.
            lag: consumed.lag.unwrap_or(left_over),
            dead_letters: consumed.dead_lettered,
        });
    }
}

async fn time_is_up(run_for: Option<Duration>) {
    match run_for {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Stops the processes in the order of the flow and counts.
async fn finish(run: &mut Run) -> Result<Summary, BoxError> {
    let intake = run.processes.stop_intake().await;
    let accepted = run.processes.counts().produced.accepted();
    drain(run, accepted).await;
    let consumer = run.processes.stop_consumer().await;
    intake.and(consumer)?;
    let (reading, start, counters) =
        (run.reading.clone(), run.start.clone(), run.processes.counts().consumed);
    let consumed = counters.snapshot();
    let count = move || {
        let committed = reading.committed()?;
        let is_committed = |partition, offset| committed.get(&partition).is_some_and(|next| offset < *next);
        // What was finished and could not be committed is read again by the next run, but it does not wait.
        let is_finished = |partition, offset| counters.has_finished(reading.topic(), partition, offset);
        reading.count(&start, |partition, offset| {
            !is_committed(partition, offset) && !is_finished(partition, offset)
        })
    };
    let topic = tokio::task::spawn_blocking(count).await??;
    let finished = Finished {
        inserted: consumed.inserted,
        updated: consumed.updated,
        unchanged: consumed.unchanged,
        superseded: consumed.superseded,
        dead_lettered: consumed.dead_lettered,
        skipped: consumed.skipped,
        repeated: consumed.repeated,
    };
    Ok(Summary { topic, left_over: run.left_over, accepted, finished })
}

/// Waits until the consumer has finished as many records as there must be, but not for ever: a server may be away.
async fn drain(run: &Run, accepted: u64) {
    let all_finished = async {
        loop {
            let consumed = run.processes.counts().consumed.snapshot();
            let finished = consumed.finished() - consumed.repeated;
            if finished >= accepted + run.left_over && consumed.finished() == consumed.read {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(DRAIN_LIMIT, all_finished).await.is_err() {
        say("some records still wait; the next run goes on with them");
    }
}

fn say(line: &str) {
    _ = stdout::write_line(line);
}
