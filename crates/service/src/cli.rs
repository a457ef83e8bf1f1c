//! The command line of a process: it reads the configuration, starts the logs and runs until a
//! signal.
//!
//! Exit codes: 0 for a clean end, 1 for a failure, 2 for a wrong configuration or command line, 130
//! for a second signal.

use std::error::Error;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{self, COMMON, CommonSettings, ConfigErrors, ConfigReader, Environment, Kind, Variable};
use crate::health::{self, TlsConnector};
use crate::{parse, tasks};

/// The result of a run: an exit code, or the error that ended it.
pub type RunResult = Result<ExitCode, Box<dyn Error + Send + Sync>>;

/// The description of a process for its `main`.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Name of the binary.
    pub name: &'static str,
    /// Version of the binary.
    pub version: &'static str,
    /// First sentence of `--help`.
    pub about: &'static str,
    /// Environment variables of the process.
    pub variables: &'static [Variable],
}

impl Program {
    /// Runs the command of the command line. Without arguments, it runs the process.
    ///
    /// `tls` returns the TLS client of `healthcheck` if the process serves HTTPS.
    pub fn main<C, F>(
        &self,
        read: impl FnOnce(Environment) -> Result<C, ConfigErrors>,
        tls: impl FnOnce(&[(String, String)]) -> Option<TlsConnector>,
        run: impl FnOnce(C, CancellationToken) -> F,
    ) -> ExitCode
    where
        F: Future<Output = RunResult>,
    {
        let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
        let arguments: Vec<String> = arguments.collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments.as_slice() {
            ["--help" | "-h"] => return print(&self.help()),
            ["--version" | "-V"] => return print(&format!("{} {}", self.name, self.version)),
            [] | ["--check-config" | "healthcheck"] => {}
            _ => {
                return print_error(
                    &format!("{}: unknown arguments {arguments:?}\n\n{}", self.name, self.help()),
                    2,
                );
            }
        }
        let (environment, mut errors) = config::read_environment(&[self.variables, COMMON]);
        if arguments == ["healthcheck"] {
            let address = self.listen_addr(&environment);
            return match address.and_then(|address| health::probe(address, tls(&environment))) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => print_error(&error, 1),
            };
        }
        let (config, (format, filter)) = match (read(environment.clone()), read_common(environment)) {
            (Ok(config), Ok(common)) if errors.0.is_empty() => (config, common),
            (config, common) => {
                config.err().into_iter().chain(common.err()).for_each(|more| errors.merge(more));
                return print_error(&format!("{}: {errors}", self.name), 2);
            }
        };
        if arguments == ["--check-config"] {
            return print("the configuration is valid");
        }
        start_logs(format, &filter);
        self.run(config, run)
    }

    /// The address that the process listens on.
    ///
    /// `healthcheck` reads no other variable. The process may run well although another variable,
    /// or a file that it names, is no longer valid.
    fn listen_addr(&self, environment: &[(String, String)]) -> Result<SocketAddr, String> {
        let variable = self.variables.iter().find(|variable| variable.field == "listen_addr");
        let default = variable.and_then(|variable| match variable.kind {
            Kind::Default(address) => Some(address),
            _ => None,
        });
        let text = config::environment_value(environment, "LISTEN_ADDR").or(default).unwrap_or_default();
        parse::address(text).map_err(|problem| format!("LISTEN_ADDR: {text:?} {problem}"))
    }

    fn run<C, F: Future<Output = RunResult>>(
        &self,
        config: C,
        run: impl FnOnce(C, CancellationToken) -> F,
    ) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                return print_error(&format!("{}: cannot start the runtime: {error}", self.name), 1);
            }
        };
        let result = runtime.block_on(async {
            let stop = tasks::stop_token()?;
            let open_files = raise_open_files_limit();
            tracing::info!(version = self.version, open_files, "starting");
            run(config, stop).await
        });
        // A thread that still blocks, for example in a name lookup, must not delay the exit.
        runtime.shutdown_timeout(Duration::from_millis(500));
        match result {
            Ok(code) => {
                tracing::info!("stopped");
                code
            }
            Err(error) => {
                tracing::error!(error = %error, "failed");
                print_error(&format!("{}: {error}", self.name), 1)
            }
        }
    }

    /// Text of `--help`.
    pub fn help(&self) -> String {
        let mut text = format!(
            "{about}\n\nUsage: {name} [--help | --version | --check-config | healthcheck]\n\n  --check-config  check \
             the configuration, print every error, and exit with 0 or 2\n  healthcheck     request /livez of the running \
             process, and exit with 0 or 1\n\nEnvironment (an empty value counts as unset):\n",
            about = self.about,
            name = self.name
        );
        for variable in self.variables.iter().chain(COMMON) {
            let name = variable.name();
            let or_file =
                if variable.kind.is_secret() { format!(" (or {name}_FILE)") } else { String::new() };
            let doc = variable.doc.trim().replace("  ", " ");
            text.push_str(&format!("\n  {name}{or_file} [{}]\n      {doc}\n", variable.kind.default_text()));
        }
        text
    }
}

fn read_common(environment: Environment) -> Result<(Option<LogFormat>, String), ConfigErrors> {
    let (settings, mut check) = ConfigReader::read::<CommonSettings>(COMMON, environment);
    let format = check.optional("log_format", settings.log_format.as_ref(), LogFormat::parse);
    let filter =
        check.value("rust_log", settings.rust_log.as_ref(), |text| match text.parse::<EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("is not a filter such as info or warn,consumer=debug: {error}")),
        });
    let common = format.zip(filter);
    check.finish(common)
}

fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn print_error(text: &str, code: u8) -> ExitCode {
    _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

impl LogFormat {
    /// Parses LOG_FORMAT.
    ///
    /// # Errors
    /// `text` is neither `json` nor `text`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("is neither json nor text".into()),
        }
    }
}

/// Starts logging on standard output. Only the first call in a process has an effect.
///
/// Without `format`, a terminal gets text and anything else gets JSON.
fn start_logs(format: Option<LogFormat>, filter: &str) {
    let builder = tracing_subscriber::fmt().with_env_filter(without_libraries(filter));
    let text = format.map_or_else(|| std::io::stdout().is_terminal(), |format| format == LogFormat::Text);
    _ = if text { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}

/// Starts logging as text into `file`, for a command that uses standard output itself.
pub fn start_logs_in_file(file: std::fs::File, filter: &str) {
    let builder = tracing_subscriber::fmt().with_env_filter(without_libraries(filter)).with_ansi(false);
    _ = builder.with_writer(std::sync::Mutex::new(file)).try_init();
}

/// Switches off the log lines of client libraries that `filter` does not name. They would log
/// each outage many times.
fn without_libraries(filter: &str) -> EnvFilter {
    let switched_off =
        ["rdkafka", "librdkafka", "hyper_util", "mongodb"].map(|name| match filter.contains(name) {
            true => String::new(),
            false => format!(",{name}=off"),
        });
    EnvFilter::builder().parse_lossy(format!("{filter}{}", switched_off.concat()))
}

/// Raises the soft limit of open files to the hard limit. Returns the number of files, sockets
/// included, that may be open now.
///
/// Most systems set the soft limit for programs that use `select`. Slipstream does not use it.
pub fn raise_open_files_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                tracing::warn!(%error, soft, hard, "limit of open files cannot be raised");
                soft
            }
        },
        Ok((soft, _)) => soft,
        // Every supported system has this limit.
        Err(_) => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_the_limit_sets_the_soft_limit_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        assert_eq!(raise_open_files_limit(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
        assert_eq!(raise_open_files_limit(), hard);
    }
}
