//! A MongoDB server that is killed, unreachable, slow, loses replies, rejects the login, or rejects
//! documents.

use std::time::Duration;

use bson::{Document, doc};
use serde_json::Value;
use testkit::fault_test::Setup;
use testkit::fault_test::{DatabaseSetup, ServerSetup, credentials};
use testkit::proxy::Fault;
use testkit::{FaultTest, Names, eventually, kafka, mongo};

use super::{OUTAGE, RECOVERY_TIMEOUT, SILENCE_TIMEOUT, wait_seconds};

/// A field that each command with events has, and no other command.
pub const WRITE: &[u8] = b"\x08ordered\0";

async fn fault_test() -> FaultTest {
    FaultTest::start_with_load(Setup::default()).await
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_killed_and_restarted_no_event_is_lost() {
    let database = Some(DatabaseSetup { sync_on_commit: true, ..DatabaseSetup::default() });
    let servers = ServerSetup { database, ..ServerSetup::default() };
    let mut test = FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await;
    test.servers.database().kill();
    wait_seconds(5).await;
    test.servers.database().restart().await.unwrap();
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_only_reported("mongodb");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_connections_reset_for_15_s_no_event_is_lost() {
    let mut test = fault_test().await;
    test.mongodb().set(Fault::Reset);
    tokio::time::sleep(OUTAGE).await;
    test.mongodb().set(Fault::None);
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_only_reported("mongodb");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_network_drops_all_data_for_15_s_no_event_is_lost() {
    let mut test = fault_test().await;
    test.mongodb().set(Fault::Blackhole);
    tokio::time::sleep(OUTAGE).await;
    test.mongodb().set(Fault::None);
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_only_reported("mongodb");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_half_open_mongodb_connections_are_replaced_within_10_s() {
    let mut test = fault_test().await;
    test.mongodb().make_half_open();
    test.assert_work_resumes_within(SILENCE_TIMEOUT).await;
    test.assert_not_reported("kafka");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_writes_repeated_after_lost_replies_change_nothing() {
    let mut test = fault_test().await;
    test.mongodb().set(Fault::LoseReplyTo(WRITE));
    wait_seconds(10).await;
    test.mongodb().set(Fault::None);
    assert!(test.mongodb().lost_replies() > 10, "{} replies lost", test.mongodb().lost_replies());
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_not_reported("kafka");
    test.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_bandwidth_of_100_kb_per_second_no_event_is_lost() {
    let mut test = fault_test().await;
    test.mongodb().set(Fault::Bandwidth(100_000));
    wait_seconds(20).await;
    test.mongodb().set(Fault::None);
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_not_reported("kafka");
    test.verify_and_end(0).await;
}

async fn command(test: &FaultTest, command: Document) {
    let admin = mongo::database(&test.names).await.client().database("admin");
    admin.run_command(command).await.unwrap();
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_credentials_revoked_and_restored_no_event_is_lost() {
    let database = Some(DatabaseSetup { authentication: true, ..DatabaseSetup::default() });
    let servers = ServerSetup { database, ..ServerSetup::default() };
    let mut test = FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await;
    let user = credentials();
    let change = |password: &str| doc! { "updateUser": &user.user, "pwd": password };
    command(&test, change("another")).await;
    // Open connections stay authenticated. A new connection needs the password.
    test.mongodb().reset_connections();
    eventually("the consumer reports the rejected login", Duration::from_secs(15), || async {
        test.has_reported("consumer", "mongodb cannot be used").then_some(())
    })
    .await;
    wait_seconds(10).await;
    test.assert_never_reported("consumer", &user.password);
    let uri = test.names.mongodb.replace(&user.password, "another");
    let admin_names = Names { mongodb: uri, ..test.names.clone() };
    let admin = mongo::database(&admin_names).await.client().database("admin");
    admin.run_command(change(&user.password)).await.unwrap();
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_never_reported("producer", "mongodb");
    test.assert_not_reported("kafka");
    test.verify_and_end(0).await;
}

/// A load in which nearly each event has its own id, so that each becomes a document or a dead
/// letter.
const DISTINCT_IDS: [&str; 6] = ["--rate", "200", "--connections", "16", "--keys", "1000000"];

fn accepted(events: &[Value]) -> impl Iterator<Item = &Value> {
    events.iter().filter(|event| event["answer"] == "accepted")
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_validator_rejections_are_dead_lettered_all_others_stored() {
    let mut test = FaultTest::start(Setup { deletes: Some(false), ..Setup::default() }).await;
    let validator = doc! { "n": { "$not": { "$mod": [3, 0] } } };
    let create = doc! { "create": "manual", "validator": validator };
    mongo::database(&test.names).await.run_command(create).await.unwrap();
    test.start_load(&DISTINCT_IDS);
    test.wait_for_finished(2_000, Duration::from_secs(60)).await;
    test.assert_no_server_reported();
    let rejected = |event: &&Value| event["n"].as_u64().unwrap().is_multiple_of(3);
    test.verify_and_end_with(async |_, events| accepted(events).filter(rejected).count()).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_duplicates_of_a_user_index_are_dead_lettered_all_others_stored() {
    let mut test = FaultTest::start(Setup { deletes: Some(false), ..Setup::default() }).await;
    let index = doc! { "key": { "type": 1, "registered_owner": 1 }, "name": "own", "unique": true };
    let create = doc! { "createIndexes": "manual", "indexes": [index] };
    mongo::database(&test.names).await.run_command(create).await.unwrap();
    test.start_load(&DISTINCT_IDS);
    test.wait_for_finished(1_000, Duration::from_secs(60)).await;
    test.assert_no_server_reported();
    let report = test.verify_and_end_with(async |names, events| {
        let (manual, dead) = (mongo::collection(names, "manual").await, names.dead_letter_topic());
        let dead_letters = async || {
            let stored = manual.count_documents(doc! {}).await.ok()? as usize;
            let letters = kafka::read_all(names, &dead).await.len();
            (stored + letters == accepted(events).count()).then_some(letters)
        };
        eventually("each event is a document or a dead letter", Duration::from_secs(60), dead_letters).await
    });
    // Five types by five owners, and one document of the hostile events, which have neither field.
    assert_eq!(report.await["documents"], 26);
}
