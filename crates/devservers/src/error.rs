//! What can go wrong with a server, grouped by what the user does about it. Each is one sentence that can be shown as it is.

use std::path::{Path, PathBuf};

/// Why a server is not there.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// This machine lacks a program; the sentence says what to install, or which variable names a running server.
    #[error("{0}")]
    Missing(String),
    /// A setting has a value that means nothing.
    #[error("{0}")]
    Setting(String),
    /// A package could not be fetched, or is not what its hash says.
    #[error("{package} could not be fetched: {reason}")]
    Fetch {
        /// Name and version.
        package: String,
        /// What the client of the registry said.
        reason: String,
    },
    /// The server ended by itself.
    #[error("{server} ended by itself ({status}); from {}:\n{excerpt}", log.display())]
    Died {
        /// Which server.
        server: &'static str,
        /// How it ended.
        status: String,
        /// Where all that it said is.
        log: PathBuf,
        /// The lines of it that say most.
        excerpt: String,
    },
    /// The server runs but does not answer.
    #[error("{server} did not answer within {seconds} s; from {}:\n{excerpt}", log.display())]
    Silent {
        /// Which server.
        server: &'static str,
        /// How long it had.
        seconds: u64,
        /// Where all that it said is.
        log: PathBuf,
        /// The lines of it that say most.
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
    /// The operating system refused something.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, ending in a word that a path can follow.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl ServerError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ServerError {
        let path = path.to_owned();
        move |source| ServerError::Io { doing, path, source }
    }

    /// Whether the server ended because somebody else listens on its port.
    pub(crate) fn is_port_conflict(&self) -> bool {
        let ServerError::Died { excerpt, .. } = self else { return false };
        let excerpt = excerpt.to_ascii_lowercase();
        ["address already in use", "address in use"].iter().any(|words| excerpt.contains(words))
    }
}
