//! Errors of calls to MongoDB, grouped by what the caller does about them, and the error codes of
//! MongoDB. No text repeats the bytes of a reply.
//!
//! Codes and names come from `src/mongo/base/error_codes.yml` of MongoDB. A code is permanent only
//! if one document alone is the cause and a retry can never help. A code that is not listed is
//! transient, so that an outage never causes a dead letter.

use std::time::Duration;

use mongodb::error::{Error, ErrorKind};

use ErrorClass::{Duplicate, Permanent, Transient};

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
        self.class() == Permanent || !is_listed(self.code)
    }

    /// What to do about the error.
    pub(super) fn class(&self) -> ErrorClass {
        class(self.code)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        let text = error.kind.to_string();
        let write_concern_failed = error
            .server_response()
            .is_some_and(|reply| matches!(reply.get("writeConcernError"), Ok(Some(_))));
        match *error.kind {
            ErrorKind::Command(error) if is_unauthorized(error.code) => {
                // The rest of this message quotes the command with its documents.
                let (message, _) =
                    error.message.split_once(" to execute command").unwrap_or((&error.message, ""));
                Self::Unauthorized(format!("{message} ({})", code_name(error.code)))
            }
            // A rejection is not final while the write concern is not met.
            ErrorKind::Command(error) if write_concern_failed && !is_time_limit(error.code) => {
                let code_name = name_or(error.code, &error.code_name);
                Self::Other(format!("{code_name} ({}), and the write concern was not met", error.code))
            }
            ErrorKind::Command(error) => Self::Rejected(CommandError {
                code_name: name_or(error.code, &error.code_name),
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

impl From<bson::error::Error> for CallError {
    fn from(error: bson::error::Error) -> Self {
        Self::Other(format!("the command is not valid BSON: {error}"))
    }
}

impl From<CallError> for TransientError {
    fn from(error: CallError) -> Self {
        let timed_out = match &error {
            CallError::TimedOut(_) => true,
            CallError::Rejected(error) => is_time_limit(error.code),
            _ => false,
        };
        let reason = match error {
            CallError::TimedOut(deadline) => no_reply_within(deadline),
            CallError::Unreachable(reason) | CallError::Unauthorized(reason) | CallError::Other(reason) => {
                reason
            }
            // The message of these errors may quote a value.
            CallError::Rejected(error) if error.class() != Transient => {
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

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// Retry later.
    Transient,
    /// The server will never accept this one document. If a whole command fails, one of its
    /// documents is the cause: the command is split until the record is alone.
    Permanent,
    /// A unique index has the value already. The index decides what to do.
    Duplicate,
}

/// Codes with their names and classes.
const CODES: &[(i32, &str, ErrorClass)] = &[
    (11000, "DuplicateKey", Duplicate),
    (11001, "DuplicateKey", Duplicate),
    // The document is too large or nested too deeply, alone or inside the command.
    (10334, "BSONObjectTooLarge", Permanent),
    (17419, "BSONObjectTooLarge", Permanent), // the result of an update is too large
    (17420, "BSONObjectTooLarge", Permanent), // the same, from another code path of the server
    (15, "Overflow", Permanent),              // nesting above the server's limit
    (22, "InvalidBSON", Permanent),
    (378, "NonConformantBSON", Permanent),
    // The collection's own rules.
    (121, "DocumentValidationFailure", Permanent),
    (116, "DocTooLargeForCapped", Permanent),
    // Field names that this server does not store.
    (52, "DollarPrefixedFieldName", Permanent),
    (53, "InvalidIdField", Permanent),
    (55, "InvalidDBRef", Permanent),
    (56, "EmptyFieldName", Permanent),
    (57, "DottedFieldName", Permanent),
    // An index of the user or of the consumer cannot hold the value.
    (171, "CannotIndexParallelArrays", Permanent),
    (201, "CannotBuildIndexKeys", Permanent),
    (17280, "KeyTooLong", Permanent),
    (16755, "CannotExtractGeoKeys", Permanent), // 2dsphere
    (13026, "NotLegacyCoordinates", Permanent), // 2d
    (13027, "PointNotInInterval", Permanent),   // 2d
    (16766, "HashedIndexCannotHoldArray", Permanent),
    (17261, "TextLanguageNotString", Permanent),   // text
    (17262, "TextLanguageUnsupported", Permanent), // text
    // Network and DNS.
    (6, "HostUnreachable", Transient),
    (7, "HostNotFound", Transient),
    (89, "NetworkTimeout", Transient),
    (141, "SSLHandshakeFailed", Transient),
    (145, "PooledConnectionsDropped", Transient),
    (317, "ConnectionPoolExpired", Transient),
    (384, "ConnectionError", Transient),
    (407, "PooledConnectionAcquisitionExceededTimeLimit", Transient),
    (450, "PooledConnectionAcquisitionRejected", Transient),
    (9001, "SocketException", Transient),
    // The replica set has no primary, or the member cannot run the command now.
    (71, "ReplicaSetNotFound", Transient),
    (91, "ShutdownInProgress", Transient),
    (133, "FailedToSatisfyReadPreference", Transient), // a router, for a shard without a primary
    (134, "ReadConcernMajorityNotAvailableYet", Transient),
    (164, "InitialSyncActive", Transient),
    (189, "PrimarySteppedDown", Transient),
    (216, "ElectionInProgress", Transient),
    (310, "PeriodicJobIsStopped", Transient),
    (355, "InterruptedDueToStorageChange", Transient),
    (372, "CloseConnectionForShutdownCommand", Transient),
    (10058, "LegacyNotPrimary", Transient),
    (10107, "NotWritablePrimary", Transient),
    (11600, "InterruptedAtShutdown", Transient),
    (11602, "InterruptedDueToReplStateChange", Transient),
    (13435, "NotPrimaryNoSecondaryOk", Transient),
    (13436, "NotPrimaryOrSecondary", Transient),
    // Too slow, overloaded, or a conflict with another operation.
    (24, "LockTimeout", Transient),
    (46, "LockBusy", Transient),
    (50, "MaxTimeMSExpired", Transient),
    (90, "CallbackCanceled", Transient),
    (107, "LockFailed", Transient),
    (112, "WriteConflict", Transient),
    (117, "ConflictingOperationInProgress", Transient),
    (175, "QueryPlanKilled", Transient),
    (199, "ReplicaSetMonitorRemoved", Transient),
    (202, "NetworkInterfaceExceededTimeLimit", Transient),
    (208, "TooManyLocks", Transient),
    (237, "CursorKilled", Transient),
    (262, "ExceededTimeLimit", Transient),
    (264, "TooManyFilesOpen", Transient),
    (279, "ClientDisconnect", Transient),
    (290, "TransactionExceededLifetimeLimitSeconds", Transient),
    (314, "ObjectIsBusy", Transient),
    (365, "TemporarilyUnavailable", Transient),
    (402, "ResourceExhausted", Transient),
    (433, "AdmissionQueueOverflow", Transient),
    (449, "RateLimitExceeded", Transient),
    (462, "IngressRequestRateLimitExceeded", Transient),
    (11601, "Interrupted", Transient),
    (46841, "ClientMarkedKilled", Transient),
    // The write may be rolled back, or is not allowed now.
    (64, "WriteConcernTimeout", Transient),
    (79, "UnknownReplWriteConcern", Transient),
    (100, "UnsatisfiableWriteConcern", Transient),
    (371, "UserWritesBlocked", Transient),
    (14031, "OutOfDiskSpace", Transient),
    // An operator has to act.
    (13, "Unauthorized", Transient),
    (18, "AuthenticationFailed", Transient),
    (391, "ReauthenticationRequired", Transient),
    (8000, "AtlasError", Transient),
    (166, "CommandNotSupportedOnView", Transient),
    // The name of the database or collection is the cause, so all records wait.
    (73, "InvalidNamespace", Transient),
    (13297, "DatabaseDifferCase", Transient),
    // An index is being built.
    (215, "DatabaseDropPending", Transient),
    (276, "IndexBuildAborted", Transient),
    (285, "IndexBuildAlreadyInProgress", Transient),
    (12586, "BackgroundOperationInProgressForDatabase", Transient),
    (12587, "BackgroundOperationInProgressForNamespace", Transient),
    // Sharded clusters. The router reports a failed shard as a rejection of each of its records.
    (63, "StaleShardVersion", Transient),
    (70, "ShardNotFound", Transient),
    (82, "NoProgressMade", Transient),
    (83, "RemoteResultsUnavailable", Transient),
    (149, "NoConfigPrimary", Transient),
    (150, "StaleEpoch", Transient),
    (203, "ShardingStateNotInitialized", Transient),
    (239, "SnapshotTooOld", Transient),
    (246, "SnapshotUnavailable", Transient),
    (249, "StaleDbVersion", Transient),
    (250, "StaleChunkHistory", Transient),
    (272, "MigrationConflict", Transient),
    (319, "MovePrimaryInProgress", Transient),
    (338, "ReshardCollectionInProgress", Transient),
    (342, "ReshardingCriticalSectionTimeout", Transient),
    (343, "ShardCannotRefreshDueToLocksHeld", Transient),
    (358, "InternalTransactionNotSupported", Transient),
    (406, "MigrationBlockingOperationCoordinatorCleaningUp", Transient),
    (412, "UpdatesStillPending", Transient),
    (414, "AddOrRemoveShardInProgress", Transient),
    (453, "InterruptedDueToReshardingCriticalSection", Transient),
    (13388, "StaleConfig", Transient),
    (50915, "BackupCursorOpenConflictWithCheckpoint", Transient),
    (56846, "ConfigServerUnreachable", Transient),
    (91331, "RetriableRemoteCommandFailure", Transient),
    (10_045_600, "InterruptedDueToFCVChange", Transient),
];

fn listed(code: i32) -> Option<&'static (i32, &'static str, ErrorClass)> {
    CODES.iter().find(|(known, ..)| *known == code)
}

/// Whether the table has `code`.
pub(super) fn is_listed(code: i32) -> bool {
    listed(code).is_some()
}

/// The class of `code`.
pub(super) fn class(code: i32) -> ErrorClass {
    listed(code).map_or(Transient, |(_, _, class)| *class)
}

/// Whether the server stopped the operation at a time limit, such as `maxTimeMS`.
pub(super) fn is_time_limit(code: i32) -> bool {
    matches!(code, 50 | 262)
}

pub(super) fn code_name(code: i32) -> String {
    listed(code).map_or_else(|| format!("Location{code}"), |(_, name, _)| (*name).to_owned())
}

/// The name of `code`. For an unlisted code it is the name in the server's reply.
fn name_or(code: i32, server_name: &str) -> String {
    if listed(code).is_none() && !server_name.is_empty() { server_name.to_owned() } else { code_name(code) }
}

/// Whether credentials or rights are missing, which a retry alone does not change.
fn is_unauthorized(code: i32) -> bool {
    matches!(code, 13 | 18 | 391 | 8000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once() {
        let mut codes: Vec<i32> = CODES.iter().map(|(code, ..)| *code).collect();
        codes.sort_unstable();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn only_codes_of_one_document_are_permanent_and_others_transient() {
        assert_eq!(class(121), Permanent);
        assert_eq!(class(10334), Permanent);
        assert_eq!(class(11000), Duplicate);
        for transient in [10107, 91, 64, 13, 18, 112, 2, 9, 14, 1, 8, 987_654] {
            assert_eq!(class(transient), Transient, "{transient}");
        }
        for unlisted in [1, 2, 8, 96, 146] {
            assert!(!is_listed(unlisted), "{unlisted}");
        }
        assert_eq!(code_name(121), "DocumentValidationFailure");
        assert_eq!(code_name(987_654), "Location987654");
    }

    #[test]
    fn codes_of_a_failing_sharded_cluster_are_transient() {
        for (code, wanted) in [
            (149, "NoConfigPrimary"),
            (310, "PeriodicJobIsStopped"),
            (338, "ReshardCollectionInProgress"),
            (358, "InternalTransactionNotSupported"),
            (372, "CloseConnectionForShutdownCommand"),
            (414, "AddOrRemoveShardInProgress"),
            (50915, "BackupCursorOpenConflictWithCheckpoint"),
            (56846, "ConfigServerUnreachable"),
        ] {
            assert!(is_listed(code), "{code}");
            assert_eq!((class(code), code_name(code).as_str()), (Transient, wanted));
        }
    }
}
