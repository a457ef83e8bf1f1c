//! A record that the server refuses with a code that is in no list: dead-lettered only where
//! waiting cannot be the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};

use crate::trial::{Member, SOON, Sent, Trial, event, eventually};
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write};
use testkit::servers::shared_broker;

const WIRE_VERSION_7_0: i32 = 21;
const CODE_NOBODY_KNOWS: i32 = 987_654;
const NO_PRIMARY_OF_THE_SHARD: i32 = 133;

/// A server that refuses the documents with `bad: true` with `code`, each by itself, and where `all` every other one too.
async fn refusing(all: bool, code: i32) -> ScriptedServer {
    refusing_while(Arc::new(AtomicBool::new(true)), all, code).await
}

/// The same as long as `refuses`.
async fn refusing_while(refuses: Arc<AtomicBool>, all: bool, code: i32) -> ScriptedServer {
    let script = move |command: &Document| {
        let Ok(documents) = command.get_array("documents") else { return Answer::Usual };
        if !refuses.load(Ordering::Relaxed) {
            return Answer::Usual;
        }
        let is_bad =
            |document: &Bson| document.as_document().is_some_and(|d| d.get_bool("bad").unwrap_or(false));
        let refused = documents.iter().enumerate().filter(|(_, document)| all || is_bad(document));
        let errors = refused.map(|(index, _)| {
            doc! { "index": index as i32, "code": code, "errmsg": "not this one" }
        });
        let errors: Vec<Document> = errors.collect();
        Answer::Reply(doc! { "ok": 1, "n": (documents.len() - errors.len()) as i32, "writeErrors": errors })
    };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
}

/// A server that refuses each command with a `bad: true` document in it, and where `all` every
/// write.
async fn refusing_commands(all: bool, code: i32) -> ScriptedServer {
    let refused = doc! { "ok": 0, "code": code, "codeName": "BadValue", "errmsg": "not this one" };
    let script = move |command: &Document| {
        let bad = command.to_string().contains(r#""bad": true"#);
        let refuses = if all { is_write(command) } else { bad };
        if refuses { Answer::Reply(refused.clone()) } else { Answer::Usual }
    };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
}

/// A consumer that waits for the escape less long than a real one.
async fn start(trial: &Trial, grace: Duration) -> Member {
    trial.start_with(&[], |config| config.unlisted_grace = grace).await
}

/// How often events were written.
fn inserts(server: &ScriptedServer) -> usize {
    server.commands().iter().filter(|name| *name == "insert").count()
}

async fn trial(server: &ScriptedServer) -> Trial {
    let trial = Trial::on(&shared_broker().await.bootstrap(), &server.uri, 1);
    trial.make_topic(&trial.topic, 1, &[]).await;
    for (id, bad) in [("a", false), ("b", true), ("c", false), ("d", true)] {
        trial.send(Sent::new(id, &event(id, 1, &format!(r#"{{"bad":{bad}}}"#)))).await;
    }
    trial
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_refusal_that_nobody_knows_is_a_dead_letter_after_five_times_alone_while_others_are_stored() {
    let server = refusing(false, CODE_NOBODY_KNOWS).await;
    let trial = trial(&server).await;
    let member = start(&trial, Duration::ZERO).await;
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (2, 2));
    let inserts = inserts(&server);
    assert!(inserts >= 11, "one batch and five attempts for each of two, not {inserts}");
    let letters = trial.dead_letters().await;
    assert_eq!(letters.len(), 2);
    for letter in letters {
        let headers = rdkafka::Message::headers(&letter).unwrap();
        let value = |key: &str| {
            let header = rdkafka::message::Headers::iter(headers).find(|header| header.key == key).unwrap();
            String::from_utf8(header.value.unwrap().to_vec()).unwrap()
        };
        assert_eq!(value("__connect.errors.exception.class.name"), "Location987654");
        assert!(value("__connect.errors.exception.message").contains("not this one"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_refused_record_waits_for_the_grace_however_often_it_is_refused() {
    let server = refusing(false, CODE_NOBODY_KNOWS).await;
    let trial = trial(&server).await;
    let (started, grace) = (Instant::now(), Duration::from_secs(8));
    let member = start(&trial, grace).await;
    eventually("the good ones", SOON, async || member.seen().inserted == 2).await;
    let first_refusal = Instant::now();
    eventually("the first dead letter", SOON, async || member.seen().dead_lettered > 0).await;
    assert!(started.elapsed() >= grace && inserts(&server) > 6);
    // The second was refused for as long.
    eventually("the second", grace, async || member.seen().dead_lettered == 2).await;
    assert!(first_refusal.elapsed() < grace * 2);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_refused_record_that_is_all_there_is_becomes_a_dead_letter() {
    // One partition, one record: nothing else is stored, so only a write of ours can tell.
    for of_the_command in [false, true] {
        let server = match of_the_command {
            true => refusing_commands(false, 2).await,
            false => refusing(false, CODE_NOBODY_KNOWS).await,
        };
        let trial = Trial::on(&shared_broker().await.bootstrap(), &server.uri, 1);
        trial.make_topic(&trial.topic, 1, &[]).await;
        trial.send(Sent::new("b", &event("b", 1, r#"{"bad":true}"#))).await;
        let change = |config: &mut consumer::Config| config.unlisted_grace = Duration::from_millis(300);
        let member = trial.start_with(&[("BATCH_MAX_RECORDS", "1")], change).await;
        eventually("a dead letter", SOON, async || member.seen().dead_lettered == 1).await;
        trial.send(Sent::new("c", &event("c", 1, r#"{"bad":false}"#))).await;
        member.finishes(2).await;
        assert_eq!(member.stop().await.inserted, 1);
        assert!(inserts(&server) >= 6);
        let probes = server.sent().into_iter().filter(|command| command.contains_key("update")).count();
        assert!(probes >= 1, "the server is asked whether it takes writes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_records_beside_one_that_fails_the_whole_command_are_stored_at_once() {
    let server = refusing_commands(false, 2).await;
    let trial = trial(&server).await;
    let member = start(&trial, Duration::from_secs(3)).await;
    eventually("the good ones", SOON, async || member.seen().inserted == 2).await;
    assert_eq!(member.seen().dead_lettered, 0);
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (2, 2));
    for letter in trial.dead_letters().await {
        let headers = rdkafka::Message::headers(&letter).unwrap();
        let class = rdkafka::message::Headers::iter(headers)
            .find(|header| header.key == "__connect.errors.exception.class.name");
        assert_eq!(class.unwrap().value, Some(&b"BadValue"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_refusal_of_everything_is_an_outage_whatever_its_code() {
    for server in [refusing_commands(true, 2).await, refusing_commands(true, 96).await] {
        let trial = trial(&server).await;
        let member = start(&trial, Duration::ZERO).await;
        eventually("many attempts", SOON, async || inserts(&server) > 9).await;
        assert_eq!(member.seen().finished(), 0);
        assert!(member.get("/health").await.1.contains("refused"));
        assert_eq!(member.stop().await.dead_lettered, 0);
    }
}

// A router takes the records of the other shards meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn g5_what_a_router_says_of_a_shard_that_is_away_is_an_outage_although_others_are_stored() {
    let away = Arc::new(AtomicBool::new(true));
    let server = refusing_while(Arc::clone(&away), false, NO_PRIMARY_OF_THE_SHARD).await;
    let trial = trial(&server).await;
    let member = start(&trial, Duration::ZERO).await;
    eventually("more attempts than a suspect has", SOON, async || inserts(&server) > 9).await;
    let seen = member.seen();
    assert!(seen.inserted > 0 && seen.dead_lettered == 0, "{seen:?}");
    away.store(false, Ordering::Relaxed);
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (4, 0));
}
