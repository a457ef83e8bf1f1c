//! The error codes of MongoDB and what they mean for a record. Codes and names come from
//! `src/mongo/base/error_codes.yml` of MongoDB. A code is permanent only if one document alone is
//! the cause and a retry can never help. A code that is not listed is transient, so that an outage
//! never causes a dead letter.

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

pub(super) fn name(code: i32) -> String {
    listed(code).map_or_else(|| format!("Location{code}"), |known| known.name.to_owned())
}

/// The name of `code`. For an unlisted code it is the name in the server's reply.
pub(super) fn name_or(code: i32, server_name: &str) -> String {
    if listed(code).is_none() && !server_name.is_empty() { server_name.to_owned() } else { name(code) }
}

/// Whether credentials or rights are missing, which a retry alone does not change.
pub(super) fn is_unauthorized(code: i32) -> bool {
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
        assert_eq!(name(121), "DocumentValidationFailure");
        assert_eq!(name(987_654), "Location987654");
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
            assert_eq!((class(code), name(code).as_str()), (ErrorClass::Transient, wanted));
        }
    }
}
