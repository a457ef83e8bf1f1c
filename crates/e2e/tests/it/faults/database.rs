//! A database that is killed, cut off, silent, slow, loses replies, lets nobody in any more, or refuses documents.

use std::time::Duration;

use bson::{Document, doc};
use serde_json::Value;
use testkit::fault_test::Setup;
use testkit::fault_test::servers::{DatabaseSetup, ServerSetup, credentials};
use testkit::proxy::Fault;
use testkit::{FaultTest, Names, eventually, kafka, mongo};

use super::{RECOVERY, SILENCE_NOTICED, lasts};

/// In each command that writes events, and in no other.
pub const WRITE: &[u8] = b"\x08ordered\0";

async fn trial() -> FaultTest {
    FaultTest::start_with_load(Setup::default()).await
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_that_is_killed_and_started_again_costs_nothing() {
    let database = Some(DatabaseSetup { sync_on_commit: true, ..DatabaseSetup::default() });
    let servers = ServerSetup { database, ..ServerSetup::default() };
    let mut trial = FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await;
    trial.servers.database().kill();
    lasts(5).await;
    trial.servers.database().restart().await.unwrap();
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_only_reported("mongodb");
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_that_is_cut_off_for_30_s_costs_nothing() {
    let mut trial = trial().await;
    trial.mongodb().set(Fault::Reset);
    lasts(30).await;
    trial.mongodb().set(Fault::None);
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_only_reported("mongodb");
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_whose_network_loses_everything_for_15_s_costs_nothing() {
    let mut trial = trial().await;
    trial.mongodb().set(Fault::Blackhole);
    lasts(15).await;
    trial.mongodb().set(Fault::None);
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_only_reported("mongodb");
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_half_open_connections_to_the_database_are_given_up_in_time() {
    let mut trial = trial().await;
    trial.mongodb().make_half_open();
    trial.assert_work_resumes_within(SILENCE_NOTICED).await;
    trial.assert_not_reported("kafka");
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_writes_whose_replies_are_lost_change_nothing_when_they_are_repeated() {
    let mut trial = trial().await;
    trial.mongodb().set(Fault::LoseReplyTo(WRITE));
    lasts(10).await;
    trial.mongodb().set(Fault::None);
    assert!(trial.mongodb().lost_replies() > 10, "{} replies lost", trial.mongodb().lost_replies());
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_not_reported("kafka");
    trial.verify_and_end(0).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_behind_100_kb_a_second_is_waited_for() {
    let mut trial = trial().await;
    trial.mongodb().set(Fault::Bandwidth(100_000));
    lasts(20).await;
    trial.mongodb().set(Fault::None);
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_not_reported("kafka");
    trial.verify_and_end(0).await;
}

async fn command(trial: &FaultTest, command: Document) {
    let admin = mongo::database(&trial.names).await.client().database("admin");
    admin.run_command(command).await.unwrap();
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_credentials_that_are_revoked_and_given_back_cost_nothing() {
    let database = Some(DatabaseSetup { authentication: true, ..DatabaseSetup::default() });
    let servers = ServerSetup { database, ..ServerSetup::default() };
    let mut trial = FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await;
    let user = credentials();
    let change = |password: &str| doc! { "updateUser": &user.user, "pwd": password };
    command(&trial, change("another")).await;
    // Who is logged in stays so: a new connection needs the password again.
    trial.mongodb().reset_connections();
    eventually("it says that it is refused", Duration::from_secs(15), || async {
        trial.has_reported("consumer", "mongodb refuses").then_some(())
    })
    .await;
    lasts(10).await;
    trial.assert_never_reported("consumer", &user.password);
    let uri = trial.names.mongodb.replace(&user.password, "another");
    let owner = Names { mongodb: uri, ..trial.names.clone() };
    let admin = mongo::database(&owner).await.client().database("admin");
    admin.run_command(change(&user.password)).await.unwrap();
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_never_reported("producer", "mongodb");
    trial.assert_not_reported("kafka");
    trial.verify_and_end(0).await;
}

/// A load whose events each have an id of their own, so that each is a document or a dead letter.
const IDS_OF_THEIR_OWN: [&str; 6] = ["--rate", "200", "--connections", "16", "--keys", "1000000"];

fn accepted(events: &[Value]) -> impl Iterator<Item = &Value> {
    events.iter().filter(|event| event["answer"] == "accepted")
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_a_collection_that_refuses_every_third_document_refuses_that_and_nothing_else() {
    let mut trial = FaultTest::start(Setup::default()).await;
    let validator = doc! { "n": { "$not": { "$mod": [3, 0] } } };
    let create = doc! { "create": "manual", "validator": validator };
    mongo::database(&trial.names).await.run_command(create).await.unwrap();
    trial.start_load(&IDS_OF_THEIR_OWN);
    trial.wait_for_finished(2_000, Duration::from_secs(60)).await;
    trial.assert_no_server_reported();
    let refused = |event: &&Value| event["n"].as_u64().unwrap().is_multiple_of(3);
    trial.verify_and_end_with(async |_, events| accepted(events).filter(refused).count()).await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g5_a_unique_index_of_the_user_s_own_refuses_what_it_holds_already_and_nothing_else() {
    let mut trial = FaultTest::start(Setup::default()).await;
    let index = doc! { "key": { "type": 1, "registered_owner": 1 }, "name": "own", "unique": true };
    let create = doc! { "createIndexes": "manual", "indexes": [index] };
    mongo::database(&trial.names).await.run_command(create).await.unwrap();
    trial.start_load(&IDS_OF_THEIR_OWN);
    trial.wait_for_finished(1_000, Duration::from_secs(60)).await;
    trial.assert_no_server_reported();
    let judgement = trial.verify_and_end_with(async |names, events| {
        let (manual, dead) = (mongo::collection(names, "manual").await, names.dead_letter_topic());
        let refused = async || {
            let stored = manual.count_documents(doc! {}).await.ok()? as usize;
            let letters = kafka::read_all(names, &dead).await.len();
            (stored + letters == accepted(events).count()).then_some(letters)
        };
        eventually("each event is a document or a dead letter", Duration::from_secs(60), refused).await
    });
    // Five types of five owners, and the hostile ones, which have neither.
    assert_eq!(judgement.await["documents"], 26);
}
