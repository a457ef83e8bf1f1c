//! Logs: one JSON object a line on standard output when that is not a terminal, readable text when it is.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl LogFormat {
    /// The parser of LOG_FORMAT.
    ///
    /// # Errors
    /// Any other word.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("is neither json nor text".into()),
        }
    }
}

/// Starts logging on standard output, once a process; later calls change nothing.
pub fn start(format: Option<LogFormat>, filter: &str) {
    let builder = tracing_subscriber::fmt().with_env_filter(quiet(filter));
    let text = format.map_or_else(|| std::io::stdout().is_terminal(), |format| format == LogFormat::Text);
    _ = if text { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}

/// As [`start`], into a file, as text: for a program whose standard output belongs to its user.
pub fn start_in_file(file: std::fs::File, filter: &str) {
    let builder = tracing_subscriber::fmt().with_env_filter(quiet(filter)).with_ansi(false);
    _ = builder.with_writer(std::sync::Mutex::new(file)).try_init();
}

/// The client libraries' own lines are left out unless `filter` names them: each outage would be told many times.
fn quiet(filter: &str) -> EnvFilter {
    let quiet = ["rdkafka", "librdkafka", "hyper_util", "mongodb"].map(|name| match filter.contains(name) {
        true => String::new(),
        false => format!(",{name}=off"),
    });
    EnvFilter::builder().parse_lossy(format!("{filter}{}", quiet.concat()))
}
