//! Errors of calls to MongoDB, grouped by what the caller does about them, and the error codes of
//! MongoDB. No text repeats the bytes of a reply.
//!
//! Codes and names come from `src/mongo/base/error_codes.yml` of MongoDB. A code is permanent only
//! if one document alone is the cause and a retry can never help. A code that is not listed is
//! transient, so that an outage never causes a dead letter.

use std::time::Duration;

use mongodb::error::{Error, ErrorKind};

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
        self.class() == ErrorClass::Permanent || !is_listed(self.code)
    }

    /// What to do about the error.
    pub(super) fn class(&self) -> ErrorClass {
        class(self.code)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        let text = error.kind.to_string();
        let write_concern_failed = has_write_concern_error(&error);
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
            CallError::Rejected(error) => is_time_limit(error.code),
            _ => false,
        };
        let reason = match error {
            CallError::TimedOut(deadline) => no_reply_within(deadline),
            CallError::Unreachable(reason) | CallError::Unauthorized(reason) | CallError::Other(reason) => {
                reason
            }
            // The message of these errors may quote a value.
            CallError::Rejected(error) if error.class() != ErrorClass::Transient => {
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

struct Code {
    code: i32,
    name: &'static str,
    class: ErrorClass,
}

const fn permanent(code: i32, name: &'static str) -> Code {
    Code { code, name, class: ErrorClass::Permanent }
}

const fn transient(code: i32, name: &'static str) -> Code {
    Code { code, name, class: ErrorClass::Transient }
}

const fn duplicate(code: i32, name: &'static str) -> Code {
    Code { code, name, class: ErrorClass::Duplicate }
}

const CODES: &[Code] = &[
    duplicate(11000, "DuplicateKey"),
    duplicate(11001, "DuplicateKey"),
    // The document is too large or nested too deeply, alone or inside the command.
    permanent(10334, "BSONObjectTooLarge"),
    permanent(17419, "BSONObjectTooLarge"), // the result of an update is too large
    permanent(17420, "BSONObjectTooLarge"), // the same, from another code path of the server
    permanent(15, "Overflow"),              // nesting above the server's limit
    permanent(22, "InvalidBSON"),
    permanent(378, "NonConformantBSON"),
    // The collection's own rules.
    permanent(121, "DocumentValidationFailure"),
    permanent(116, "DocTooLargeForCapped"),
    // Field names that this server does not store.
    permanent(52, "DollarPrefixedFieldName"),
    permanent(53, "InvalidIdField"),
    permanent(55, "InvalidDBRef"),
    permanent(56, "EmptyFieldName"),
    permanent(57, "DottedFieldName"),
    // An index of the user or of the consumer cannot hold the value.
    permanent(171, "CannotIndexParallelArrays"),
    permanent(201, "CannotBuildIndexKeys"),
    permanent(17280, "KeyTooLong"),
    permanent(16755, "CannotExtractGeoKeys"), // 2dsphere
    permanent(13026, "NotLegacyCoordinates"), // 2d
    permanent(13027, "PointNotInInterval"),   // 2d
    permanent(16766, "HashedIndexCannotHoldArray"),
    permanent(17261, "TextLanguageNotString"),   // text
    permanent(17262, "TextLanguageUnsupported"), // text
    // Network and DNS.
    transient(6, "HostUnreachable"),
    transient(7, "HostNotFound"),
    transient(89, "NetworkTimeout"),
    transient(141, "SSLHandshakeFailed"),
    transient(145, "PooledConnectionsDropped"),
    transient(317, "ConnectionPoolExpired"),
    transient(384, "ConnectionError"),
    transient(407, "PooledConnectionAcquisitionExceededTimeLimit"),
    transient(450, "PooledConnectionAcquisitionRejected"),
    transient(9001, "SocketException"),
    // The replica set has no primary, or the member cannot run the command now.
    transient(71, "ReplicaSetNotFound"),
    transient(91, "ShutdownInProgress"),
    transient(133, "FailedToSatisfyReadPreference"), // a router, for a shard without a primary
    transient(134, "ReadConcernMajorityNotAvailableYet"),
    transient(164, "InitialSyncActive"),
    transient(189, "PrimarySteppedDown"),
    transient(216, "ElectionInProgress"),
    transient(310, "PeriodicJobIsStopped"),
    transient(355, "InterruptedDueToStorageChange"),
    transient(372, "CloseConnectionForShutdownCommand"),
    transient(10058, "LegacyNotPrimary"),
    transient(10107, "NotWritablePrimary"),
    transient(11600, "InterruptedAtShutdown"),
    transient(11602, "InterruptedDueToReplStateChange"),
    transient(13435, "NotPrimaryNoSecondaryOk"),
    transient(13436, "NotPrimaryOrSecondary"),
    // Too slow, overloaded, or a conflict with another operation.
    transient(24, "LockTimeout"),
    transient(46, "LockBusy"),
    transient(50, "MaxTimeMSExpired"),
    transient(90, "CallbackCanceled"),
    transient(107, "LockFailed"),
    transient(112, "WriteConflict"),
    transient(117, "ConflictingOperationInProgress"),
    transient(175, "QueryPlanKilled"),
    transient(199, "ReplicaSetMonitorRemoved"),
    transient(202, "NetworkInterfaceExceededTimeLimit"),
    transient(208, "TooManyLocks"),
    transient(237, "CursorKilled"),
    transient(262, "ExceededTimeLimit"),
    transient(264, "TooManyFilesOpen"),
    transient(279, "ClientDisconnect"),
    transient(290, "TransactionExceededLifetimeLimitSeconds"),
    transient(314, "ObjectIsBusy"),
    transient(365, "TemporarilyUnavailable"),
    transient(402, "ResourceExhausted"),
    transient(433, "AdmissionQueueOverflow"),
    transient(449, "RateLimitExceeded"),
    transient(462, "IngressRequestRateLimitExceeded"),
    transient(11601, "Interrupted"),
    transient(46841, "ClientMarkedKilled"),
    // The write may be rolled back, or is not allowed now.
    transient(64, "WriteConcernTimeout"),
    transient(79, "UnknownReplWriteConcern"),
    transient(100, "UnsatisfiableWriteConcern"),
    transient(371, "UserWritesBlocked"),
    transient(14031, "OutOfDiskSpace"),
    // An operator has to act.
    transient(13, "Unauthorized"),
    transient(18, "AuthenticationFailed"),
    transient(391, "ReauthenticationRequired"),
    transient(8000, "AtlasError"),
    transient(166, "CommandNotSupportedOnView"),
    // The name of the database or collection is the cause, so all records wait.
    transient(73, "InvalidNamespace"),
    transient(13297, "DatabaseDifferCase"),
    // An index is being built.
    transient(215, "DatabaseDropPending"),
    transient(276, "IndexBuildAborted"),
    transient(285, "IndexBuildAlreadyInProgress"),
    transient(12586, "BackgroundOperationInProgressForDatabase"),
    transient(12587, "BackgroundOperationInProgressForNamespace"),
    // Sharded clusters. The router reports a failed shard as a rejection of each of its records.
    transient(63, "StaleShardVersion"),
    transient(70, "ShardNotFound"),
    transient(82, "NoProgressMade"),
    transient(83, "RemoteResultsUnavailable"),
    transient(149, "NoConfigPrimary"),
    transient(150, "StaleEpoch"),
    transient(203, "ShardingStateNotInitialized"),
    transient(239, "SnapshotTooOld"),
    transient(246, "SnapshotUnavailable"),
    transient(249, "StaleDbVersion"),
    transient(250, "StaleChunkHistory"),
    transient(272, "MigrationConflict"),
    transient(319, "MovePrimaryInProgress"),
    transient(338, "ReshardCollectionInProgress"),
    transient(342, "ReshardingCriticalSectionTimeout"),
    transient(343, "ShardCannotRefreshDueToLocksHeld"),
    transient(358, "InternalTransactionNotSupported"),
    transient(406, "MigrationBlockingOperationCoordinatorCleaningUp"),
    transient(412, "UpdatesStillPending"),
    transient(414, "AddOrRemoveShardInProgress"),
    transient(453, "InterruptedDueToReshardingCriticalSection"),
    transient(13388, "StaleConfig"),
    transient(50915, "BackupCursorOpenConflictWithCheckpoint"),
    transient(56846, "ConfigServerUnreachable"),
    transient(91331, "RetriableRemoteCommandFailure"),
    transient(10_045_600, "InterruptedDueToFCVChange"),
];

fn listed(code: i32) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code == code)
}

/// Whether the table has `code`.
pub(super) fn is_listed(code: i32) -> bool {
    listed(code).is_some()
}

/// The class of `code`.
pub(super) fn class(code: i32) -> ErrorClass {
    listed(code).map_or(ErrorClass::Transient, |known| known.class)
}

/// Whether the server stopped the operation at a time limit, such as `maxTimeMS`.
pub(super) fn is_time_limit(code: i32) -> bool {
    matches!(code, 50 | 262)
}

pub(super) fn code_name(code: i32) -> String {
    listed(code).map_or_else(|| format!("Location{code}"), |known| known.name.to_owned())
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
        let mut codes: Vec<i32> = CODES.iter().map(|known| known.code).collect();
        codes.sort_unstable();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn only_codes_of_one_document_are_permanent_and_others_transient() {
        assert_eq!(class(121), ErrorClass::Permanent);
        assert_eq!(class(10334), ErrorClass::Permanent);
        assert_eq!(class(11000), ErrorClass::Duplicate);
        for transient in [10107, 91, 64, 13, 18, 112, 2, 9, 14, 1, 8, 987_654] {
            assert_eq!(class(transient), ErrorClass::Transient, "{transient}");
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
            assert_eq!((class(code), code_name(code).as_str()), (ErrorClass::Transient, wanted));
        }
    }
}
