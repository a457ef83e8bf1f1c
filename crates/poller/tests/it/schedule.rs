//! The times of the calls.

use std::time::Duration;

use poller::metrics::CallCounts;

use crate::harness::Poller;
use crate::scripted_producer::{Response, ScriptedProducer};

/// Delay of a call that a busy machine may cause.
const SLACK: Duration = Duration::from_millis(250);

#[tokio::test]
async fn each_tick_makes_one_call_and_the_end_of_the_schedule_is_a_success() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.5"), ("DURATION_SEC", "2.5")]).await;
    let ended = poller.end().await;
    assert!(!ended.failed());
    assert_eq!(ended.counts, CallCounts { sent: 5, ..CallCounts::default() });
    let calls = producer.calls();
    assert_eq!(calls.len(), 5);
    for (tick, call) in (0_u32..).zip(&calls) {
        let due = Duration::from_millis(500) * tick;
        assert!(
            call.at + SLACK >= due && call.at < due + SLACK,
            "call {tick} at the wrong time {:?}",
            call.at
        );
        assert!(call.authorization.is_none());
    }
}

#[tokio::test]
async fn a_slow_response_skips_ticks_and_calls_do_not_overlap() {
    let slow = Response::accepted().delayed(Duration::from_millis(1250));
    let producer = ScriptedProducer::start([slow, Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.5"), ("DURATION_SEC", "2.5")]).await;
    let ended = poller.end().await;
    assert_eq!(ended.counts, CallCounts { sent: 3, skipped: 2, ..CallCounts::default() });
    let calls = producer.calls();
    assert!(calls.iter().all(|call| call.was_alone), "{calls:?}");
    let (second, due) = (calls[1].at, Duration::from_millis(1500));
    assert!(second + SLACK > due && second < due + SLACK, "{second:?}");
}

#[tokio::test]
async fn a_duration_of_zero_polls_until_the_stop() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.01"), ("DURATION_SEC", "0")]).await;
    crate::harness::until("thirty calls", || producer.calls().len() >= 30).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(1), "{ended:?}");
    assert_eq!(ended.counts.sent, producer.calls().len() as u64);
}

#[tokio::test]
async fn the_key_is_sent_as_a_bearer_token() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let variables = [("PRODUCER_API_KEY", "s3cret"), ("INTERVAL_SEC", "1"), ("DURATION_SEC", "0.5")];
    Poller::start(producer.address, &variables).await.end().await;
    assert_eq!(producer.calls()[0].authorization.as_deref(), Some("Bearer s3cret"));
}
