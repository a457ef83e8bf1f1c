//! What the lanes' keeper does when a lane's task is gone.

use prometheus_client::registry::Registry;
use rdkafka::ClientConfig;

use super::*;
use crate::kafka::dead_letters::DeadLetters;
use crate::metrics::Metrics;
use crate::mongo::{CALL_DEADLINE, Store, StoreConfig, UpsertKeys, check_uri};
use crate::partition::batch::Limits;
use crate::partition::decision::Expected;
use crate::unlisted_code::UNLISTED_GRACE;

/// Work that reaches no server.
pub(crate) async fn work() -> Arc<Work> {
    let store = StoreConfig {
        uri: check_uri("mongodb://127.0.0.1:1").unwrap(),
        database: "d".into(),
        upsert_keys: UpsertKeys::parse("event_id").unwrap(),
        batch_max_bytes: 1 << 20,
    };
    Arc::new(Work {
        store: Store::with_deadline(store, CALL_DEADLINE).await.unwrap(),
        dead_letters: DeadLetters::new(ClientConfig::new(), "g".into(), None),
        metrics: Metrics::new(&mut Registry::default(), &[]),
        expected: Expected::Any,
        limits: Limits { records: 10, bytes: 1 << 20 },
        unlisted_grace: UNLISTED_GRACE,
    })
}

/// A lane's task can end by itself in one way that is no fault of this program: when its runtime ends.
#[test]
fn a_lane_whose_task_ended_by_itself_is_told_and_can_be_started_again() {
    let (first, second) = [(); 2].map(|()| tokio::runtime::Runtime::new().unwrap()).into();
    let work = second.block_on(work());
    let lanes = Lanes::new(Arc::clone(&work), first.handle().clone());
    let place: Place = (Arc::from("t"), 3);
    lanes.start(vec![place.clone()]);
    assert_eq!(lanes.ended(), None);
    first.shutdown_timeout(Duration::from_secs(10));
    assert_eq!(lanes.ended(), Some(place.clone()));
    let record = Record::new(0, None, None, None, std::iter::empty);
    assert_eq!(lanes.give("t", 3, record.clone()), Given::LaneEnded(place.clone()));

    let lanes = Lanes { runtime: second.handle().clone(), ..lanes };
    lanes.lose(std::slice::from_ref(&place));
    assert_eq!(lanes.give("t", 3, record.clone()), Given::NotOurs);
    lanes.start(vec![place.clone()]);
    assert_eq!(lanes.give("t", 3, record), Given::Taken);
    assert_eq!(lanes.ended(), None);
    let watermark = lanes.end(&[place], Duration::from_secs(10));
    assert!(watermark.count() <= 1);
}
