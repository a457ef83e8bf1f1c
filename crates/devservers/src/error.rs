//! Errors of servers, grouped by what the user does about them. Each is one sentence for the user.

use std::path::{Path, PathBuf};

/// Why a server could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is missing. The sentence names what to install, or the variable for a running
    /// server.
    #[error("{0}")]
    Missing(String),
    /// A variable or an option has an invalid value.
    #[error("{0}")]
    Setting(String),
    /// A package could not be downloaded, or its hash does not match.
    #[error("{package} could not be fetched: {reason}")]
    Fetch {
        /// Name and version.
        package: String,
        /// The error of the registry's client.
        reason: String,
    },
    /// The server ended by itself.
    #[error("{server} ended by itself ({status}); from {}:\n{excerpt}", log.display())]
    Died {
        /// The name of the server.
        server: &'static str,
        /// The exit status.
        status: String,
        /// The log file.
        log: PathBuf,
        /// The most useful lines of the log.
        excerpt: String,
    },
    /// The server runs but does not respond.
    #[error("{server} did not answer within {seconds} s; from {}:\n{excerpt}", log.display())]
    Silent {
        /// The name of the server.
        server: &'static str,
        /// The timeout.
        seconds: u64,
        /// The log file.
        log: PathBuf,
        /// The most useful lines of the log.
        excerpt: String,
    },
    /// A command-line class of Apache Kafka failed.
    #[error("{class} failed: {reason}")]
    Tool {
        /// The class.
        class: String,
        /// What it wrote to standard error.
        reason: String,
    },
    /// Another process uses the data folder.
    #[error("{} is in use by another process: stop that one or choose another folder", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// An operation of the operating system failed.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// The operation, as text that a path can follow.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl ServerError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ServerError {
        let path = path.to_owned();
        move |source| ServerError::Io { doing, path, source }
    }

    /// Whether the server ended because its port was in use.
    pub(crate) fn is_port_conflict(&self) -> bool {
        let ServerError::Died { excerpt, .. } = self else { return false };
        let excerpt = excerpt.to_ascii_lowercase();
        ["address already in use", "address in use"].iter().any(|words| excerpt.contains(words))
    }
}
