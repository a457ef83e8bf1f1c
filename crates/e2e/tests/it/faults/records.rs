//! Records that cannot be stored, events that come in the worst order, and a topic whose limits change.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use testkit::fault_test::servers::ServerSetup;
use testkit::fault_test::{Setup, USUAL_LOAD};
use testkit::proxy::Fault;
use testkit::{FaultTest, eventually, http, kafka, load, mongo};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_a_flood_of_20_000_poison_records_delays_the_others_and_harms_none() {
    let trial = FaultTest::start_with_load(Setup::default()).await;
    let run = trial.load_id_prefix().await;
    let poison = (0..20_000).map(|n| (format!("{run}-poison-{n}"), format!("{{\"n\": {n}, no json")));
    kafka::produce_by_key(&trial.names, poison).await;
    trial.wait_for_finished(20_000, Duration::from_secs(120)).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(20_000).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_of_a_thousand_events_of_one_key_in_any_order_the_newest_is_stored() {
    let trial = FaultTest::start(Setup::default()).await;
    // The first write takes so long that everything else is the next batch.
    trial.mongodb().set(Fault::Latency(Duration::from_millis(500)));
    let mut timestamps: Vec<i64> = (1..=1_000).map(|n| 1_700_000_000_000 + n).collect();
    fastrand::shuffle(&mut timestamps);
    let event = |at: &i64| json!({"id": "one", "source": "manual", "timestamp": at, "payload": {"at": at}});
    let batch: Vec<_> = timestamps.iter().map(event).collect();
    let answer = http::post(&trial.producer().url("/ingest/batch"), &json!(batch)).await.unwrap();
    assert_eq!((answer.status, &answer.body["accepted"]), (202, &json!(1_000)), "{answer:?}");
    trial.mongodb().set(Fault::None);
    // One more record than these was finished at the start.
    let all = || async { (trial.finished().await? > 1_000).then_some(()) };
    eventually("all are finished", Duration::from_secs(60), all).await;
    let manual = mongo::collection(&trial.names, "manual").await;
    let stored = mongo::find(&manual, "one").await.expect("a document");
    let newest = 1_700_000_001_000_i64;
    let told = ["event_timestamp", "at"].map(|field| stored.get_i64(field).unwrap());
    assert_eq!(told, [newest; 2]);
    assert!(kafka::read_all(&trial.names, &trial.names.dead_letter_topic()).await.is_empty());
    trial.assert_never_reported("consumer", "kafka");
    trial.assert_never_reported("producer", "kafka");
    trial.end().await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g4_a_topic_whose_message_size_is_lowered_below_what_is_queued_refuses_that_and_nothing_else() {
    let load = ["--rate", "400", "--connections", "8", "--batch", "50", "--keys", "1000", "--hostile", "10%"];
    let servers = ServerSetup { broker: true, ..ServerSetup::default() };
    let mut trial = FaultTest::start_with_load(Setup { servers, load: &load, ..Setup::default() }).await;
    // With answers so late the events queue up in the producer, large ones and small ones in one request.
    trial.kafka().set(Fault::Latency(Duration::from_millis(500)));
    let queued = || async { (trial.producer_counter("kafka_queue_records").await? > 100).then_some(()) };
    eventually("events are queued", Duration::from_secs(20), queued).await;
    kafka::set_topic_config(&trial.names, "max.message.bytes", "5000").await;
    trial.kafka().set(Fault::None);
    trial.wait_for_finished(2_000, Duration::from_secs(60)).await;
    let refused = trial.producer_counter("rejected").await.expect("the producer answers");
    kafka::set_topic_config(&trial.names, "max.message.bytes", "1048588").await;
    assert!(refused > 0, "none was too large");
    trial.assert_work_resumes_within(super::RECOVERY).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_a_topic_that_is_deleted_is_made_again_and_what_is_accepted_from_then_on_is_stored() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    trial.wait_for_finished(2_000, Duration::from_secs(60)).await;
    let before = trial.end_load().await;
    load::assert_verified(&trial.names, &before, 0).await;
    trial.begin_fault();
    kafka::delete_recreated_topic(&trial.names).await;
    trial.start_load(&USUAL_LOAD);
    trial.end_fault_and_resume_within(super::RECOVERY * 6).await;
    trial.wait_for_finished(1_000, Duration::from_secs(60)).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_a_topic_that_is_made_anew_behind_the_consumer_s_back_is_read_from_its_beginning() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    trial.wait_for_finished(500, Duration::from_secs(60)).await;
    let before = trial.end_load().await;
    load::assert_verified(&trial.names, &before, 0).await;
    let last =
        kafka::committed_offsets(&trial.names).await.into_values().max().expect("an offset is committed");
    trial.begin_fault();
    // For less than the session: the group still counts on it, and it never sees the topic missing.
    trial.consumers[0].signal(Signal::SIGSTOP);
    kafka::delete_recreated_topic(&trial.names).await;
    // Each event has an id of its own: a later one does not hide that an earlier one is missing.
    trial.start_load(&["--rate", "1000", "--connections", "16", "--keys", "1000000"]);
    let past_the_old_offsets = || async {
        let ends = kafka::end_offsets(&trial.names).await;
        (ends.values().min().is_some_and(|end| *end > last + 100)).then_some(())
    };
    eventually("there is more than was read before", Duration::from_secs(8), past_the_old_offsets).await;
    trial.consumers[0].signal(Signal::SIGCONT);
    trial.end_fault_and_resume_within(super::RECOVERY * 6).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_what_was_not_consumed_when_its_topic_was_deleted_is_named_as_gone() {
    // So few ids that some have a document by then, which a lost event should have changed.
    let load = ["--rate", "200", "--connections", "16", "--keys", "400"];
    let mut trial = FaultTest::start_with_load(Setup { load: &load, ..Setup::default() }).await;
    trial.consumers[0].signal(Signal::SIGSTOP);
    let accepted = trial.producer_counter("accepted").await.expect("the producer answers");
    let more = || async { (trial.producer_counter("accepted").await? >= accepted + 300).then_some(()) };
    eventually("more is accepted", Duration::from_secs(5), more).await;
    let before = trial.end_load().await;
    trial.begin_fault();
    kafka::delete_recreated_topic(&trial.names).await;
    trial.start_load(&USUAL_LOAD);
    trial.consumers[0].signal(Signal::SIGCONT);
    trial.end_fault_and_resume_within(super::RECOVERY * 6).await;
    trial.wait_for_finished(500, Duration::from_secs(60)).await;

    let judgement = load::verify(&trial.names, &before, &["--wait", "2s"]).await;
    println!("judgement of what was sent before: {judgement}");
    let count = |name: &str| judgement[name]["count"].as_u64().expect("a count");
    let others = ["missing", "duplicated", "stale", "altered", "foreign"].map(count);
    assert_eq!(others, [0; 5], "{judgement}");
    let without_document = accepted_ids(&before) - judgement["documents"].as_u64().expect("a count");
    assert!(count("gone") > without_document, "no document lacks a newer event: {judgement}");
    let named = judgement["gone"]["examples"][0].as_str().expect("an id");
    assert!(named.starts_with("load-") && named.contains("not on the topic any more"), "{named}");
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}

/// How many ids the ledger's accepted events have.
fn accepted_ids(ledger: &std::path::Path) -> u64 {
    let events = load::ledger_events(ledger);
    let accepted = events.iter().filter(|event| event["answer"] == "accepted");
    accepted.map(|event| event["id"].as_str()).collect::<std::collections::HashSet<_>>().len() as u64
}
