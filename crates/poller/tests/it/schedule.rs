//! The times of the calls, the graceful shutdown, and the supervision of tasks.

use std::time::Duration;

use poller::metrics::CallCounts;

use crate::harness::{Poller, Response, ScriptedProducer, until};

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
    until("thirty calls", || producer.calls().len() >= 30).await;
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

const IMMEDIATELY: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_stop_while_waiting_for_a_tick_is_immediate() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "3600"), ("DURATION_SEC", "0")]).await;
    until("the first call", || poller.counts().sent == 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < IMMEDIATELY, "{ended:?}");
}

#[tokio::test]
async fn a_stop_while_waiting_for_the_producer_is_immediate_and_clean() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    producer.set_ready(false);
    let poller = Poller::start(producer.address, &[]).await;
    until("a readiness check", || producer.readiness_checks() >= 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < IMMEDIATELY, "{ended:?}");
    assert_eq!(ended.counts, CallCounts::default());
}

#[tokio::test]
async fn a_stop_during_a_long_retry_after_is_immediate() {
    let producer = ScriptedProducer::start([Response::rejected(503).retry_after(3000)]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    until("the rejection", || poller.counts().failed == 1).await;
    let ended = poller.stop().await;
    assert!(ended.failed() && ended.took < IMMEDIATELY, "calls failed and none succeeded: {ended:?}");
}

#[tokio::test]
async fn a_stop_waits_for_the_response_of_the_call_in_flight() {
    let producer = ScriptedProducer::start([Response::accepted().delayed(Duration::from_millis(500))]).await;
    let poller = Poller::start(producer.address, &[("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")]).await;
    until("the call", || !producer.calls().is_empty()).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(3), "{ended:?}");
    let CallCounts { sent, failed, abandoned, .. } = ended.counts;
    assert_eq!((sent, failed, abandoned), (1, 0, 0), "counted, and no further call");
    assert_eq!(producer.calls().len(), 1);
}

#[tokio::test]
async fn a_stop_while_a_request_hangs_ends_within_10_s() {
    let producer = ScriptedProducer::start([Response::never()]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    until("the call", || !producer.calls().is_empty()).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(10), "{ended:?}");
    assert_eq!(ended.counts, CallCounts { abandoned: 1, ..CallCounts::default() });
}

#[tokio::test]
async fn a_listener_client_that_hangs_does_not_delay_the_stop() {
    use tokio::io::AsyncWriteExt;
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let poller = Poller::start(producer.address, &[("DURATION_SEC", "0")]).await;
    let mut half_request = tokio::net::TcpStream::connect(poller.address).await.unwrap();
    half_request.write_all(b"GET /health HTTP/1.1\r\nHost: ").await.unwrap();
    until("a call", || poller.counts().sent >= 1).await;
    let ended = poller.stop().await;
    assert!(!ended.failed() && ended.took < Duration::from_secs(3), "{ended:?}");
}

#[tokio::test]
async fn a_task_that_ends_early_shuts_the_poller_down_with_code_1() {
    let slow = Response::accepted().delayed(Duration::from_secs(2));
    let producer = ScriptedProducer::start([slow]).await;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let start_tasks = |supervisor: &service::tasks::Supervisor| {
        supervisor.spawn("extra task", async { drop(ended.await) });
    };
    let poller = Poller::start_with(producer.address, &[("DURATION_SEC", "0")], start_tasks).await;
    until("the call", || !producer.calls().is_empty()).await;
    assert!(poller.get("/livez").await.starts_with("HTTP/1.1 200"));

    end.send(()).unwrap();
    // The call is in flight for 2 s, so the listener still responds during the shutdown.
    let mut livez = poller.get("/livez").await;
    while livez.starts_with("HTTP/1.1 200") {
        livez = poller.get("/livez").await;
    }
    assert!(livez.starts_with("HTTP/1.1 503") && livez.contains("extra task"), "{livez}");
    assert!(livez.contains("ended before the stop signal"), "{livez}");
    assert!(!poller.stop.is_cancelled(), "the poller stops without the stop signal");
    let ended = poller.end().await;
    assert!(ended.failed(), "{ended:?}");
    assert_eq!((ended.counts.sent, ended.counts.abandoned), (1, 0), "the call in flight completes");
}

#[tokio::test]
async fn a_task_that_panics_shuts_the_poller_down_with_code_1() {
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let start_tasks = |supervisor: &service::tasks::Supervisor| {
        supervisor.spawn("extra task", async {
            let healthy = false;
            assert!(healthy, "on purpose");
        });
    };
    let poller = Poller::start_with(producer.address, &[("DURATION_SEC", "0")], start_tasks).await;
    let ended = poller.end().await;
    assert!(ended.failed() && ended.took < Duration::from_secs(10), "{ended:?}");
}
