//! A record that the server refuses with a code that is in no list: given up only where waiting cannot be the answer.

use bson::{Bson, Document, doc};

use crate::scripted_server::{Answer, ScriptedServer};
use crate::trial::{SOON, Sent, Trial, event, eventually};
use crate::world;

const WIRE_VERSION_7_0: i32 = 21;
const CODE_NOBODY_KNOWS: i32 = 987_654;

/// A server that refuses the documents with `bad: true`, each by itself, and where `all` every other one too.
async fn refusing(all: bool) -> ScriptedServer {
    let script = move |command: &Document| {
        let Ok(documents) = command.get_array("documents") else { return Answer::Usual };
        let is_bad =
            |document: &Bson| document.as_document().is_some_and(|d| d.get_bool("bad").unwrap_or(false));
        let refused = documents.iter().enumerate().filter(|(_, document)| all || is_bad(document));
        let errors = refused.map(|(index, _)| {
            doc! { "index": index as i32, "code": CODE_NOBODY_KNOWS, "errmsg": "not this one" }
        });
        let errors: Vec<Document> = errors.collect();
        Answer::Reply(doc! { "ok": 1, "n": (documents.len() - errors.len()) as i32, "writeErrors": errors })
    };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
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
    let server = refusing(false).await;
    let trial = trial(&server).await;
    let member = trial.start(&[]).await;
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.inserted, counted.dead_lettered), (2, 2));
    let inserts = server.commands().into_iter().filter(|name| name == "insert").count();
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
    let server = refusing(true).await;
    let trial = trial(&server).await;
    let member = trial.start(&[]).await;
    eventually("many attempts", SOON, async || {
        server.commands().iter().filter(|name| *name == "insert").count() > 9
    })
    .await;
    assert_eq!(member.seen().finished(), 0);
    assert!(member.get("/health").await.1.contains("refused for now"));
    assert_eq!(member.stop().await.dead_lettered, 0);
}
