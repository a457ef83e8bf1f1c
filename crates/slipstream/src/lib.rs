//! The operator's command: `up`, `check`, `trace`, `load`, `verify`, `dead-letters`, `dedupe`,
//! `sources` and `simulate`. Each command has a module; `cli` parses the command line.

mod check;
mod cli;
mod dead_letters;
mod dedupe;
mod load;
mod output;
#[cfg(test)]
mod shared_variables;
mod sources;
mod trace;
mod up;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cli::SimulateOptions;
use devservers::Simulator;
use kafka::BoxError;
use service::config::COMMON;
use service::config::Environment;
use service::{ConfigErrors, Kind, Variable};

/// Runs the command. Exit codes: 0 success, 1 failure, 2 a wrong command line or configuration, 130
/// a second signal.
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report_error(&error.into()),
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            cli::Command::Up(options) => up::up(options, environment()?).await,
            cli::Command::Check(options) => check::check(options, environment()?).await,
            cli::Command::Trace(options) => trace::trace(options, environment()?).await,
            cli::Command::Load(options) => load::load(options, environment()?).await,
            cli::Command::Verify(options) => load::verify(options, environment()?).await,
            cli::Command::DeadLetters(options) => dead_letters::run(options.command, environment()?).await,
            cli::Command::Dedupe(options) => dedupe::dedupe(options, environment()?).await,
            cli::Command::Sources(options) => sources::run(options.command, environment()?).await,
            cli::Command::Simulate(options) => simulate(options).await,
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome.unwrap_or_else(|error| report_error(&error))
}

/// The variables of `up` besides those of the processes.
const UP_VARIABLES: &[Variable] = &[Variable {
    field: "slipstream_broker",
    doc: "The broker that `up` starts: `apache-kafka` or `tansu`.",
    kind: Kind::Optional("Apache Kafka where there is Java, else tansu"),
}];

/// Reads the environment.
fn environment() -> Result<Environment, ConfigErrors> {
    let variables = [
        producer::Settings::VARIABLES,
        consumer::Settings::VARIABLES,
        poller::Settings::VARIABLES,
        check::Settings::VARIABLES,
        dead_letters::Settings::VARIABLES,
        COMMON,
        UP_VARIABLES,
    ];
    match service::config::read_environment(&variables) {
        (environment, faults) if faults.0.is_empty() => Ok(environment),
        (_, faults) => Err(faults),
    }
}

fn report_error(error: &BoxError) -> ExitCode {
    _ = writeln!(std::io::stderr(), "slipstream: {error}");
    let is_configuration_error = error.downcast_ref::<ConfigErrors>().is_some()
        || matches!(error.downcast_ref(), Some(devservers::ServerError::Setting(_)));
    ExitCode::from(if is_configuration_error { 2 } else { 1 })
}

/// Runs the simulator until a signal, or checks the health of a running one.
async fn simulate(options: SimulateOptions) -> Result<ExitCode, BoxError> {
    if options.healthcheck {
        return Ok(if is_alive(options.listen).await { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let stop = service::tasks::stop_token()?;
    let simulator = Simulator::start(options.listen).await?;
    output::write_line(format_args!("ADSBDB simulator on {}/v0/aircraft/random", simulator.base_url()))?;
    stop.cancelled().await;
    simulator.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn is_alive(listen: SocketAddr) -> bool {
    let ip = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    let url = format!("http://{}/livez", SocketAddr::new(ip, listen.port()));
    check::http::get(&url, Duration::from_secs(3)).await.is_ok()
}
