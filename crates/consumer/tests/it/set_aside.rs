//! Records that an operator sets aside: the worker dead-letters the record and continues, and
//! counts it once.

use std::time::Duration;

use bson::{Document, doc};
use rdkafka::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::trial::{Member, SOON, Sent, Trial, event, eventually, told};
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write, open};

const WIRE_VERSION_7_0: i32 = 21;
/// PrimarySteppedDown, a transient code whatever happens to other records.
const TRANSIENT: i32 = 189;
const TOKEN: &str = "correct-horse";
const SETTINGS: [(&str, &str); 1] = [("ADMIN_TOKEN", TOKEN)];

/// Posts `body` and returns status and body of the response. The deadline is that of the operator's
/// command.
async fn post(member: &Member, token: Option<&str>, body: &str) -> (u16, Value) {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "POST /admin/dead-letters HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{authorization}Content-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(member.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("a response")
}

fn body(trial: &Trial, partition: i32, offset: i64) -> String {
    json!({"topic": trial.topic, "partition": partition, "offset": offset, "reason": "ticket 42"}).to_string()
}

async fn set_aside(trial: &Trial, member: &Member, offset: i64) -> (u16, Value) {
    post(member, Some(TOKEN), &body(trial, 0, offset)).await
}

/// Asserts that there is one dead letter: that of the record at `offset`, with the operator's
/// reason.
async fn assert_one_dead_letter(trial: &Trial, offset: i64, key: &str) {
    let dead_letters = trial.dead_letters().await;
    assert_eq!(dead_letters.len(), 1);
    let expected = [
        ("topic", trial.topic.clone()),
        ("partition", "0".into()),
        ("offset", offset.to_string()),
        ("stage", "store".into()),
        ("exception.class.name", "SetAside".into()),
        ("exception.message", "ticket 42".into()),
    ];
    for (name, value) in expected {
        assert_eq!(told(&dead_letters[0], name), value, "{name}");
    }
    assert_eq!(dead_letters[0].key(), Some(key.as_bytes()));
}

async fn send(trial: &Trial, ids: &[&str]) {
    for id in ids {
        trial.send(Sent::new(id, &event(id, 1, "{}"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_record_of_a_blocked_collection_can_be_set_aside() {
    let trial = Trial::new(1).await;
    let blocked = trial.collection("adsbdb").await;
    blocked.insert_many([doc! {"event_id": "x", "n": 1}, doc! {"event_id": "x", "n": 2}]).await.unwrap();
    send(&trial, &["a"]).await;
    let member = trial.start(&SETTINGS).await;
    let is_blocked = async || member.health().await["assignment"].to_string().contains("writes are paused");
    eventually("the record is in the current batch", SOON, async || member.seen().read == 1).await;
    eventually("the worker waits", SOON, is_blocked).await;
    let (status, answer) = set_aside(&trial, &member, 0).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["dead_letter"]["topic"], format!("{}.dlq", trial.topic), "{answer}");
    assert_one_dead_letter(&trial, 0, "a").await;
    eventually("it is committed", SOON, async || trial.committed().await.get(&0) == Some(&1)).await;
    let (status, answer) = set_aside(&trial, &member, 0).await;
    let detail = answer["detail"].as_str().unwrap();
    assert!(status == 404 && detail.contains("it is finished"), "{answer}");
    assert!(member.health().await["assignment"][0]["waits_for"].is_null(), "the worker continues");
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.finished(), counted.dead_lettered), (1, 1, 1), "{counted:?}");
    assert_eq!(blocked.count_documents(doc! {}).await.unwrap(), 2, "nothing is written");
}

/// A server that delays the writes of document `b` until the gate opens, or rejects them with a
/// transient code.
async fn server_with_one_stuck_record(delays: Option<watch::Receiver<bool>>) -> ScriptedServer {
    let script = move |command: &Document| {
        let Ok(documents) = command.get_array("documents") else { return Answer::Usual };
        let is_b = |document: &bson::Bson| {
            document
                .as_document()
                .is_some_and(|document| document.get_str("event_id").is_ok_and(|id| id == "b"))
        };
        match (documents.iter().position(is_b), &delays) {
            (None, _) => Answer::Usual,
            (Some(_), Some(gate)) => Answer::after(open(gate)),
            (Some(index), None) => {
                let error = doc! { "index": index as i32, "code": TRANSIENT, "errmsg": "stepped down" };
                let n = documents.len() as i32 - 1;
                Answer::Reply(doc! { "ok": 1, "n": n, "writeErrors": [error] })
            }
        }
    };
    ScriptedServer::start(WIRE_VERSION_7_0, script).await
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_record_set_aside_during_retries_counts_once() {
    let server = server_with_one_stuck_record(None).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    send(&trial, &["a", "b", "c", "d"]).await;
    let member = trial.start(&SETTINGS).await;
    eventually("the others are stored", SOON, async || member.seen().inserted == 3).await;
    let (status, answer) = set_aside(&trial, &member, 1).await;
    assert_eq!(status, 200, "{answer}");
    member.finishes(4).await;
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.inserted, counted.dead_lettered), (4, 3, 1), "{counted:?}");
    assert_one_dead_letter(&trial, 1, "b").await;
    assert_eq!(trial.committed().await, [(0, 4)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_record_set_aside_during_its_write_counts_once() {
    let (gate, opened) = watch::channel(false);
    let server = server_with_one_stuck_record(Some(opened)).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    send(&trial, &["a", "b", "c", "d"]).await;
    let member = trial.start(&SETTINGS).await;
    let is_stuck = async || member.seen().read == 4 && server.writes().iter().any(|write| write.records > 1);
    eventually("the write has begun", SOON, is_stuck).await;
    // The first record may have been written alone.
    assert!(member.seen().finished() <= 1, "the server delays the whole write");
    let (status, answer) = set_aside(&trial, &member, 1).await;
    assert_eq!(status, 200, "{answer}");
    member.finishes(4).await;
    gate.send_replace(true);
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.inserted, counted.dead_lettered), (4, 3, 1), "{counted:?}");
    assert_one_dead_letter(&trial, 1, "b").await;
    assert_eq!(trial.committed().await, [(0, 4)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn set_aside_of_a_record_not_in_the_batch_is_404_with_the_state() {
    let (gate, opened) = watch::channel(false);
    let script = move |command: &Document| {
        if is_write(command) { Answer::after(open(&opened)) } else { Answer::Usual }
    };
    let server = ScriptedServer::start(WIRE_VERSION_7_0, script).await;
    let trial = Trial::with_database(&server.uri, 1).await;
    send(&trial, &["a", "b", "c"]).await;
    let member = trial.start(&[SETTINGS[0], ("BATCH_MAX_RECORDS", "1")]).await;
    let queued = async || member.health().await["assignment"][0]["queued"] == 2;
    eventually("two records are queued", SOON, queued).await;
    for (partition, offset, part) in [
        (0, 2, "1 record in the batch, 2 queued"),
        (0, 99, "in the batch"),
        (7, 0, "is not assigned to this"),
    ] {
        let (status, answer) = post(&member, Some(TOKEN), &body(&trial, partition, offset)).await;
        let detail = answer["detail"].as_str().unwrap();
        assert!(status == 404 && detail.contains(part) && detail.contains(&trial.topic), "{answer}");
    }
    let (_, answer) = post(&member, Some(TOKEN), &body(&trial, 7, 0)).await;
    assert!(
        answer["detail"].as_str().unwrap().contains(&format!("assigned are: {}/0", trial.topic)),
        "{answer}"
    );
    gate.send_replace(true);
    member.finishes(3).await;
    assert_eq!(member.stop().await.inserted, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn set_aside_requires_the_admin_token_and_a_valid_body() {
    let trial = Trial::new(1).await;
    let (enabled, disabled) = tokio::join!(trial.start(&SETTINGS), trial.start(&[]));
    let valid = body(&trial, 0, 0);
    let answers = [
        (post(&disabled, Some(TOKEN), &valid).await, 403, "ADMIN_TOKEN is not set"),
        (post(&disabled, None, &valid).await, 403, "ADMIN_TOKEN is not set"),
        (post(&enabled, None, &valid).await, 403, "no bearer token"),
        (post(&enabled, Some("correct-hors"), &valid).await, 403, "not the ADMIN_TOKEN"),
        (post(&enabled, Some("correct-horse!"), &valid).await, 403, "not the ADMIN_TOKEN"),
        (post(&enabled, Some("wrong"), "{").await, 403, "not the ADMIN_TOKEN"),
        (post(&enabled, Some(TOKEN), "{").await, 400, "not a JSON object"),
        (post(&enabled, Some(TOKEN), r#"["t", 0, 0, "why"]"#).await, 400, "not a JSON object"),
        (post(&enabled, Some(TOKEN), r#"{"topic":"t","partition":0,"offset":0}"#).await, 400, "reason"),
        (post(&enabled, Some(TOKEN), &valid.replace("ticket 42", " ")).await, 400, "reason must have"),
        (
            post(&enabled, Some(TOKEN), &valid.replace("ticket 42", &"x".repeat(1025))).await,
            400,
            "reason must have",
        ),
        (post(&enabled, Some(TOKEN), &"x".repeat(70_000)).await, 413, "65536 bytes"),
    ];
    for ((status, answer), expected, part) in answers {
        assert_eq!((status, answer["status"].as_u64()), (expected, Some(expected.into())), "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(part), "{part}: {answer}");
        assert!(!answer.to_string().contains(TOKEN), "{answer}");
    }
    enabled.stop().await;
    disabled.stop().await;
}
