//! Errors of calls to MongoDB, grouped by what the caller does about them. No text repeats the
//! bytes of a reply.

use std::time::Duration;

use mongodb::error::{Error, ErrorKind};

use super::error_codes::{self, ErrorClass};

/// Why events are unfinished. A later attempt can succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransientError {
    /// The cause, without values of documents.
    pub reason: String,
    /// A deadline passed. A smaller batch or more time may help.
    pub timed_out: bool,
}

impl TransientError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), timed_out: false }
    }
}

/// A call without a usable reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// No reply within the deadline. The outcome is unknown.
    TimedOut(Duration),
    /// The server cannot be reached.
    Unreachable(String),
    /// Credentials or rights are missing.
    Unauthorized(String),
    /// The server rejected the whole command.
    Rejected(CommandError),
    /// Any other error.
    Other(String),
}

/// The error of a command that the server rejected as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandError {
    pub(super) code: i32,
    pub(super) code_name: String,
    pub(super) message: String,
}

impl CommandError {
    /// Whether one of the command's documents is or may be the cause: the code is permanent or not
    /// listed.
    pub(super) fn may_concern_one_document(&self) -> bool {
        self.is_permanent() || !error_codes::is_listed(self.code)
    }

    pub(super) fn is_permanent(&self) -> bool {
        error_codes::class(self.code) == ErrorClass::Permanent
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        let text = error.kind.to_string();
        let write_concern_failed = has_write_concern_error(&error);
        match *error.kind {
            ErrorKind::Command(error) if error_codes::is_unauthorized(error.code) => {
                // The rest of this message quotes the command with its documents.
                let (message, _) =
                    error.message.split_once(" to execute command").unwrap_or((&error.message, ""));
                Self::Unauthorized(format!("{message} ({})", error_codes::name(error.code)))
            }
            // A rejection is not final while the write concern is not met.
            ErrorKind::Command(error) if write_concern_failed && !error_codes::is_time_limit(error.code) => {
                let code_name = error_codes::name_or(error.code, &error.code_name);
                Self::Other(format!("{code_name} ({}), and the write concern was not met", error.code))
            }
            ErrorKind::Command(error) => Self::Rejected(CommandError {
                code_name: error_codes::name_or(error.code, &error.code_name),
                code: error.code,
                message: error.message,
            }),
            ErrorKind::Authentication { message, .. } => Self::Unauthorized(message),
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::IncompatibleServer { .. }
            | ErrorKind::InvalidTlsConfig { .. } => Self::Unreachable(text),
            _ => Self::Other(text),
        }
    }
}

fn has_write_concern_error(error: &Error) -> bool {
    error.server_response().is_some_and(|reply| matches!(reply.get("writeConcernError"), Ok(Some(_))))
}

impl From<bson::error::Error> for CallError {
    fn from(error: bson::error::Error) -> Self {
        Self::Other(format!("the command is not valid BSON: {error}"))
    }
}

impl From<CallError> for TransientError {
    fn from(error: CallError) -> Self {
        let timed_out = match &error {
            CallError::TimedOut(_) => true,
            CallError::Rejected(error) => error_codes::is_time_limit(error.code),
            _ => false,
        };
        let reason = match error {
            CallError::TimedOut(deadline) => no_reply_within(deadline),
            CallError::Unreachable(reason) | CallError::Unauthorized(reason) | CallError::Other(reason) => {
                reason
            }
            // The message of these errors may quote a value.
            CallError::Rejected(error) if error_codes::class(error.code) != ErrorClass::Transient => {
                format!("the server rejected the command: {} ({})", error.code_name, error.code)
            }
            CallError::Rejected(error) => format!("{} ({})", error.message, error.code_name),
        };
        Self { reason, timed_out }
    }
}

/// The reason of a timeout.
pub(super) fn no_reply_within(deadline: Duration) -> String {
    format!("no reply within {} ms", deadline.as_millis())
}
