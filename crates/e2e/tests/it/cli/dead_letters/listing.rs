//! Listing and showing dead letters.

use std::process::Stdio;

use serde_json::json;
use testkit::process::command;
use testkit::{Stack, kafka};

use super::{
    Ended, START_MS, Sent, consumer, dead, letters, make_topics, run, run_with, send, write_letters,
};

/// Not UTF-8, with a control sequence that clears the screen.
const KEY: &[u8] = b"\xff\x1b[2J";
const VALUE: &[u8] = b"{\"a\":\x00\xff\x1b[2J\nno JSON";

#[tokio::test(flavor = "multi_thread")]
async fn poison_record_is_listed_and_shown_byte_for_byte() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let running = consumer(stack, &names).await;
    let headers = [("traceparent", Some(&b"00-1"[..])), ("odd", Some(b"\xfe")), ("none", None)];
    let poison = Sent {
        partition: 2,
        key: Some(KEY),
        value: Some(VALUE),
        record_ms: Some(*START_MS + 123),
        headers: &headers,
    };
    let text = Sent { partition: 2, key: Some(b"two"), value: Some(b"{\n\t\"id\": 7}"), ..Sent::default() };
    send(&names, &names.topic, &[poison, text]).await;
    dead(&names, 2).await;
    assert!(running.terminate().await.success());

    let listed = run(&names, &["list", "--json"]).await.lines();
    let letter = listed.iter().find(|letter| letter["key"].is_null()).expect("the key is no text");
    assert_eq!(letter["key_base64"], "/xtbMko=");
    assert_eq!(letter["origin"], json!({"topic": names.topic, "partition": 2, "offset": 0}));
    assert_eq!(letter["timestamp"], *START_MS + 123);
    assert_eq!((&letter["stage"], &letter["class"]), (&json!("decode"), &json!("InvalidJson")));
    assert_eq!((&letter["replays"], &letter["value_bytes"]), (&json!(0), &json!(VALUE.len())));
    let place = format!("{}/{}@{}", letter["topic"].as_str().unwrap(), letter["partition"], letter["offset"]);

    let text = run(&names, &["list"]).await;
    assert!(
        text.code == Some(0) && !text.out.contains(&0x1b) && text.text().ends_with("2 dead letters\n"),
        "{text:?}"
    );
    let line = format!(
        "{place}  {}  key 0xff1b5b324a  of {}/2@0  InvalidJson: {}\n",
        letter["time"].as_str().unwrap(),
        names.topic,
        letter["reason"].as_str().unwrap()
    );
    assert!(text.text().contains(&line), "{line} in {text:?}");

    assert_eq!(run(&names, &["show", &place, "--raw"]).await.out, VALUE);
    let short = format!("{}/{}", letter["partition"], letter["offset"]);
    assert_eq!(run(&names, &["show", &short, "--raw"]).await.out, VALUE);
    let shown = run(&names, &["show", &place]).await;
    for part in [
        "key      0xff1b5b324a\n",
        "\n  traceparent: 00-1\n  odd: 0xfe\n  none: null\n",
        "00000000  7b 22 61 22 3a 00 ff 1b",
    ] {
        assert!(shown.code == Some(0) && shown.text().contains(part), "{part} in {shown:?}");
    }
    let shown = run(&names, &["show", &place, "--json"]).await.json();
    assert_eq!(shown["headers"][1], json!({"name": "odd", "value_base64": "/g=="}));
    assert_eq!(shown["headers"][2], json!({"name": "none", "value": null}));
    assert!(shown["value_base64"].is_string() && shown["value"].is_null(), "{shown}");
    let other = listed.iter().find(|letter| letter["key"] == "two").unwrap();
    let place = format!("{}/{}@{}", other["topic"].as_str().unwrap(), other["partition"], other["offset"]);
    let shown = run(&names, &["show", &place]).await;
    assert!(shown.text().ends_with("value    11 bytes\n{\n\t\"id\": 7}\n"), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_is_filtered_by_reason_source_and_time_and_limited() {
    let names = Stack::shared().await.names();
    make_topics(&names, 1).await;
    write_letters(&names, 6, 1, &["too deep", "too large"]).await;
    let origin = [("__connect.errors.exception.class.name", Some(&b"Unstorable"[..]))];
    let manual = Sent {
        key: Some(b"manual"),
        value: Some(br#"{"source":"manual","payload":7}"#),
        record_ms: Some(*START_MS + 3 * 3_600_000),
        headers: &origin,
        ..Sent::default()
    };
    send(&names, &names.dead_letter_topic(), &[manual]).await;
    let all = run(&names, &["list", "--json"]).await.lines();
    let (third, fifth) = (all[2]["time"].as_str().unwrap(), all[4]["time"].as_str().unwrap());
    for (arguments, found) in [
        (&[][..], &["k0", "k1", "k2", "k3", "k4", "k5", "manual"][..]),
        (&["--reason", "too deep"], &["k0", "k2", "k4"]),
        (&["--reason", "Unstorable"], &["manual"]),
        (&["--reason", "nothing of the kind"], &[]),
        (&["--source", "manual"], &["manual"]),
        (&["--source", "adsbdb"], &[]),
        (&["--since", "3h"], &["manual"]),
        (&["--since", "1h"], &[]),
        (&["--until", third], &["k0", "k1"]),
        (&["--since", third, "--until", fifth], &["k2", "k3"]),
        (&["--since", third, "--reason", "deep", "--limit", "1"], &["k2"]),
        (&["--limit", "2"], &["k0", "k1"]),
    ] {
        let lines = run(&names, &[&["list", "--json"], arguments].concat()).await.lines();
        let keys: Vec<&str> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
        assert_eq!(keys, found, "{arguments:?}");
    }
    let limited = run(&names, &["list", "--limit", "2"]).await;
    assert!(limited.text().ends_with("2 dead letters; the limit ends the list\n"), "{limited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_topic_is_no_error_missing_topic_and_server_are() {
    let names = Stack::shared().await.names();
    let missing = run(&names, &["list"]).await;
    let topic = names.dead_letter_topic();
    assert!(
        missing.code == Some(1) && missing.err.contains(&format!("topic {topic} does not exist")),
        "{missing:?}"
    );
    make_topics(&names, 2).await;
    let empty = run(&names, &["list"]).await;
    assert_eq!((empty.code, empty.text()), (Some(0), "0 dead letters\n"), "{empty:?}");
    assert_eq!(run(&names, &["list", "--json"]).await.text(), "");
    for place in ["0@0", "7@0", "elsewhere/0@0"] {
        let none = run(&names, &["show", place]).await;
        assert!(none.code == Some(1) && none.err.contains("there is no record at"), "{none:?}");
    }
    let null = Sent { key: Some(b"k"), ..Sent::default() };
    send(&names, &topic, &[null]).await;
    let raw = run(&names, &["show", "0@0", "--raw"]).await;
    assert!(raw.code == Some(1) && raw.err.contains("is null"), "{raw:?}");
    assert!(run(&names, &["show", "0@0"]).await.text().ends_with("\nvalue    null\n"));
    assert!(run(&names, &["show", "0@1"]).await.err.contains("there is no record at"));
    for wrong in [
        &["list", "--since", "soon"][..],
        &["show", "7"],
        &["list", "--limit", "0"],
        &["list", "--source", "a b"],
    ] {
        assert_eq!(run(&names, wrong).await.code, Some(2), "{wrong:?}");
    }
    let wrong = run_with(&names, &[("UPSERT_KEYS", "_id"), ("KAFKA_BROKER", "")], &["list"]).await;
    assert!(
        wrong.code == Some(2) && wrong.err.contains("UPSERT_KEYS") && wrong.err.contains("KAFKA_BROKER"),
        "{wrong:?}"
    );
    let nobody = testkit::process::free_address().to_string();
    let away = run_with(&names, &[("KAFKA_BROKER", &nobody)], &["list"]).await;
    assert!(away.code == Some(1) && away.err.contains("kafka does not answer"), "{away:?}");
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn records_are_listed_once_in_time_order_with_replays_marked() {
    let names = Stack::shared().await.names();
    make_topics(&names, 2).await;
    // The later record is in the first partition. k0 was dead-lettered twice.
    write_letters(&names, 3, 1, &["first", "second"]).await;
    let of_k0 = [
        ("__connect.errors.topic", Some(names.topic.as_bytes())),
        ("__connect.errors.partition", Some(&b"0"[..])),
        ("__connect.errors.offset", Some(b"0")),
        ("__connect.errors.exception.message", Some(b"again")),
    ];
    let early = Sent {
        partition: 1,
        key: Some(b"early"),
        value: Some(b"x"),
        record_ms: Some(*START_MS - 1_000),
        ..Sent::default()
    };
    let again = Sent { key: Some(b"k0"), record_ms: Some(*START_MS), headers: &of_k0, ..early.clone() };
    send(&names, &names.dead_letter_topic(), &[again, early]).await;
    let listed = run(&names, &["list", "--json"]).await.lines();
    let of_k2 = listed[3]["time"].as_str().unwrap();
    let replayed = super::replay(&names, &["--until", of_k2]).await.summary(0);
    let left_out = json!({"filtered": 1, "pulled": 0, "other_topics": 0, "no_origin": 1, "max_replays": 0});
    assert_eq!((&replayed["replayed"], &replayed["left_out"]), (&json!(3), &left_out), "{replayed}");

    let listed = run(&names, &["list", "--json"]).await.lines();
    let told: Vec<_> = listed
        .iter()
        .map(|line| {
            let copies = line["copies"].as_array().unwrap().len();
            (line["key"].as_str().unwrap(), copies, line["replayed"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(told, [("early", 0, false), ("k0", 1, true), ("k1", 0, true), ("k2", 0, false)]);
    let text = run(&names, &["list"]).await;
    let lines: Vec<&str> = text.text().lines().collect();
    assert!(lines[1].contains("(2 dead letters of this record)"), "{text:?}");
    assert!(lines[2].contains("  replayed  ") && !lines[3].contains("  replayed  "), "{text:?}");
    assert_eq!(lines[4], "4 dead letters", "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_topics_all_are_listed_and_a_position_needs_its_topic() {
    let names = Stack::shared().await.names();
    let second = format!("{}-b", names.topic);
    let other = testkit::Names { topic: second.clone(), ..names.clone() };
    make_topics(&names, 1).await;
    make_topics(&other, 1).await;
    write_letters(&names, 1, 1, &["a"]).await;
    write_letters(&other, 1, 1, &["b"]).await;
    let both = format!("{},{second}", names.topic);
    let both = [("KAFKA_TOPIC", both.as_str())];
    let lines = run_with(&names, &both, &["list", "--json"]).await.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let unclear = run_with(&names, &both, &["show", "0@0"]).await;
    assert!(unclear.code == Some(1) && unclear.err.contains(&other.dead_letter_topic()), "{unclear:?}");
    let place = format!("{}/0/0", other.dead_letter_topic());
    assert_eq!(run_with(&names, &both, &["show", &place, "--raw"]).await.text(), "k0");
    assert!(kafka::committed_offsets(&letters(&names)).await.is_empty(), "nothing is committed by reading");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_pipe_ends_the_list_without_an_error() {
    let names = Stack::shared().await.names();
    make_topics(&names, 1).await;
    write_letters(&names, 50, 1, &["why"]).await;
    let mut command = command("slipstream", &names.environment(&[]));
    let list = command.args(["dead-letters", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = list.spawn().unwrap();
    drop(child.stdout.take());
    let ended = Ended::of(child.wait_with_output().await.unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
}
