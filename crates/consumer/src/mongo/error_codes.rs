//! What an error code of the server means for the records. MongoDB's list, `src/mongo/base/error_codes.yml`, is the
//! source of codes and names. Only an error that can never go away by itself, and that one document alone is the cause
//! of, is permanent; a code that is not listed is transient, so that an outage is never a reason to dead-letter.

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try again later.
    Transient,
    /// The server refuses this one document. For a whole command: one of its documents, so the batch is split, and
    /// only a record that is alone is rejected.
    Permanent,
    /// A unique index has the value already; which index decides.
    Duplicate,
}

struct Code {
    code: i32,
    name: &'static str,
    verdict: Verdict,
}

const fn permanent(code: i32, name: &'static str) -> Code {
    Code { code, name, verdict: Verdict::Permanent }
}

const fn transient(code: i32, name: &'static str) -> Code {
    Code { code, name, verdict: Verdict::Transient }
}

const fn duplicate(code: i32, name: &'static str) -> Code {
    Code { code, name, verdict: Verdict::Duplicate }
}

const CODES: &[Code] = &[
    duplicate(11000, "DuplicateKey"),
    duplicate(11001, "DuplicateKey"),
    // The document is too large or too deep, by itself or inside the command.
    permanent(10334, "BSONObjectTooLarge"),
    permanent(17419, "BSONObjectTooLarge"), // the result of an update
    permanent(17420, "BSONObjectTooLarge"), // the same, by another path of the server
    permanent(15, "Overflow"),              // nesting above the server's limit
    permanent(22, "InvalidBSON"),
    permanent(378, "NonConformantBSON"),
    // A rule of the collection.
    permanent(121, "DocumentValidationFailure"),
    permanent(116, "DocTooLargeForCapped"),
    // Field names that this server does not store.
    permanent(52, "DollarPrefixedFieldName"),
    permanent(53, "InvalidIdField"),
    permanent(55, "InvalidDBRef"),
    permanent(56, "EmptyFieldName"),
    permanent(57, "DottedFieldName"),
    // An index, the user's or ours, that cannot hold the value.
    permanent(171, "CannotIndexParallelArrays"),
    permanent(201, "CannotBuildIndexKeys"),
    permanent(17280, "KeyTooLong"),
    permanent(16755, "CannotExtractGeoKeys"), // 2dsphere
    permanent(13026, "NotLegacyCoordinates"), // 2d
    permanent(13027, "PointNotInInterval"),   // 2d
    permanent(16766, "HashedIndexCannotHoldArray"),
    permanent(17261, "TextLanguageNotString"),   // text
    permanent(17262, "TextLanguageUnsupported"), // text
    // Network and name service.
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
    // No primary, or another one soon.
    transient(71, "ReplicaSetNotFound"),
    transient(91, "ShutdownInProgress"),
    transient(133, "FailedToSatisfyReadPreference"), // a router says so of a shard without a primary
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
    // Too slow, too busy, or in the way of another.
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
    // An operator puts these right.
    transient(13, "Unauthorized"),
    transient(18, "AuthenticationFailed"),
    transient(391, "ReauthenticationRequired"),
    transient(8000, "AtlasError"),
    transient(166, "CommandNotSupportedOnView"),
    // The name of the database or the collection is the cause, so every record waits.
    transient(73, "InvalidNamespace"),
    transient(13297, "DatabaseDifferCase"),
    // An index that is being built.
    transient(215, "DatabaseDropPending"),
    transient(276, "IndexBuildAborted"),
    transient(285, "IndexBuildAlreadyInProgress"),
    transient(12586, "BackgroundOperationInProgressForDatabase"),
    transient(12587, "BackgroundOperationInProgressForNamespace"),
    // A sharded cluster, whose router reports a shard's trouble as a refusal of each record that belongs there.
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

/// Whether the table knows `code`.
pub(super) fn is_listed(code: i32) -> bool {
    listed(code).is_some()
}

/// What `code` means.
pub(super) fn verdict(code: i32) -> Verdict {
    listed(code).map_or(Verdict::Transient, |known| known.verdict)
}

/// Whether `code` says that the server stopped the operation at its own time limit, as `maxTimeMS`
/// is one.
pub(super) fn is_time_limit(code: i32) -> bool {
    matches!(code, 50 | 262)
}

/// The name of `code`.
pub(super) fn name(code: i32) -> String {
    listed(code).map_or_else(|| format!("Location{code}"), |known| known.name.to_owned())
}

/// The name of `code`, which the server calls `told`.
pub(super) fn name_or(code: i32, told: &str) -> String {
    if listed(code).is_none() && !told.is_empty() { told.to_owned() } else { name(code) }
}

/// Whether the server wants other credentials or more rights, which waiting alone does not bring.
pub(super) fn is_not_allowed(code: i32) -> bool {
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
    fn only_what_one_document_causes_is_permanent_and_the_unknown_is_transient() {
        assert_eq!(verdict(121), Verdict::Permanent);
        assert_eq!(verdict(10334), Verdict::Permanent);
        assert_eq!(verdict(11000), Verdict::Duplicate);
        for transient in [10107, 91, 64, 13, 18, 112, 2, 9, 14, 1, 8, 987_654] {
            assert_eq!(verdict(transient), Verdict::Transient, "{transient}");
        }
        for unlisted in [1, 2, 8, 96, 146] {
            assert!(!is_listed(unlisted), "{unlisted}");
        }
        assert_eq!(name(121), "DocumentValidationFailure");
        assert_eq!(name(987_654), "Location987654");
    }

    #[test]
    fn codes_of_a_sharded_cluster_in_trouble_are_transient() {
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
            assert_eq!((verdict(code), name(code).as_str()), (Verdict::Transient, wanted));
        }
    }
}
