//! Logs on standard output: one JSON object per line, or text on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
pub fn start(format: Option<LogFormat>, filter: &str) {
    let builder = tracing_subscriber::fmt().with_env_filter(without_libraries(filter));
    let text = format.map_or_else(|| std::io::stdout().is_terminal(), |format| format == LogFormat::Text);
    _ = if text { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}

/// Starts logging as text into `file`, for a command that uses standard output itself.
pub fn start_in_file(file: std::fs::File, filter: &str) {
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
