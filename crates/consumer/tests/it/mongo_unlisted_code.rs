//! A record that the server rejects with an unlisted code is dead-lettered only if a retry cannot
//! help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};

use crate::trial::{Member, SOON, Sent, Trial, event, eventually};
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write};
use testkit::servers::shared_broker;

const WIRE_VERSION_7_0: i32 = 21;
const UNLISTED_CODE: i32 = 987_654;
const FAILED_TO_SATISFY_READ_PREFERENCE: i32 = 133;

/// A server that rejects documents with `bad: true` with `code`, each with its own error, and with
/// `all` every document.
async fn rejecting(all: bool, code: i32) -> ScriptedServer {
    rejecting_while(Arc::new(AtomicBool::new(true)), all, code).await
}

/// As [`rejecting`], while `rejects` is true.
async fn rejecting_while(rejects: Arc<AtomicBool>, all: bool, code: i32) -> ScriptedServer {
    let script = move |command: &Document| {
        let Ok(documents) = command.get_array("documents") else { return Answer::Usual };
        if !rejects.load(Ordering::Relaxed) {
            return Answer::Usual;
        }
        let is_bad =
            |document: &Bson| document.as_document().is_some_and(|d| d.get_bool("bad").unwrap_or(false));
        let rejected_reply = documents.iter().enumerate().filter(|(_, document)| all || is_bad(document));
        let errors = rejected_reply.map(|(index, _)| {
            doc! { "index": index as i32, "code": code, "errmsg": "not this one" }
        });
        let errors: Vec<Document> = errors.collect();
        Answer::Reply(doc! { "ok": 1, "n": (documents.len() - errors.len()) as i32, "writeErrors": errors })
    };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
}

/// A server that rejects each command with a `bad: true` document, and with `all` every write.
async fn rejecting_commands(all: bool, code: i32) -> ScriptedServer {
    let rejected_reply = doc! { "ok": 0, "code": code, "codeName": "BadValue", "errmsg": "not this one" };
    let script = move |command: &Document| {
        let bad = command.to_string().contains(r#""bad": true"#);
        let rejects = if all { is_write(command) } else { bad };
        if rejects { Answer::Reply(rejected_reply.clone()) } else { Answer::Usual }
    };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
}

/// A consumer with a shorter grace period than in production.
async fn start(trial: &Trial, grace: Duration) -> Member {
    trial.start_with(&[], |config| config.unlisted_grace = grace).await
}

/// The number of insert commands.
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
async fn g5_an_unlisted_code_is_dead_lettered_after_five_rejections_alone() {
    let server = rejecting(false, UNLISTED_CODE).await;
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
async fn g5_a_rejected_record_waits_for_the_grace_period() {
    let server = rejecting(false, UNLISTED_CODE).await;
    let trial = trial(&server).await;
    let (started, grace) = (Instant::now(), Duration::from_secs(8));
    let member = start(&trial, grace).await;
    eventually("the valid records", SOON, async || member.seen().inserted == 2).await;
    let first_rejection = Instant::now();
    eventually("the first dead letter", SOON, async || member.seen().dead_lettered > 0).await;
    assert!(started.elapsed() >= grace && inserts(&server) > 6);
    // The second record was rejected for as long.
    eventually("the second", grace, async || member.seen().dead_lettered == 2).await;
    assert!(first_rejection.elapsed() < grace * 2);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_the_only_record_with_an_unlisted_code_is_dead_lettered() {
    // One partition and one record: no other event is stored, so only a probe shows that the server
    // accepts writes.
    for of_the_command in [false, true] {
        let server = match of_the_command {
            true => rejecting_commands(false, 2).await,
            false => rejecting(false, UNLISTED_CODE).await,
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
        assert!(probes >= 1, "a probe was sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_records_beside_one_that_fails_the_command_are_stored_at_once() {
    let server = rejecting_commands(false, 2).await;
    let trial = trial(&server).await;
    let member = start(&trial, Duration::from_secs(3)).await;
    eventually("the valid records", SOON, async || member.seen().inserted == 2).await;
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
async fn g5_a_rejection_of_everything_is_an_outage_whatever_its_code() {
    for server in [rejecting_commands(true, 2).await, rejecting_commands(true, 96).await] {
        let trial = trial(&server).await;
        let member = start(&trial, Duration::ZERO).await;
        eventually("many attempts", SOON, async || inserts(&server) > 9).await;
        assert_eq!(member.seen().finished(), 0);
        assert!(member.get("/health").await.1.contains("the server rejected a "));
        assert_eq!(member.stop().await.dead_lettered, 0);
    }
}

// The router stores the records of the other shards meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn g5_a_router_s_error_for_an_unavailable_shard_is_an_outage() {
    let away = Arc::new(AtomicBool::new(true));
    let server = rejecting_while(Arc::clone(&away), false, FAILED_TO_SATISFY_READ_PREFERENCE).await;
    let trial = trial(&server).await;
    let member = start(&trial, Duration::ZERO).await;
    eventually("more attempts than an unlisted code gets", SOON, async || inserts(&server) > 9).await;
    let seen = member.seen();
    assert!(seen.inserted > 0 && seen.dead_lettered == 0, "{seen:?}");
    away.store(false, Ordering::Relaxed);
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (4, 0));
}
