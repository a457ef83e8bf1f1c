//! A record that the server refuses with a code that is in no list: given up only where waiting cannot be the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Bson, Document, doc};

use crate::scripted_server::{Answer, ScriptedServer};
use crate::trial::{SOON, Sent, Trial, event, eventually};
use crate::world;

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

/// How often events were written.
fn inserts(server: &ScriptedServer) -> usize {
    server.commands().iter().filter(|name| *name == "insert").count()
}

async fn trial(server: &ScriptedServer) -> Trial {
    let trial = Trial::on(&world::bootstrap().await, &server.uri, 1);
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
    let member = trial.start(&[]).await;
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
async fn g5_a_refusal_of_everything_is_an_outage_whatever_its_code() {
    let server = refusing(true, CODE_NOBODY_KNOWS).await;
    let trial = trial(&server).await;
    let member = trial.start(&[]).await;
    eventually("many attempts", SOON, async || inserts(&server) > 9).await;
    assert_eq!(member.seen().finished(), 0);
    assert!(member.get("/health").await.1.contains("refused for now"));
    assert_eq!(member.stop().await.dead_lettered, 0);
}

// A router takes the records of the other shards meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn g5_what_a_router_says_of_a_shard_that_is_away_is_an_outage_although_others_are_stored() {
    let away = Arc::new(AtomicBool::new(true));
    let server = refusing_while(Arc::clone(&away), false, NO_PRIMARY_OF_THE_SHARD).await;
    let trial = trial(&server).await;
    let member = trial.start(&[]).await;
    eventually("more attempts than a suspect has", SOON, async || inserts(&server) > 9).await;
    let seen = member.seen();
    assert!(seen.inserted > 0 && seen.dead_lettered == 0, "{seen:?}");
    away.store(false, Ordering::Relaxed);
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (4, 0));
}
