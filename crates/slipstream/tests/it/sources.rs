//! `slipstream sources`, with the examples and with the files of `docs/sources.md`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use devservers::Simulator;
use serde_json::{Value, json};
use testkit::page::blocks;

use crate::pages::{read, root};

/// A folder with the examples and the files that the page shows.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let examples = folder.path().join("examples");
    std::fs::create_dir(&examples).unwrap();
    for name in ["sources.yaml", "orders.schema.json"] {
        std::fs::copy(root().join("examples").join(name), examples.join(name)).unwrap();
    }
    for block in blocks(&read("docs/sources.md")).iter().filter(|block| block.info == "yaml") {
        let name = block.text.lines().next().unwrap().trim_start_matches("# ");
        std::fs::write(folder.path().join(name), &block.text).unwrap();
    }
    folder
}

fn slipstream(folder: &Path, variables: &[(&str, &str)], arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipstream"));
    command.current_dir(folder).env_clear().envs(variables.iter().copied()).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn check_names_every_fault_with_its_line_and_path() {
    let folder = folder();
    let output = slipstream(folder.path(), &[], &["sources", "check", "faulty.yaml"], "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 7, "{stderr}");
    assert!(stderr.lines().all(|line| line.starts_with("faulty.yaml:")), "{stderr}");
    let output =
        slipstream(folder.path(), &[("SOURCES_FILE", "faulty.yaml")], &["sources", "check", "--json"], "");
    assert_eq!(output.status.code(), Some(2));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults = json["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 7);
    assert!(faults.iter().all(|fault| fault["line"].as_u64() > Some(0) && fault["path"] != ""), "{json}");
}

#[test]
fn a_missing_file_variable_or_source_is_a_configuration_error() {
    let folder = folder();
    let file = ("SOURCES_FILE", "examples/sources.yaml");
    for (variables, arguments, part) in [
        (&[][..], &["sources", "check"][..], "SOURCES_FILE: not set"),
        (&[], &["sources", "check", "no.yaml"], "no.yaml: cannot be read"),
        (&[], &["sources", "list", "faulty.yaml"], "faulty.yaml:3:"),
        (&[file], &["sources", "try", "quake"], "it has adsbdb, quakes, bikes, trades, orders"),
        (&[file], &["sources", "try", "orders", "--fetch"], "orders is no pull source"),
        (&[file, ("UPSERT_KEYS", "a,,b")], &["sources", "list"], "UPSERT_KEYS: "),
        (&[file], &["up", "--sources", "faulty.yaml"], "faulty.yaml:3:"),
    ] {
        let output = slipstream(folder.path(), variables, arguments, "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

#[test]
fn list_and_try_print_json() {
    let folder = folder();
    let variables =
        [("SOURCES_FILE", "examples/sources.yaml"), ("KAFKA_TOPIC", "a,b"), ("UPSERT_KEYS", "mode_s")];
    let output = slipstream(folder.path(), &variables, &["sources", "list", "--json"], "");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let quakes = &json["sources"][1];
    assert_eq!(quakes["topic"], "a", "{json}");
    assert_eq!(
        (&quakes["from"], &quakes["every"], &quakes["keys"][0]),
        (&"pull".into(), &"1m".into(), &"mode_s".into())
    );
    let orders = &json["sources"][4];
    assert_eq!((&orders["topic"], &orders["keys"]), (&"orders.raw".into(), &json!(["event_id"])));
    assert_eq!(orders["delete"], json!({"when": r#".state == "cancelled""#, "tombstones": "90d"}));
    assert_eq!((&orders["ttl"], &quakes["delete"]), (&Value::Null, &Value::Null));
    let sample = r#"[{"trade_id":12345678901234567890,"time":"2026-11-28T20:15:03.860123Z","price":"6225.32000000"},{"side":"buy"}]"#;
    let output = slipstream(folder.path(), &variables[..1], &["sources", "try", "trades", "--json"], sample);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["records"], &json["events"], &json["faulty"]), (&2.into(), &1.into(), &1.into()));
    let event = &json["shown"][0];
    assert_eq!(event["envelope"]["id"], "12345678901234567890");
    assert_eq!(event["document"]["price"], "6225.32000000");
    assert_eq!(event["filter"]["event_id"]["$eq"], "12345678901234567890", "{event}");
    let faults = json["shown"][1]["faults"].as_array().unwrap();
    assert!(faults.iter().any(|fault| fault.as_str().unwrap().starts_with("body: id: ")), "{faults:?}");
}

#[test]
fn list_shows_which_sources_delete_and_expire() {
    let folder = tempfile::tempdir().unwrap();
    let file = "sources:\n  a: {envelope: true, delete: {tombstones: 36h}, store: {ttl: 30d}}\n  bc: {envelope: true}\n";
    std::fs::write(folder.path().join("a.yaml"), file).unwrap();
    let list = |arguments: &[&str]| {
        let arguments = [&["sources", "list", "a.yaml"], arguments].concat();
        String::from_utf8(slipstream(folder.path(), &[], &arguments, "").stdout).unwrap()
    };
    let expected = "source  from      topic       collection  keys      deletes   ttl
a       envelope  events.raw  a           event_id  requests  30d
bc      envelope  events.raw  bc          event_id  -         -
";
    assert_eq!(list(&[]), expected);
    let json: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let source = &json["sources"][0];
    assert_eq!(source["delete"], json!({"when": null, "tombstones": "36h"}));
    assert_eq!(source["ttl"], "30d");
}

#[test]
fn try_shows_a_record_that_deletes() {
    let folder = folder();
    let file = [("SOURCES_FILE", "examples/sources.yaml")];
    // The schema does not matter to a delete.
    let sample = r#"{"no":"DE-1042","changed_at":"2026-11-28T20:15:03Z","state":"cancelled"}"#;
    let output = slipstream(folder.path(), &file, &["sources", "try", "orders"], sample);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    for part in [r#""source":"orders","op":"delete""#, "\n  delete    the document of this id\n"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    assert!(!stdout.contains("  schema ") && !stdout.contains("  document "), "{stdout}");
}

#[test]
fn try_shows_every_fault_of_a_record() {
    let folder = folder();
    let sample = r#"{"no":"DE-1042","changed_at":"yesterday","lines":[{"sku":"tea-500","count":0}]}"#;
    let file = [("SOURCES_FILE", "examples/sources.yaml")];
    let output = slipstream(folder.path(), &file, &["sources", "try", "orders"], sample);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    let faults: Vec<&str> = stdout.lines().filter(|line| line.starts_with("  FAULT ")).collect();
    for part in ["changed_at", "count", "timestamp"] {
        assert!(faults.iter().any(|fault| fault.contains(part)), "{part}: {stdout}");
    }
    assert!(stdout.ends_with("\n0 events, 1 record without an event; nothing was sent\n"), "{stdout}");
}

#[test]
fn a_sample_that_is_no_answer_of_the_api_is_reported() {
    let folder = folder();
    let file = [("SOURCES_FILE", "examples/sources.yaml")];
    for (sample, part) in [
        ("<html>", "not JSON"),
        (r#"{"features":{}}"#, "the value at /features is not an array but object"),
        ("{}", "the value at /features is absent"),
    ] {
        let output = slipstream(folder.path(), &file, &["sources", "try", "quakes"], sample);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn the_schema_of_an_envelope_checks_the_payload_and_a_body_has_a_limit() {
    let folder = folder();
    let schema = r#"{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}"#;
    std::fs::write(folder.path().join("n.json"), schema).unwrap();
    let file = "sources:\n  a: {envelope: true, schema: n.json, store: {source_field: from}}\n";
    std::fs::write(folder.path().join("a.yaml"), file).unwrap();
    let run = |variables: &[(&str, &str)], sample: &str| {
        let arguments = ["sources", "try", "a", "--file", "a.yaml", "--json"];
        let output = slipstream(folder.path(), variables, &arguments, sample);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json["shown"][0].clone())
    };
    let valid = r#"{"id":"i","source":"a","payload":{"n":1,"from":2}}"#;
    let (code, shown) = run(&[], valid);
    assert_eq!(code, Some(0), "{shown}");
    let document = &shown["document"];
    assert_eq!((&document["n"], &document["from"]), (&1.into(), &"a".into()), "{shown}");
    assert_eq!(document["payload_conflicts"]["from"], 2, "as the consumer stores it: {shown}");
    for (variables, sample, part) in [
        (&[][..], r#"{"id":"i","source":"a","payload":{"n":"x"}}"#, "body.payload.n: "),
        (&[], r#"{"id":"i","source":"b","payload":{"n":1}}"#, "body.source: "),
        (&[("MAX_PAYLOAD_BYTES", "20")], valid, "body: 50 bytes, more than the 20 of MAX_PAYLOAD_BYTES"),
    ] {
        let (code, shown) = run(variables, sample);
        assert_eq!(code, Some(1), "{shown}");
        assert!(shown["faults"][0].as_str().unwrap().starts_with(part), "{part}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_makes_events_of_the_simulator_of_each_api() {
    let folder = folder();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = simulator.base_url();
    for (name, records) in [("adsbdb", 1), ("quakes", 10), ("bikes", 8), ("trades", 100)] {
        let (folder, url) = (folder.path().to_owned(), url.clone());
        let output = tokio::task::spawn_blocking(move || {
            let variables = [
                ("SOURCES_FILE", "examples/sources.yaml"),
                ("SIMULATOR_URL", url.as_str()),
                ("ADSBDB_BASE_URL", url.as_str()),
            ];
            slipstream(&folder, &variables, &["sources", "try", name, "--fetch", "--json"], "")
        });
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["records"], &json["events"]), (&records.into(), &records.into()), "{json}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fetch_names_the_cause_without_the_query() {
    let folder = folder();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let file = "sources:\n  a: {pull: {url: '${SIMULATOR_URL}/none?key=s3cret'}, event: {id: /id}}\n";
    std::fs::write(folder.path().join("a.yaml"), file).unwrap();
    for (url, part) in
        [(simulator.base_url(), "the API of a returned status 404"), ("http://127.0.0.1:9".into(), "refused")]
    {
        let folder = folder.path().to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let variables = [("SIMULATOR_URL", url.as_str())];
            slipstream(&folder, &variables, &["sources", "try", "a", "--fetch", "--file", "a.yaml"], "")
        });
        let output = output.await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(part) && stderr.contains("/none?***") && !stderr.contains("s3cret"),
            "{stderr}"
        );
    }
}
