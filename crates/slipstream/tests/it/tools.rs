//! Tests of the commands that only read: their MongoDB commands, and their output without servers
//! or with a closed pipe.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use bson::{Document, doc};
use serde_json::Value;
use tokio::process::Command;

use testkit::scripted_mongodb::{Answer, ScriptedServer, batch, error as error_reply};

/// An address without a listener.
fn unused_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn command(environment: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipstream"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).kill_on_drop(true);
    command
}

/// A primary of a replica set. Where `script` returns nothing, cursors are empty and writes change nothing.
async fn start(script: impl Fn(&Document) -> Option<Document> + Send + Sync + 'static) -> ScriptedServer {
    let usual = |command: &Document| match command.keys().next().map(String::as_str) {
        Some("find" | "aggregate" | "listIndexes") => batch(Vec::new()),
        _ => doc! { "ok": 1, "n": 0, "nModified": 0 },
    };
    let script = move |command: &Document| Answer::Reply(script(command).unwrap_or_else(|| usual(command)));
    ScriptedServer::start_replica_set(21, script).await
}

async fn run(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    command(environment, arguments).output().await.unwrap()
}

/// The findings of `check` with Kafka unavailable.
async fn check(server: &ScriptedServer) -> Vec<Value> {
    let (uri, kafka) = (format!("mongodb://{}/?replicaSet=rs", server.address), unused_address());
    let environment =
        [("MONGODB_URI", uri.as_str()), ("KAFKA_BROKER", &kafka), ("ADSBDB_BASE_URL", "http://127.0.0.1:9")];
    let output = run(&environment, &["check", "--json"]).await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    json["findings"].as_array().unwrap().clone()
}

fn finding<'a>(findings: &'a [Value], subject: &str) -> &'a Value {
    let found = findings.iter().find(|finding| finding["subject"].as_str().unwrap().starts_with(subject));
    found.unwrap_or_else(|| panic!("{subject} in {findings:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_use_the_primary_and_majority_whatever_the_uri_sets() {
    let server = start(|_| None).await;
    let uri = format!(
        "mongodb://{}/?replicaSet=rs&readPreference=secondary&readConcernLevel=local&serverSelectionTimeoutMS=2000",
        server.address
    );
    let output = run(&[("MONGODB_URI", &uri)], &["dedupe"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let reads = server.commands_named("aggregate");
    assert!(!reads.is_empty());
    for read in reads {
        assert_eq!(read.get_document("readConcern").unwrap(), &doc! { "level": "majority" }, "{read}");
        let preference = read.get_document("$readPreference").ok();
        assert!(preference.is_none_or(|it| it.get_str("mode").unwrap().starts_with("primary")), "{read}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_update_is_checked_with_an_update_without_a_match() {
    let server = start(|command| {
        // The reply of a 5.0 or 6.0 router for a collection with another shard key.
        command
            .contains_key("findAndModify")
            .then(|| error_reply(61, "Query for sharded findAndModify must contain the shard key"))
    })
    .await;
    let found = check(&server).await;
    let rights = finding(&found, "mongodb rights");
    assert_eq!(rights["level"], "ok", "{rights}");
    let updates = server.commands_named("update");
    let update = updates[0].get_array("updates").unwrap()[0].as_document().unwrap();
    assert!(update.get_document("q").unwrap().get_object_id("_id").is_ok(), "{update}");
    assert!(!update.get_bool("upsert").unwrap_or(false), "{update}");
    assert_eq!(
        server.commands_named("find")[0].get_document("readConcern").unwrap(),
        &doc! { "level": "majority" }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_being_built_is_reported_as_such() {
    let unique = doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1", "unique": true };
    let listed = vec![
        doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" },
        doc! { "spec": unique, "buildUUID": bson::Uuid::new() },
    ];
    let server = start(move |command| {
        let marked = command.get_bool("includeBuildUUIDs").unwrap_or(false);
        (command.contains_key("listIndexes") && marked).then(|| batch(listed.clone()))
    })
    .await;
    let found = check(&server).await;
    let collection = finding(&found, "collection kafka_events_db.adsbdb");
    let cause = collection["cause"].as_str().unwrap();
    assert!(collection["level"] == "warn" && cause.contains("event_id_1 is being built"), "{collection}");
    let uri = format!("mongodb://{}/?replicaSet=rs", server.address);
    let output = run(&[("MONGODB_URI", &uri)], &["dedupe"]).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("index event_id_1 is being built"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_include_build_uuids_gets_the_plain_command() {
    let listed = vec![doc! { "v": 2, "key": { "event_id": 1 }, "name": "event_id_1" }];
    let server = start(move |command: &Document| {
        if command.contains_key("includeBuildUUIDs") {
            return Some(error_reply(
                40415,
                "BSON field 'listIndexes.includeBuildUUIDs' is an unknown field.",
            ));
        }
        command.contains_key("listIndexes").then(|| batch(listed.clone()))
    })
    .await;
    let uri = format!("mongodb://{}/?replicaSet=rs", server.address);
    let output = run(&[("MONGODB_URI", &uri)], &["dedupe"]).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && stdout.contains("index event_id_1 is not unique"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_unique_index_is_a_warning() {
    let lookup = doc! { "mode_s": 1, "registration": 1, "event_timestamp": 1 };
    let listed = vec![
        doc! { "v": 2, "key": { "event_id": 1 }, "name": "by_hand", "unique": true, "hidden": true },
        doc! { "v": 2, "key": lookup, "name": "lookup" },
    ];
    let server =
        start(move |command: &Document| command.contains_key("listIndexes").then(|| batch(listed.clone())))
            .await;
    let found = check(&server).await;
    let collection = finding(&found, "collection kafka_events_db.adsbdb");
    assert!(collection["cause"].as_str().unwrap().contains("index by_hand is hidden"), "{collection}");
    assert!(collection["level"] == "warn" && collection["remedy"].as_str().unwrap().contains("unhideIndex"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_collection_has_one_line_if_every_source_is_expected() {
    let server = start(|command: &Document| {
        let name = |name: &str| doc! { "name": name, "type": "collection" };
        command.contains_key("listCollections").then(|| batch(vec![name("a"), name("b"), name("c")]))
    })
    .await;
    let (uri, kafka) = (format!("mongodb://{}/?replicaSet=rs", server.address), unused_address());
    let environment = [("MONGODB_URI", uri.as_str()), ("KAFKA_BROKER", &kafka), ("EXPECTED_SOURCE", "*")];
    let output = run(&environment, &["check"]).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    for collection in ["a", "b", "c"] {
        let lines =
            stdout.lines().filter(|line| line.contains(&format!("kafka_events_db.{collection}"))).count();
        assert_eq!(lines, 1, "{collection} in {stdout}");
    }
    assert!(stdout.contains("find, update and insert on 3 collections of kafka_events_db"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_an_unavailable_server_has_variable_address_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let header = r#"{"run":"r","source":"adsbdb","started_at":5,"seed":1,"keys":1,"superseded_ppm":0,"hostile_ppm":0,"api_version":null}"#;
    std::fs::write(&ledger, format!("{header}\n")).unwrap();
    let (mongodb, kafka) = (unused_address(), unused_address());
    let uri = format!("mongodb://u:hunter2@{mongodb}");
    let environment = [("MONGODB_URI", uri.as_str()), ("KAFKA_BROKER", &kafka)];
    let verify = ["verify", "--wait", "1", "--ledger", ledger.to_str().unwrap()];
    let kafka = format!("kafka does not answer at {kafka} (KAFKA_BROKER): ");
    let mongodb = format!("mongodb does not answer at {mongodb} (MONGODB_URI): Connection refused");
    for (arguments, part, remedy) in [
        (&["dedupe"][..], &mongodb, "start it, or correct the host in MONGODB_URI"),
        (&["trace", "x"], &kafka, "start it, or correct KAFKA_BROKER"),
        (&verify, &kafka, "start it, or correct KAFKA_BROKER"),
        (&["dead-letters", "list"], &kafka, "start it, or correct KAFKA_BROKER"),
    ] {
        let output = run(&environment, arguments).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part.as_str()) && stderr.contains(remedy), "{arguments:?}: {stderr}");
        for debug in ["Kind:", "Topology", "labels", "hunter2"] {
            assert!(!stderr.contains(debug), "{arguments:?}: {stderr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_changes_neither_exit_code_nor_stderr() {
    let server = start(|_| None).await;
    let (uri, kafka) = (format!("mongodb://{}/?replicaSet=rs", server.address), unused_address());
    let environment = [("MONGODB_URI", uri.as_str()), ("KAFKA_BROKER", &kafka)];
    for (arguments, code) in [
        (&["check"][..], 1),
        (&["check", "--json"], 1),
        (&["dedupe"], 0),
        (&["dedupe", "--json"], 0),
        (&["--help"], 0),
    ] {
        let mut child = command(&environment, arguments);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(code), ""), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duration_without_a_unit_is_in_seconds_in_every_command() {
    for arguments in [
        &["up", "--for", "3", "--poll-interval", "0.5", "--port", "x"][..],
        &["trace", "id", "--since", "3600", "--no-such"],
        &["load", "--for", "3", "--grace", "1", "--no-such"],
        &["verify", "--ledger", "f", "--wait", "90", "--no-such"],
        &["dead-letters", "list", "--since", "60", "--until", "1", "--no-such"],
    ] {
        // Only the last argument is wrong.
        let output = run(&[], arguments).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("--no-such") || stderr.contains("--port"), "{stderr}");
        assert!(!stderr.contains("a duration is"), "{stderr}");
    }
}
