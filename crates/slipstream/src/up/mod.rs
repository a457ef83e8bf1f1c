//! `slipstream up`: runs the whole pipeline on this machine, with real servers, until Ctrl-C. At
//! the end it prints an account of all records; the exit code is 0 only if the account balances.

mod account;
pub mod processes;
mod sources;
mod stack;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ::sources::SOURCES_FILE;
use account::{NextOffsets, Summary, TopicCount, TopicCounter};
use consumer::mongo::StoreConfig;
use devservers::Simulator;
use kafka::BoxError;
use loadtest::{PlainLines, Progress};
use processes::{Counts, Processes, StartupWait};
use service::config::{Environment, environment_value as value};
use stack::{Addresses, LocalStack, configs, poller_config, tool_variables};

use crate::cli::UpOptions;
use crate::output::write_progress;

/// The folder for data and logs, in the current directory.
const FOLDER: &str = ".slipstream";
/// Maximum time for the consumer to finish the waiting records after poller and producer stopped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A running pipeline.
struct Run {
    stack: LocalStack,
    processes: Processes,
    store: StoreConfig,
    /// One for each topic.
    topics: Vec<CountedTopic>,
    left_over: u64,
}

/// A topic and the group's offsets at the start.
#[derive(Clone)]
struct CountedTopic {
    counter: TopicCounter,
    start: NextOffsets,
}

/// Runs until a signal, or for the time in the options.
pub async fn up(options: UpOptions, mut environment: Environment) -> Result<ExitCode, BoxError> {
    if let Some(file) = &options.sources {
        environment.retain(|(name, _)| name != SOURCES_FILE);
        environment.push((SOURCES_FILE.to_owned(), file.display().to_string()));
    }
    // The faults of the file stand alone, not once for each process.
    if let Err(faults) = sources::load(&environment) {
        crate::sources::print_faults(&faults);
        return Ok(ExitCode::from(2));
    }
    let stop = service::tasks::stop_token()?;
    service::tasks::stop_on_hangup(&stop)?;
    let mut addresses = initial_addresses(&options, &environment);
    // A wrong variable is reported before anything is deleted, downloaded or started.
    configs(&environment, &addresses)?;
    let folder = Path::new(FOLDER);
    let _lock = devservers::FolderLock::take(folder)?;
    if options.fresh {
        delete_data(folder)?;
    }
    let log = std::fs::File::create(folder.join("slipstream.log"))?;
    service::cli::start_logs_in_file(log, value(&environment, "RUST_LOG").unwrap_or("info"));
    let mut run = tokio::select! {
        run = start(&options, &environment, folder, &mut addresses) => run?,
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    // The simulator runs only if the file's variables may name it.
    let file = sources::load(&stack::file_variables(&environment, &addresses))?;
    announce(&run, &environment, &addresses, file.as_ref());
    if let Some(file) = file.as_ref().filter(|_| run.stack.simulator.is_some()) {
        let producer = poller_config(&environment, &addresses, run.processes.producer_address)?;
        sources::send_examples(file, &producer).await;
    }
    let outcome = tokio::select! {
        () = show_status(run.processes.counts.clone(), run.left_over) => Ok(()),
        () = stop.cancelled() => Ok(()),
        () = run_time(options.run_for) => Ok(()),
        failure = run.processes.ended() => Err(failure),
    };
    write_progress("stopping");
    let account = stop_and_count(&mut run).await;
    let documents = match &file {
        Some(file) => sources::count_documents(file, &run.store).await,
        None => Vec::new(),
    };
    run.stack.stop().await;
    outcome?;
    let summary = account?;
    write_progress(&summary.to_string());
    documents.iter().for_each(|line| write_progress(line));
    Ok(if summary.balances() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Deletes the servers' data, but no other files in the folder.
fn delete_data(folder: &Path) -> std::io::Result<()> {
    for data in ["kafka", "mongodb"].map(|name| folder.join(name)).iter().filter(|data| data.exists()) {
        std::fs::remove_dir_all(data)?;
    }
    Ok(())
}

/// The addresses before the start: the user's, with placeholders for unknown ones.
fn initial_addresses(options: &UpOptions, environment: &[(String, String)]) -> Addresses {
    Addresses {
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
    addresses: &mut Addresses,
) -> Result<Run, BoxError> {
    let wait = StartupWait::start();
    let (_, consumer) = configs(environment, addresses)?;
    let is_named = |name: &str| value(environment, name).is_some();
    // Named servers are waited for while the others start.
    let (stack, (), ()) = tokio::try_join!(
        LocalStack::start(environment, options, folder, devservers::Progress::new(write_progress)),
        async { if is_named("KAFKA_BROKER") { wait.kafka(&consumer).await } else { Ok(()) } },
        async {
            if is_named("MONGODB_URI") {
                wait.mongodb(&consumer).await;
            }
            Ok(())
        },
    )?;
    (addresses.kafka, addresses.mongodb) = (stack.kafka.clone(), stack.mongodb.clone());
    addresses.adsbdb = stack.simulator.as_ref().map(Simulator::base_url);
    let (producer, consumer) = configs(environment, addresses)?;
    let file = sources::load(&stack::file_variables(environment, addresses))?;
    let names = sources::topics(&producer.topic.name, file.as_ref());
    let counters: Vec<_> = names.iter().map(|name| TopicCounter::new(&consumer, name)).collect();
    let kafka_wait = wait.clone();
    let (topics, left_over) = tokio::task::spawn_blocking(move || {
        let (mut topics, mut left_over) = (Vec::new(), 0);
        for counter in counters {
            let wait = kafka_wait.clone();
            let initial = counter.without_deadline(move |error| wait.report("kafka", &error.to_string()));
            let start = initial.committed()?;
            left_over += initial.count(&start, |_, _| true)?.records;
            topics.push(CountedTopic { counter, start });
        }
        Ok::<_, BoxError>((topics, left_over))
    })
    .await??;
    let store = consumer.store.clone();
    let mut processes = Processes::start(producer, consumer).await?;
    processes.ready(|cause| wait.report("processes", cause)).await?;
    processes.start_poller(environment, addresses).await?;
    Ok(Run { stack, processes, store, topics, left_over })
}

fn announce(
    run: &Run,
    environment: &[(String, String)],
    addresses: &Addresses,
    file: Option<&::sources::Sources>,
) {
    let (producer, consumer) = (run.processes.producer_address, run.processes.consumer_address);
    write_progress("slipstream is up");
    run.stack.lines.iter().for_each(|line| write_progress(&format!("  {line}")));
    write_progress(&format!("  producer  http://{producer}/health"));
    write_progress(&format!("  consumer  http://{consumer}/health"));
    if let Some(file) = file {
        sources::announce(file, environment, addresses);
    }
    let pulled = file.and_then(|file| file.iter().find(|source| source.pull.is_some()));
    write_progress(&match (file, pulled) {
        (Some(_), Some(source)) => {
            format!("  try       curl -X POST http://{producer}/ingest/{}", source.name)
        }
        (Some(_), None) => format!("  try       http://{producer}/docs"),
        (None, _) => format!(
            "  try       curl -X POST http://{producer}/ingest -H 'Content-Type: application/json' \
         -d '{{\"source\":\"adsbdb\",\"payload\":{{\"message\":\"Hello\",\"value\":42}}}}'"
        ),
    });
    let variables = tool_variables(environment, addresses, producer, consumer);
    write_progress(&format!("  tools     export {variables}"));
    write_progress(&format!("  stop      Ctrl-C; logs in {FOLDER}/slipstream.log"));
}

/// Shows the status: a live line on a terminal, elsewhere a plain line every 5 s.
async fn show_status(counts: Counts, left_over: u64) {
    let mut progress = Progress::start(None, PlainLines::Stdout, Duration::ZERO);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        let consumed = counts.consumed.snapshot();
        let accepted = counts.produced.accepted();
        let dead_letters = consumed.dead_lettered + counts.produced.pulled_dead_letters();
        let stored = consumed.inserted + consumed.updated + consumed.unchanged;
        // The consumer knows no lag before its first statistics.
        let lag = consumed.lag.unwrap_or(left_over);
        let line = format!("accepted {accepted}  stored {stored}  lag {lag}  dead letters {dead_letters}");
        progress.show(0, &line);
    }
}

async fn run_time(run_for: Option<Duration>) {
    match run_for {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Stops the processes in the order of the data flow, then counts the records.
async fn stop_and_count(run: &mut Run) -> Result<Summary, BoxError> {
    let intake = run.processes.stop_intake().await;
    let accepted = run.processes.counts.produced.accepted();
    drain(run, accepted).await;
    let consumer = run.processes.stop_consumer().await;
    intake.and(consumer)?;
    let (topics, counters) = (run.topics.clone(), run.processes.counts.consumed.clone());
    let consumed = counters.snapshot();
    let count = move || {
        let mut all = TopicCount::default();
        for CountedTopic { counter, start } in &topics {
            let committed = counter.committed()?;
            let is_committed =
                |partition, offset| committed.get(&partition).is_some_and(|next| offset < *next);
            // The next run reads finished but uncommitted records again; they do not count as
            // waiting.
            let is_finished = |partition, offset| counters.has_finished(&counter.topic, partition, offset);
            let count = counter.count(start, |partition, offset| {
                !is_committed(partition, offset) && !is_finished(partition, offset)
            })?;
            all.records += count.records;
            all.waiting += count.waiting;
        }
        Ok::<_, BoxError>(all)
    };
    let topic = tokio::task::spawn_blocking(count).await??;
    let pulled_dead_letters = run.processes.counts.produced.pulled_dead_letters();
    Ok(Summary { topic, left_over: run.left_over, accepted, pulled_dead_letters, consumed })
}

/// Waits until the consumer has finished the expected number of records, at most for
/// [`DRAIN_TIMEOUT`]: a server may be unavailable.
async fn drain(run: &Run, accepted: u64) {
    let all_finished = async {
        loop {
            let consumed = run.processes.counts.consumed.snapshot();
            let finished = consumed.finished() - consumed.repeated;
            if finished >= accepted + run.left_over && consumed.finished() == consumed.read {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, all_finished).await.is_err() {
        write_progress("some records are unfinished; the next run continues with them");
    }
}
