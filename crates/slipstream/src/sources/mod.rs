//! `slipstream sources`: checks and lists the sources file, and shows what becomes of a sample of a
//! source. Nothing is sent to Kafka or MongoDB.

mod list;
mod preview;
mod target;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::sources::{Faults, SOURCES_FILE, Secrets, Sources};
use clap::{Args, Subcommand};
use kafka::BoxError;
use serde_json::json;
use service::ConfigErrors;
use service::config::environment_value as value;
use service::plural::counted;

use crate::output;
pub use target::Config;
#[cfg(test)]
pub use target::Settings;

/// Options of `sources`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Check a sources file and print every fault as FILE:LINE:COL: path: fault.
    ///
    /// Reads the schemas and secrets that the file names. Exit code 0: no faults; 2: faults.
    Check(FileOptions),
    /// List the sources of a file: pull or push, topic, collection and keys.
    List(FileOptions),
    /// Show the envelopes and documents that become of a sample.
    ///
    /// The sample of a pull source is an answer of its API; that of a push source is one body.
    /// Sends nothing to Kafka or MongoDB. Exit code 0: each record becomes an event; 1: a record
    /// does not, or the API does not answer; 2: a wrong configuration.
    Try(TryOptions),
}

/// Options of `check` and `list`.
#[derive(Debug, Clone, Args)]
pub struct FileOptions {
    /// The sources file; the default is SOURCES_FILE.
    pub file: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `try`.
#[derive(Debug, Clone, Args)]
pub struct TryOptions {
    /// The name of the source.
    pub name: String,
    /// A file with the sample. Without it and --fetch, the sample is read from standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "fetch")]
    pub sample: Option<PathBuf>,
    /// Fetch the first page of a pull source with one GET request.
    #[arg(long)]
    pub fetch: bool,
    /// The sources file; the default is SOURCES_FILE.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Maximum number of events that are shown, and of records without an event.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub show: usize,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Runs a command.
pub async fn run(command: Command, environment: Vec<(String, String)>) -> Result<ExitCode, BoxError> {
    match command {
        Command::Check(options) => check(&options, &environment),
        Command::List(options) => {
            let file = file(options.file.as_deref(), &environment)?;
            let Some(sources) = load(&file, &environment) else { return Ok(faulty()) };
            list::list(&sources, &Config::from_environment(environment)?, options.json)
        }
        Command::Try(options) => {
            let file = file(options.file.as_deref(), &environment)?;
            let Some(sources) = load(&file, &environment) else { return Ok(faulty()) };
            let config = Config::from_environment(environment)?;
            let Some(source) = sources.get(&options.name) else {
                let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
                let problem = format!("has no source {:?}; it has {}", options.name, names.join(", "));
                return Err(ConfigErrors(vec![(file.display().to_string(), problem)]).into());
            };
            preview::try_source((source, &sources), &config, &options).await
        }
    }
}

/// The exit code of a faulty file.
fn faulty() -> ExitCode {
    ExitCode::from(2)
}

/// The file of the command line, or that of SOURCES_FILE.
fn file(option: Option<&Path>, environment: &[(String, String)]) -> Result<PathBuf, ConfigErrors> {
    let named = || value(environment, SOURCES_FILE).map(PathBuf::from);
    option.map(Path::to_owned).or_else(named).ok_or_else(|| {
        ConfigErrors(vec![(SOURCES_FILE.into(), "not set; set it, or name the file in the command".into())])
    })
}

/// Reads the file and prints its faults.
fn load(file: &Path, environment: &[(String, String)]) -> Option<Sources> {
    Sources::load(file, environment, Secrets::Read).map_err(|faults| print_faults(&faults)).ok()
}

/// Prints each fault as `FILE:LINE:COL: path: fault`.
pub fn print_faults(faults: &Faults) {
    _ = writeln!(std::io::stderr(), "{faults}");
}

fn check(options: &FileOptions, environment: &[(String, String)]) -> Result<ExitCode, BoxError> {
    let file = file(options.file.as_deref(), environment)?;
    let name = file.display().to_string();
    match Sources::load(&file, environment, Secrets::Read) {
        Ok(sources) => {
            let count = sources.iter().count();
            output::write_line(if options.json {
                json!({"file": name, "sources": count, "faults": []}).to_string()
            } else {
                format!("{name}: {}, no faults", counted(count as u64, "source"))
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            if options.json {
                let fault = |fault: &::sources::Fault| {
                    json!({
                        "line": fault.at.line,
                        "column": fault.at.column,
                        "path": fault.path,
                        "message": fault.message,
                    })
                };
                let list: Vec<_> = faults.iter().map(fault).collect();
                output::write_line(json!({"file": name, "faults": list}))?;
            } else {
                print_faults(&faults);
            }
            Ok(faulty())
        }
    }
}
