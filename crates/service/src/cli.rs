//! The command line of a process: it reads the configuration, starts the logs and runs until a
//! signal.
//!
//! Exit codes: 0 for a clean end, 1 for a failure, 2 for a wrong configuration or command line, 130
//! for a second signal.

use std::error::Error;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{COMMON, ConfigErrors, ConfigReader, Kind, Variable};
use crate::environment::{self, Environment};
use crate::healthcheck::{Probe, TlsConnector};
use crate::logging::{self, LogFormat};
use crate::{parse, process, signals};

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

crate::settings! {
    /// The variables of [`COMMON`].
    struct CommonSettings {
        /// Format of the log lines.
        log_format: Kind::Optional(""),
        /// Filter of the log lines.
        rust_log: Kind::Default("info"),
    }
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
        let (environment, mut errors) = environment::read(&[self.variables, COMMON]);
        if arguments == ["healthcheck"] {
            let address = self.listen_addr(&environment);
            return match address.and_then(|address| Probe::new(address, tls(&environment)).run()) {
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
            return print("the configuration is right");
        }
        logging::start(format, &filter);
        self.run(config, run)
    }

    /// The address that the process listens on.
    ///
    /// `healthcheck` reads no other variable. The process may run well although another variable, or
    /// a file that it names, is no longer valid.
    fn listen_addr(&self, environment: &[(String, String)]) -> Result<SocketAddr, String> {
        let variable = self.variables.iter().find(|variable| variable.field == "listen_addr");
        let default = variable.and_then(|variable| match variable.kind {
            Kind::Default(address) => Some(address),
            _ => None,
        });
        let text = environment::value(environment, "LISTEN_ADDR").or(default).unwrap_or_default();
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
            let stop = signals::stop_token()?;
            let open_files = process::raise_open_files_limit();
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
    let (settings, mut check) = ConfigReader::read::<CommonSettings>(CommonSettings::VARIABLES, environment);
    let format = check.optional("log_format", settings.log_format.as_ref(), LogFormat::parse);
    let filter = check.value("rust_log", settings.rust_log.as_ref(), |text| {
        match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("is not a filter such as info or warn,consumer=debug: {error}")),
        }
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
