//! A database that is killed, cut off, silent, slow, loses replies, lets nobody in any more, or refuses documents.

use std::time::Duration;

use bson::{Document, doc};
use e2e::proxy::Fault;
use e2e::trial::Setup;
use e2e::trial::servers::{Kept, Wanted, user};
use e2e::{Names, Stack, Trial, eventually, kafka, mongodb};
use serde_json::Value;

use super::{RECOVERY, SILENCE_NOTICED, lasts};

/// In each command that writes events, and in no other.
pub const WRITE: &[u8] = b"\x08ordered\0";

async fn trial() -> Option<Trial> {
    if !Stack::is_apache_kafka() {
        return None;
    }
    Some(Trial::begin(Setup::default()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_that_is_killed_and_started_again_costs_nothing() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let database = Some(Kept { sync_on_commit: true, ..Kept::default() });
    let servers = Wanted { database, ..Wanted::default() };
    let mut trial = Trial::begin(Setup { servers, ..Setup::default() }).await;
    trial.servers.database().kill();
    lasts(5).await;
    trial.servers.database().restart().await.unwrap();
    trial.works_within(RECOVERY).await;
    trial.is_only("mongodb");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_that_is_cut_off_for_30_s_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::Cut);
    lasts(30).await;
    trial.mongodb().set(Fault::None);
    trial.works_within(RECOVERY).await;
    trial.is_only("mongodb");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_whose_network_loses_everything_for_15_s_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::Silent);
    lasts(15).await;
    trial.mongodb().set(Fault::None);
    trial.works_within(RECOVERY).await;
    trial.is_only("mongodb");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_half_open_connections_to_the_database_are_given_up_in_time() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().forget_connections();
    trial.works_within(SILENCE_NOTICED).await;
    trial.nobody_said("kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_writes_whose_replies_are_lost_change_nothing_when_they_are_repeated() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::LosesReplyTo(WRITE));
    lasts(10).await;
    trial.mongodb().set(Fault::None);
    assert!(trial.mongodb().lost_replies() > 10, "{} replies lost", trial.mongodb().lost_replies());
    trial.works_within(RECOVERY).await;
    trial.nobody_said("kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_behind_100_kb_a_second_is_waited_for() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::Slow(100_000));
    lasts(20).await;
    trial.mongodb().set(Fault::None);
    trial.works_within(RECOVERY).await;
    trial.nobody_said("kafka");
    trial.judged(0).await;
}

async fn command(trial: &Trial, command: Document) {
    let admin = mongodb::database(&trial.names).await.client().database("admin");
    admin.run_command(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_credentials_that_are_revoked_and_given_back_cost_nothing() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let database = Some(Kept { log_in: true, ..Kept::default() });
    let servers = Wanted { database, ..Wanted::default() };
    let mut trial = Trial::begin(Setup { servers, ..Setup::default() }).await;
    let user = user();
    let change = |password: &str| doc! { "updateUser": &user.user, "pwd": password };
    command(&trial, change("another")).await;
    // Who is logged in stays so: a new connection needs the password again.
    trial.mongodb().reset_connections();
    eventually("it says that it is refused", Duration::from_secs(15), || async {
        trial.has_said("consumer", "mongodb refuses").then_some(())
    })
    .await;
    lasts(10).await;
    trial.never_said("consumer", &user.password);
    let uri = trial.names.mongodb.replace(&user.password, "another");
    let owner = Names { mongodb: uri, ..trial.names.clone() };
    let admin = mongodb::database(&owner).await.client().database("admin");
    admin.run_command(change(&user.password)).await.unwrap();
    trial.works_within(RECOVERY).await;
    trial.never_said("producer", "mongodb");
    trial.nobody_said("kafka");
    trial.judged(0).await;
}

/// A load whose events each have an id of their own, so that each is a document or a dead letter.
const IDS_OF_THEIR_OWN: [&str; 6] = ["--rate", "200", "--connections", "16", "--keys", "1000000"];

fn accepted(events: &[Value]) -> impl Iterator<Item = &Value> {
    events.iter().filter(|event| event["answer"] == "accepted")
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_collection_that_refuses_every_third_document_refuses_that_and_nothing_else() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let mut trial = Trial::start(Setup::default()).await;
    let validator = doc! { "n": { "$not": { "$mod": [3, 0] } } };
    let create = doc! { "create": "manual", "validator": validator };
    mongodb::database(&trial.names).await.run_command(create).await.unwrap();
    trial.send(&IDS_OF_THEIR_OWN);
    trial.finishes(2_000, Duration::from_secs(60)).await;
    trial.blames_no_server();
    let refused = |event: &&Value| event["n"].as_u64().unwrap().is_multiple_of(3);
    trial.judged_by(async |_, events| accepted(events).filter(refused).count()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_unique_index_of_the_user_s_own_refuses_what_it_holds_already_and_nothing_else() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let mut trial = Trial::start(Setup::default()).await;
    let index = doc! { "key": { "type": 1, "registered_owner": 1 }, "name": "own", "unique": true };
    let create = doc! { "createIndexes": "manual", "indexes": [index] };
    mongodb::database(&trial.names).await.run_command(create).await.unwrap();
    trial.send(&IDS_OF_THEIR_OWN);
    trial.finishes(1_000, Duration::from_secs(60)).await;
    trial.blames_no_server();
    let judgement = trial.judged_by(async |names, events| {
        let (manual, dead) = (mongodb::collection(names, "manual").await, names.dead_letter_topic());
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
