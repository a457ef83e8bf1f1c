//! Why a call to the server failed, grouped by what the caller does about it. No text repeats a reply's bytes.

use std::time::Duration;

use mongodb::error::{Error, ErrorKind};

use super::error_codes::{self, Verdict};
use super::outcome::Trouble;

/// A call that brought no usable reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// No answer within the deadline: done or not, nobody knows.
    TimedOut(Duration),
    /// The server cannot be reached.
    Unreachable(String),
    /// Credentials or rights are missing.
    NotAllowed(String),
    /// The server refused the whole command.
    Refused(Refusal),
    /// Anything else.
    Other(String),
}

/// A command that the server refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: i32,
    pub(super) class: String,
    pub(super) message: String,
}

impl Refusal {
    /// Whether one of the command's documents is or may be the cause: the code is permanent, or in
    /// no list.
    pub(super) fn may_be_a_documents(&self) -> bool {
        self.is_permanent() || !error_codes::is_listed(self.code)
    }

    pub(super) fn is_permanent(&self) -> bool {
        error_codes::verdict(self.code) == Verdict::Permanent
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let text = error.kind.to_string();
        let unconfirmed = has_write_concern_error(&error);
        match *error.kind {
            ErrorKind::Command(error) if error_codes::is_not_allowed(error.code) => {
                // The rest of this message quotes the command, documents included.
                let (said, _) =
                    error.message.split_once(" to execute command").unwrap_or((&error.message, ""));
                Self::NotAllowed(format!("{said} ({})", error_codes::name(error.code)))
            }
            // A refusal is not final while the write concern is not met.
            ErrorKind::Command(error) if unconfirmed && !error_codes::is_time_limit(error.code) => {
                let class = error_codes::name_or(error.code, &error.code_name);
                Self::Other(format!("{class} ({}), and the write concern was not met", error.code))
            }
            ErrorKind::Command(error) => Self::Refused(Refusal {
                class: error_codes::name_or(error.code, &error.code_name),
                code: error.code,
                message: error.message,
            }),
            ErrorKind::Authentication { message, .. } => Self::NotAllowed(message),
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

impl From<bson::error::Error> for Fault {
    fn from(error: bson::error::Error) -> Self {
        Self::Other(format!("the command is no BSON: {error}"))
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        let timed_out = match &fault {
            Fault::TimedOut(_) => true,
            Fault::Refused(refusal) => error_codes::is_time_limit(refusal.code),
            _ => false,
        };
        let reason = match fault {
            Fault::TimedOut(deadline) => format!("no answer within {} ms", deadline.as_millis()),
            Fault::Unreachable(reason) | Fault::NotAllowed(reason) | Fault::Other(reason) => reason,
            // The message of these may quote a value.
            Fault::Refused(refusal) if error_codes::verdict(refusal.code) != Verdict::Transient => {
                format!("the server refused the command: {} ({})", refusal.class, refusal.code)
            }
            Fault::Refused(refusal) => format!("{} ({})", refusal.message, refusal.class),
        };
        Self { reason, timed_out }
    }
}
