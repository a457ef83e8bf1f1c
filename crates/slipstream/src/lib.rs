//! The operator's command: [`up`] runs the whole pipeline on this machine, [`simulate`] stands in for ADSBDB,
//! [`dedupe`](mod@dedupe) clears the way for a collection's unique index,
//! [`check`](mod@check) tells what is wrong with a deployment, [`trace`](mod@trace)
//! where an event is, [`dead_letters`] what could not be stored, and sends it again; [`load`](mod@load) sends events, and
//! [`verify`](mod@verify) judges what became of them.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use kafka::BoxError;
use service::config::COMMON;
use service::environment::Environment;
use service::{ConfigErrors, Kind, Variable};

pub mod check;
pub mod cli;
pub mod dead_letters;
pub mod dedupe;
pub mod http;
pub mod load;
pub mod output;
#[cfg(test)]
mod shared_variables;
pub mod simulate;
pub mod trace;
pub mod up;
pub mod verify;

/// Does what the command line says. Exit codes: 0 all is as it must be, 1 it is not, 2 a wrong command line or
/// configuration, 130 a second signal.
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into()),
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            cli::Command::Up(options) => up::up(options, environment()?).await,
            cli::Command::ConfigReader(options) => check::check(options, environment()?).await,
            cli::Command::Trace(options) => trace::trace(options, environment()?).await,
            cli::Command::Load(options) => load::load(options, environment()?).await,
            cli::Command::Verify(options) => verify::verify(options, environment()?).await,
            cli::Command::DeadLetters(options) => dead_letters::run(options.command, environment()?).await,
            cli::Command::Dedupe(options) => dedupe::dedupe(options, environment()?).await,
            cli::Command::Simulate(options) => simulate::simulate(options).await,
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    outcome.unwrap_or_else(|error| complain(&error))
}

/// What `up` reads besides the variables of the processes.
const OWN: &[Variable] = &[Variable {
    field: "slipstream_broker",
    doc: "The broker that is started: `apache-kafka` or `tansu`.",
    kind: Kind::Optional("Apache Kafka where there is Java, else tansu"),
}];

/// The environment; or which of the variables that a command reads are not UTF-8.
fn environment() -> Result<Environment, ConfigErrors> {
    let ours = [
        producer::Settings::VARIABLES,
        consumer::Settings::VARIABLES,
        poller::Settings::VARIABLES,
        check::Settings::VARIABLES,
        dead_letters::Settings::VARIABLES,
        COMMON,
        OWN,
    ];
    match service::environment::read(&ours) {
        (environment, faults) if faults.0.is_empty() => Ok(environment),
        (_, faults) => Err(faults),
    }
}

fn complain(error: &BoxError) -> ExitCode {
    _ = writeln!(std::io::stderr(), "slipstream: {error}");
    let wrong_configuration = error.downcast_ref::<ConfigErrors>().is_some()
        || matches!(error.downcast_ref(), Some(devservers::ServerError::Setting(_)));
    ExitCode::from(if wrong_configuration { 2 } else { 1 })
}
