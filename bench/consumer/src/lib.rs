//! One command that measures the consumer beside others, on one machine in one run: a bare client that writes from
//! memory (the limit), the original's design, and MongoDB's sink connector for Kafka Connect.
//!
//! Guarantee: all sides get the same events on the same broker, a new database each with both indexes in place, and are
//! watched from outside by one and the same code; a side whose collection does not end as the events demand has no
//! result. `docs/benchmarks.md` says what is measured and how.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

mod bare;
mod cli;
mod collection;
mod command;
mod drain;
mod freshness;
mod machine;
mod programs;
mod report;
mod run;
mod sample;
mod sender;
mod side;
mod stage;
mod statistics;
mod topic;
mod watcher;
mod workload;

/// Why a measurement came to nothing, in words for whoever started it.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Does what the command line says; exit code 1 and the reason if any side failed.
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::from);
    let outcome = outcome.and_then(|runtime| {
        let outcome = runtime.block_on(async {
            match cli.role {
                Some(cli::Role::Bare(options)) => bare::run(&options).await,
                None => until_stopped(&cli.options).await,
            }
        });
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("bench-consumer: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// What is dropped on a signal ends its processes and removes its folder.
async fn until_stopped(options: &cli::Options) -> Result<(), Failure> {
    let stop = service::tasks::stop_token()?;
    tokio::select! {
        outcome = Box::pin(run::run(options)) => outcome,
        () = stop.cancelled() => Err("stopped by a signal".into()),
    }
}

/// One line for whoever waits; the results alone go to standard output.
fn say(line: &str) {
    _ = writeln!(std::io::stderr(), "{line}");
}
