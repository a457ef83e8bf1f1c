//! Runs the client of a package registry and reports its progress.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::log::Log;
use crate::ServerError;
use crate::child::Child;

/// Interval of progress reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Runs the command to its end. Calls `report` every second with the new lines. An error has the
/// last lines of the output.
pub(crate) async fn run(
    command: Command,
    log: &Path,
    mut report: impl FnMut(Vec<String>) + Send,
) -> Result<(), String> {
    let mut lines = Log::at_end_of(log);
    let child = Child::start(command, log).map_err(|error| error.to_string())?;
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.tick().await;
    let status = loop {
        tokio::select! {
            status = child.ended() => break status,
            _ = ticks.tick() => report(lines.new_lines()),
        }
    };
    report(lines.new_lines());
    if status.success() { Ok(()) } else { Err(format!("{status}; it said:\n{}", lines.excerpt())) }
}

/// The size of all files below a folder: the progress of a download.
pub(crate) fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = folder.read_dir() else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Converts an error of a fetch.
pub(crate) fn failed(package: &str) -> impl Fn(String) -> ServerError {
    let package = package.to_owned();
    move |reason| ServerError::Fetch { package: package.clone(), reason }
}
