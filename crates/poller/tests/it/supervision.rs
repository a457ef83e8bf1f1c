//! Supervision: a task that ends on its own ends the poller gracefully with exit code 1.

use std::time::Duration;

use crate::harness::{Poller, until};
use crate::scripted_producer::{Response, ScriptedProducer};

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
