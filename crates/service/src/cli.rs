//! The command line and the life of a process: read the configuration whole, start logs, run until a signal.
//!
//! Exit codes: 0 a clean end, 1 a failure, 2 a wrong configuration or command line, 130 a second signal.

use std::error::Error;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{COMMON, ConfigErrors, ConfigReader, Kind, Variable, parse};
use crate::environment::{self, Environment};
use crate::healthcheck::{Probe, TlsConnector};
use crate::logging::{self, LogFormat};

/// How a run ended: its exit code, or why it could not go on.
pub type Outcome = Result<ExitCode, Box<dyn Error + Send + Sync>>;

/// A process, as its `main` describes it.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The binary's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// One sentence for `--help`.
    pub about: &'static str,
    /// Its environment variables.
    pub variables: &'static [Variable],
}

crate::settings! {
    /// What every process reads besides its own variables; see `COMMON`.
    struct CommonSettings {
        /// Form of the log lines.
        log_format: Kind::Optional(""),
        /// Filter of the log lines.
        rust_log: Kind::Default("info"),
    }
}

impl Program {
    /// Does what the command line says; without arguments, runs.
    ///
    /// `secure` is the client's side of TLS for `healthcheck`, where the process speaks that.
    pub fn main<C, F>(
        &self,
        read: impl FnOnce(Environment) -> Result<C, ConfigErrors>,
        secure: impl FnOnce(&[(String, String)]) -> Option<TlsConnector>,
        run: impl FnOnce(C, CancellationToken) -> F,
    ) -> ExitCode
    where
        F: Future<Output = Outcome>,
    {
        let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
        let arguments: Vec<String> = arguments.collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments.as_slice() {
            ["--help" | "-h"] => return say(&self.help()),
            ["--version" | "-V"] => return say(&format!("{} {}", self.name, self.version)),
            [] | ["--check-config" | "healthcheck"] => {}
            _ => {
                return complain(
                    &format!("{}: unknown arguments {arguments:?}\n\n{}", self.name, self.help()),
                    2,
                );
            }
        }
        let (environment, mut faults) = environment::read(&[self.variables, COMMON]);
        if arguments == ["healthcheck"] {
            let asked = self.listen_addr(&environment);
            return match asked.and_then(|address| Probe::new(address, secure(&environment)).ask()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => complain(&why, 1),
            };
        }
        let (config, (format, filter)) = match (read(environment.clone()), read_common(environment)) {
            (Ok(config), Ok(common)) if faults.0.is_empty() => (config, common),
            (config, common) => {
                config.err().into_iter().chain(common.err()).for_each(|more| faults.join(more));
                return complain(&format!("{}: {faults}", self.name), 2);
            }
        };
        if arguments == ["--check-config"] {
            return say("the configuration is right");
        }
        logging::start(format, &filter);
        self.run(config, run)
    }

    /// Where the process listens. Nothing else is read for `healthcheck`: it may run well although one of its other
    /// variables, or a file that one names, would not do any more.
    fn listen_addr(&self, environment: &[(String, String)]) -> Result<SocketAddr, String> {
        let own = self.variables.iter().find(|variable| variable.field == "listen_addr");
        let default = own.and_then(|variable| match variable.kind {
            Kind::Default(address) => Some(address),
            _ => None,
        });
        let text = environment::value(environment, "LISTEN_ADDR").or(default).unwrap_or_default();
        parse::address(text).map_err(|problem| format!("LISTEN_ADDR: {text:?} {problem}"))
    }

    fn run<C, F: Future<Output = Outcome>>(
        &self,
        config: C,
        run: impl FnOnce(C, CancellationToken) -> F,
    ) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return complain(&format!("{}: no runtime: {error}", self.name), 1),
        };
        let outcome = runtime.block_on(async {
            let stop = crate::signals::stop_token()?;
            let open_files = crate::process::raise_open_files_limit();
            tracing::info!(version = self.version, open_files, "starting");
            run(config, stop).await
        });
        // What still blocks a thread (a name lookup, say) must not hold up the end.
        runtime.shutdown_timeout(Duration::from_millis(500));
        match outcome {
            Ok(code) => {
                tracing::info!("stopped");
                code
            }
            Err(error) => {
                tracing::error!(error = %error, "failed");
                complain(&format!("{}: {error}", self.name), 1)
            }
        }
    }

    /// The text of `--help`.
    pub fn help(&self) -> String {
        let mut text = format!(
            "{about}\n\nUsage: {name} [--help | --version | --check-config | healthcheck]\n\n  --check-config  read \
             the configuration, name every fault, and exit with 0 or 2\n  healthcheck     ask the running process' own \
             /livez, and exit with 0 or 1\n\nEnvironment (an empty value counts as unset):\n",
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

fn say(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}
