//! Processes that are killed, or that stand still, for seconds or for longer than anybody waits for them. The consumer
//! killed at many moments, and an awakening in the middle of a batch, are in `series::kills` and `series::zombie`.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bson::doc;
use devservers::Simulator;
use nix::sys::signal::Signal;
use rdkafka::Message;
use testkit::fault_test::{MAX_MEMORY_BYTES, Setup};
use testkit::{FaultTest, Monitor, Process, Stack, eventually, kafka, mongo};

use super::{RECOVERY, SESSION, lasts, share};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_a_producer_that_is_killed_under_load_and_started_again_keeps_what_it_answered() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    trial.begin_fault();
    trial.producer.take().unwrap().kill().await;
    lasts(5).await;
    trial.start_producer(&[]);
    trial.end_fault_and_resume_within(RECOVERY).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_a_producer_that_stands_still_for_40_s_answers_truthfully_when_it_goes_on() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    trial.begin_fault();
    trial.producer().signal(Signal::SIGSTOP);
    lasts(40).await;
    trial.producer().signal(Signal::SIGCONT);
    trial.end_fault_and_resume_within(RECOVERY).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_the_only_consumer_stands_still_for_40_s_and_goes_on_where_it_was() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    // Meanwhile the producer notices nothing: no outcome may be unknown.
    trial.consumers[0].signal(Signal::SIGSTOP);
    lasts(40).await;
    trial.consumers[0].signal(Signal::SIGCONT);
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

/// For about as long as a question to a server may take: it times out while nobody is there to hear the answer.
#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_processes_that_stand_still_for_seconds_blame_no_server_for_it() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    for millis in [1_200, 2_100, 2_600, 3_200, 3_900, 5_000] {
        trial.begin_fault();
        trial.consumers[0].signal(Signal::SIGSTOP);
        trial.producer().signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        trial.consumers[0].signal(Signal::SIGCONT);
        trial.producer().signal(Signal::SIGCONT);
        trial.end_fault_and_resume_within(RECOVERY).await;
    }
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_a_consumer_that_is_killed_under_load_and_started_again_loses_nothing() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    trial.consumers.pop().unwrap().kill().await;
    lasts(5).await;
    trial.start_consumer(&[]);
    // Until then the broker keeps the partitions for the one that died.
    trial.assert_work_resumes_within(RECOVERY + SESSION).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_a_member_that_stands_still_for_40_s_beside_another_turns_nothing_back() {
    let mut trial = FaultTest::start_with_load(Setup { members: 2, ..Setup::default() }).await;
    share(&trial).await;
    trial.consumers[0].signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let heir = || async { (trial.consumers[1].assigned_partitions().await == 6).then_some(()) };
    eventually("the other has all partitions", RECOVERY + SESSION, heir).await;
    tokio::time::sleep_until((stopped + Duration::from_secs(40)).into()).await;
    trial.consumers[0].signal(Signal::SIGCONT);
    trial.assert_work_resumes_within(RECOVERY).await;
    share(&trial).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

/// The poller's interval, in seconds and as text.
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
    eventually("aircraft are asked for", Duration::from_secs(60), called).await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poller_that_stands_still_for_40_s_catches_nothing_up_and_a_killed_one_loses_nothing() {
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
    lasts(40).await;
    let missed = simulator.requests();
    first.signal(Signal::SIGCONT);
    let took = calls(&simulator, 10).await;
    // The call that was due comes at once, the nine after it on schedule.
    assert!(took.as_secs_f64() > 8.0 * INTERVAL.0, "10 calls in {took:?}: it catches up");
    assert!(simulator.requests() < missed + 40, "it made up for the 200 calls that it missed");
    assert!(first.is_running(), "it ended by itself: {}", first.log());
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
