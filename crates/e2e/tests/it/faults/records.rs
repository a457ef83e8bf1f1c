//! Records that cannot be stored, events out of order, and topics that are changed, deleted and
//! created again.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use testkit::fault_test::ServerSetup;
use testkit::fault_test::{Setup, USUAL_LOAD};
use testkit::proxy::Fault;
use testkit::{FaultTest, eventually, http, kafka, load, mongo};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_20_000_poison_records_are_dead_lettered_all_others_stored() {
    let test = FaultTest::start_with_load(Setup::default()).await;
    let run = test.load_id_prefix().await;
    let poison = (0..20_000).map(|n| (format!("{run}-poison-{n}"), format!("{{\"n\": {n}, no json")));
    kafka::produce_by_key(&test.names, poison).await;
    test.wait_for_finished(20_000, Duration::from_secs(120)).await;
    test.assert_no_server_reported();
    test.verify_and_end(20_000).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_newest_of_1_000_shuffled_events_of_one_key_is_stored() {
    let test = FaultTest::start(Setup::default()).await;
    // The first write takes so long that all other events are in the next batch.
    test.mongodb().set(Fault::Latency(Duration::from_millis(500)));
    let mut timestamps: Vec<i64> = (1..=1_000).map(|n| 1_700_000_000_000 + n).collect();
    fastrand::shuffle(&mut timestamps);
    let event = |at: &i64| json!({"id": "one", "source": "manual", "timestamp": at, "payload": {"at": at}});
    let batch: Vec<_> = timestamps.iter().map(event).collect();
    let response = http::post(&test.producer().url("/ingest/batch"), &json!(batch)).await.unwrap();
    assert_eq!((response.status, &response.body["accepted"]), (202, &json!(1_000)), "{response:?}");
    test.mongodb().set(Fault::None);
    // One more record was finished at the start.
    let all = || async { (test.finished().await? > 1_000).then_some(()) };
    eventually("all are finished", Duration::from_secs(60), all).await;
    let manual = mongo::collection(&test.names, "manual").await;
    let stored = mongo::find(&manual, "one").await.expect("a document");
    let newest = 1_700_000_001_000_i64;
    let values = ["event_timestamp", "at"].map(|field| stored.get_i64(field).unwrap());
    assert_eq!(values, [newest; 2]);
    assert!(kafka::read_all(&test.names, &test.names.dead_letter_topic()).await.is_empty());
    test.assert_never_reported("consumer", "kafka");
    test.assert_never_reported("producer", "kafka");
    test.end().await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g4_lowered_max_message_bytes_rejects_only_larger_queued_events() {
    let load = ["--rate", "400", "--connections", "8", "--batch", "50", "--keys", "1000", "--hostile", "10%"];
    let servers = ServerSetup { broker: true, ..ServerSetup::default() };
    let mut test = FaultTest::start_with_load(Setup { servers, load: &load, ..Setup::default() }).await;
    // With this latency, events wait in the send queue, large and small ones in one request.
    test.kafka().set(Fault::Latency(Duration::from_millis(500)));
    let queued = || async { (test.producer_counter("kafka_queue_records").await? > 100).then_some(()) };
    eventually("events are queued", Duration::from_secs(20), queued).await;
    kafka::set_topic_config(&test.names, "max.message.bytes", "5000").await;
    test.kafka().set(Fault::None);
    test.wait_for_finished(2_000, Duration::from_secs(60)).await;
    let rejected = test.producer_counter("rejected").await.expect("a response of the producer");
    kafka::set_topic_config(&test.names, "max.message.bytes", "1048588").await;
    assert!(rejected > 0, "no event was too large");
    test.assert_work_resumes_within(super::RECOVERY_TIMEOUT).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_deleted_topic_is_recreated_and_later_events_are_stored() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    test.wait_for_finished(2_000, Duration::from_secs(60)).await;
    let before = test.end_load().await;
    load::assert_verified(&test.names, &before, 0).await;
    test.begin_fault();
    kafka::delete_recreated_topic(&test.names).await;
    test.start_load(&USUAL_LOAD);
    test.end_fault_and_resume_within(super::RECOVERY_TIMEOUT * 6).await;
    test.wait_for_finished(1_000, Duration::from_secs(60)).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_topic_recreated_during_a_pause_is_read_from_its_beginning() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    test.wait_for_finished(500, Duration::from_secs(60)).await;
    let before = test.end_load().await;
    load::assert_verified(&test.names, &before, 0).await;
    let last =
        kafka::committed_offsets(&test.names).await.into_values().max().expect("an offset is committed");
    test.begin_fault();
    // For less than the session timeout: it stays a member, and it never sees that the topic is
    // missing.
    test.consumers[0].signal(Signal::SIGSTOP);
    kafka::delete_recreated_topic(&test.names).await;
    // Nearly each event has its own id, so that a later event does not hide a lost one.
    test.start_load(&["--rate", "1000", "--connections", "16", "--keys", "1000000"]);
    let past_the_old_offsets = || async {
        let ends = kafka::end_offsets(&test.names).await;
        (ends.values().min().is_some_and(|end| *end > last + 100)).then_some(())
    };
    eventually("the end is beyond the old offsets", Duration::from_secs(8), past_the_old_offsets).await;
    test.consumers[0].signal(Signal::SIGCONT);
    test.end_fault_and_resume_within(super::RECOVERY_TIMEOUT * 6).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_unread_events_of_a_deleted_topic_are_reported_as_gone() {
    // So few ids that some have a document before the loss, which a lost event should have changed.
    let load = ["--rate", "200", "--connections", "16", "--keys", "400"];
    let mut test = FaultTest::start_with_load(Setup { load: &load, ..Setup::default() }).await;
    test.consumers[0].signal(Signal::SIGSTOP);
    let accepted = test.producer_counter("accepted").await.expect("a response of the producer");
    let more = || async { (test.producer_counter("accepted").await? >= accepted + 300).then_some(()) };
    eventually("more is accepted", Duration::from_secs(5), more).await;
    let before = test.end_load().await;
    test.begin_fault();
    kafka::delete_recreated_topic(&test.names).await;
    test.start_load(&USUAL_LOAD);
    test.consumers[0].signal(Signal::SIGCONT);
    test.end_fault_and_resume_within(super::RECOVERY_TIMEOUT * 6).await;
    test.wait_for_finished(500, Duration::from_secs(60)).await;

    let report = load::verify(&test.names, &before, &["--wait", "2s"]).await;
    println!("verification of the events before the loss: {report}");
    let count = |name: &str| report[name]["count"].as_u64().expect("a count");
    let others = ["missing", "duplicated", "superseded", "altered", "foreign"].map(count);
    assert_eq!(others, [0; 5], "{report}");
    let without_document = accepted_ids(&before) - report["documents"].as_u64().expect("a count");
    assert!(count("gone") > without_document, "no document lacks a newer event: {report}");
    let named = report["gone"]["examples"][0].as_str().expect("an id");
    assert!(named.starts_with("load-") && named.contains("the topic no longer has"), "{named}");
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

/// The number of distinct ids of accepted events in a ledger.
fn accepted_ids(ledger: &std::path::Path) -> u64 {
    let events = load::ledger_events(ledger);
    let accepted = events.iter().filter(|event| event["answer"] == "accepted");
    accepted.map(|event| event["id"].as_str()).collect::<std::collections::HashSet<_>>().len() as u64
}
