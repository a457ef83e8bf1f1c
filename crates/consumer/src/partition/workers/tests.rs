//! Workers whose task has ended.

use prometheus_client::registry::Registry;
use rdkafka::ClientConfig;

use super::*;
use crate::kafka::dead_letters::DeadLetters;
use crate::metrics::Metrics;
use crate::mongo::{CALL_DEADLINE, Store, StoreConfig, UpsertKeys, check_uri};
use crate::partition::batch::BatchLimits;
use crate::partition::decision::ExpectedSources;
use crate::unlisted_code::UNLISTED_GRACE;

/// A context without reachable servers.
pub(crate) async fn context() -> Arc<WorkerContext> {
    let store = StoreConfig {
        uri: check_uri("mongodb://127.0.0.1:1").unwrap(),
        database: "d".into(),
        upsert_keys: UpsertKeys::parse("event_id").unwrap(),
        batch_max_bytes: 1 << 20,
    };
    Arc::new(WorkerContext {
        store: Store::with_deadline(store, CALL_DEADLINE).await.unwrap(),
        dead_letters: DeadLetters::new(ClientConfig::new(), "g".into(), None),
        metrics: Metrics::new(&mut Registry::default(), &[]),
        expected: ExpectedSources::All,
        limits: BatchLimits { records: 10, bytes: 1 << 20 },
        unlisted_grace: UNLISTED_GRACE,
    })
}

/// Without a bug, a worker's task ends unexpectedly only if its runtime ends.
#[test]
fn worker_that_ended_unexpectedly_is_reported_and_can_be_restarted() {
    let (first, second) = [(); 2].map(|()| tokio::runtime::Runtime::new().unwrap()).into();
    let context = second.block_on(context());
    let workers = Workers::new(Arc::clone(&context), first.handle().clone());
    let assigned: TopicPartition = (Arc::from("t"), 3);
    workers.start(vec![assigned.clone()]);
    assert_eq!(workers.unexpectedly_ended(), None);
    first.shutdown_timeout(Duration::from_secs(10));
    assert_eq!(workers.unexpectedly_ended(), Some(assigned.clone()));
    let record = Record::new(0, None, None, None, std::iter::empty);
    assert_eq!(workers.push("t", 3, record.clone()), PushResult::WorkerEnded(assigned.clone()));

    let workers = Workers { runtime: second.handle().clone(), ..workers };
    workers.abort(std::slice::from_ref(&assigned));
    assert_eq!(workers.push("t", 3, record.clone()), PushResult::NotAssigned);
    workers.start(vec![assigned.clone()]);
    assert_eq!(workers.push("t", 3, record), PushResult::Queued);
    assert_eq!(workers.unexpectedly_ended(), None);
    let finished = workers.stop(&[assigned], Duration::from_secs(10));
    assert!(finished.count() <= 1);
}
