//! A user without a right that deletes need: the records that need it wait, others do
//! not, and `/readyz` has the remedy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use devservers::{Credentials, Database, DatabaseOptions, Progress};
use mongodb::Client;
use testkit::SourcesFile;
use testkit::scripted_mongodb::{Answer, ScriptedServer};
use testkit::servers::shared_broker;

use crate::trial::{Member, SOON, Sent, Trial, event, eventually};

const WIRE_VERSION_7_0: i32 = 21;
const FILE: &str = "
sources:
  orders: {push: {}, event: {id: /no}, delete: {}}
  parts: {push: {}, event: {id: /no}}
";

/// A topic of three partitions with an event of `parts`, a delete of `orders`, and events of
/// `orders`.
async fn trial(uri: &str) -> Trial {
    let trial = Trial::on(&shared_broker().await.bootstrap(), uri, 3);
    trial.make_topic(&trial.topic, 3, &[]).await;
    let delete =
        r#"{"id":"a","timestamp":2,"source":"orders","op":"delete","ingested_at":2,"api_version":"1"}"#;
    let of = |source: &str| event("b", 1, "{}").replace("adsbdb", source);
    for (partition, value) in [(0, of("parts")), (1, delete.to_owned()), (2, of("orders"))] {
        trial.send(Sent { partition, ..Sent::new("k", &value) }).await;
    }
    trial
}

/// Waits until `finished` records are finished and `/readyz` asks for the right, and stays so.
async fn waits_for_right(member: &Member, finished: u64, command: &str, collection: &str) -> String {
    let named = format!(
        "collection {collection}: writes are paused: the user of MONGODB_URI may not send {command} to it"
    );
    eventually("the remedy", SOON, async || {
        let (status, body) = member.get("/readyz").await;
        status == 503
            && body.contains(&named)
            && body.contains("Grant the user the role readWrite on the database")
    })
    .await;
    eventually("other records", SOON, async || member.seen().finished() == finished).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (status, body) = member.get("/readyz").await;
    assert!(status == 503 && body.contains(&named), "{body}");
    assert!(!body.contains("mongodb cannot be used"), "the server is usable: {body}");
    let seen = member.seen();
    assert_eq!((seen.finished(), seen.dead_lettered), (finished, 0), "{seen:?}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_right_on_tombstones_only_records_that_need_it_wait() {
    for (denied, finished) in [("update", 2), ("find", 1)] {
        let denies = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&denies);
        let script = move |command: &Document| {
            let (name, collection) = command.iter().next().expect("a command");
            let is_denied = name == denied && collection.as_str() == Some("orders.deletes");
            let tombstone = doc! { "_id": "a", "event_timestamp": 2_i64, "ingested_at": 2_i64 };
            match name.as_str() {
                _ if is_denied && still.load(Ordering::SeqCst) => Answer::Reply(doc! {
                    "ok": 0, "code": 13, "codeName": "Unauthorized",
                    "errmsg": "not authorized on d to execute command { secret: 1 }",
                }),
                "find"
                    if command.to_string().contains(r#""a""#)
                        && collection.as_str() == Some("orders.deletes") =>
                {
                    Answer::Reply(testkit::scripted_mongodb::batch(vec![tombstone]))
                }
                _ => Answer::Usual,
            }
        };
        let server = ScriptedServer::start(WIRE_VERSION_7_0, script).await;
        let trial = trial(&server.uri).await;
        let file = SourcesFile::new(FILE);
        let member = trial.start(&[("SOURCES_FILE", &file.path())]).await;
        let body = waits_for_right(&member, finished, denied, "orders.deletes").await;
        assert!(!body.contains("secret"), "the command is not quoted: {body}");
        denies.store(false, Ordering::SeqCst);
        member.finishes(3).await;
        member.becomes_ready().await;
        let seen = member.stop().await;
        assert_eq!((seen.deleted, seen.inserted, seen.dead_lettered), (1, 2, 0), "{denied}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delete_of_a_user_who_may_not_remove_documents_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let auth = Some(Credentials { user: "admin".into(), password: "s3cret".into() });
    let options = DatabaseOptions { auth, ..DatabaseOptions::new(folder.path().join("mongodb")) };
    let database = Database::start(options, Progress::silent()).await.expect("a database");
    let admin = Client::with_uri_str(database.uri()).await.expect("a client").database("admin");
    let own = trial(&database.uri()).await;
    // The bundled database has rights on databases, not on collections.
    let actions =
        ["find", "insert", "update", "createIndex", "createCollection", "listIndexes", "listCollections"];
    let actions: Vec<&str> = actions.into();
    let resource = doc! { "db": &own.database, "collection": "" };
    let privileges = vec![doc! { "resource": resource, "actions": actions }];
    let document = doc! { "event_id": "a", "event_timestamp": 1_i64, "ingested_at": 1_i64 };
    own.collection("orders").await.insert_one(document).await.expect("inserted");
    admin
        .run_command(doc! { "createRole": "limited", "privileges": privileges, "roles": [] })
        .await
        .expect("a role");
    let user = doc! { "createUser": "consumer", "pwd": "pass", "roles": ["limited"] };
    admin.run_command(user).await.expect("a user");
    let uri = database.uri().replace("admin:s3cret@", "consumer:pass@");
    let limited = Trial {
        uri,
        producer: own.producer.clone(),
        bootstrap: own.bootstrap.clone(),
        topic: own.topic.clone(),
        group: own.group.clone(),
        database: own.database.clone(),
        partitions: own.partitions,
    };
    let file = SourcesFile::new(FILE);
    let member = limited.start(&[("SOURCES_FILE", &file.path())]).await;
    waits_for_right(&member, 2, "delete", "orders").await;
    let seen = member.stop().await;
    assert_eq!((seen.deleted, seen.inserted, seen.dead_lettered), (0, 2, 0), "{seen:?}");
    let tombstones = own.collection("orders.deletes").await.count_documents(doc! { "_id": "a" }).await;
    assert_eq!(tombstones.expect("a number"), 1);
}
