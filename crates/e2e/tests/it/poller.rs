//! A poller that is paused or killed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bson::doc;
use devservers::Simulator;
use nix::sys::signal::Signal;
use rdkafka::Message;
use testkit::fault_test::MAX_MEMORY_BYTES;
use testkit::{Monitor, Process, Stack, eventually, kafka, mongo};

/// Duration of the pause: longer than all timeouts of the poller, which are at most 10 s.
const PAUSE: Duration = Duration::from_secs(20);
/// The interval of the poller, in seconds and as text.
const INTERVAL: (f64, &str) = (0.2, "0.2");

fn poller(producer: &Process) -> Process {
    let base = producer.url("");
    let environment =
        [("PRODUCER_BASE_URL", base.as_str()), ("INTERVAL_SEC", INTERVAL.1), ("DURATION_SEC", "0")];
    Process::start("poller", &environment)
}

async fn calls(simulator: &Simulator, more: u64) -> Duration {
    let (start, before) = (Instant::now(), simulator.requests());
    let called = || async { (simulator.requests() >= before + more).then_some(()) };
    eventually("the simulator receives requests", Duration::from_secs(60), called).await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn poller_paused_for_20_s_does_not_catch_up_and_a_kill_loses_nothing() {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let producer = stack.producer(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())]);
    let consumer = stack.consumer(&names, &[]);
    producer.ready().await;
    consumer.ready().await;
    let (first, monitor) = (poller(&producer), Monitor::start());
    for (kind, process) in [("producer", &producer), ("consumer", &consumer), ("poller", &first)] {
        monitor.add(kind, process);
    }
    calls(&simulator, 10).await;
    first.signal(Signal::SIGSTOP);
    tokio::time::sleep(PAUSE).await;
    let missed = simulator.requests();
    first.signal(Signal::SIGCONT);
    let took = calls(&simulator, 10).await;
    // The call that was due comes at once, the next nine on schedule.
    assert!(took.as_secs_f64() > 8.0 * INTERVAL.0, "10 calls in {took:?}: it catches up missed calls");
    assert!(simulator.requests() < missed + 40, "it caught up the 100 missed calls");
    assert!(first.is_running(), "it ended early: {}", first.log());
    first.kill().await;
    let second = poller(&producer);
    monitor.add("poller", &second);
    calls(&simulator, 10).await;
    monitor.assert_no_server_reported();
    assert!(
        monitor.max_memory_bytes() < MAX_MEMORY_BYTES && monitor.unknown_outcomes().is_empty(),
        "{monitor:?}"
    );
    assert!(second.terminate().await.success());
    assert!(producer.terminate().await.success());

    let topic = kafka::read_all(&names, &names.topic).await;
    let sent: HashSet<&[u8]> = topic.iter().filter_map(Message::key).collect();
    let aircraft = mongo::collection(&names, "adsbdb").await;
    let stored = eventually("every event is a document", Duration::from_secs(60), || async {
        let stored = mongo::all(&aircraft, doc! {}).await;
        (stored.len() >= sent.len()).then_some(stored)
    })
    .await;
    let ids: HashSet<&[u8]> =
        stored.iter().map(|document| document.get_str("event_id").unwrap().as_bytes()).collect();
    assert_eq!((ids, stored.len()), (sent.clone(), sent.len()), "none lost, none twice, none of others");
    assert!(consumer.terminate().await.success());
}
