//! `slipstream dead-letters add`: the consumer dead-letters a blocked record on command.

use bson::doc;
use rdkafka::Message;
use serde_json::json;
use testkit::{Names, Process, eventually, kafka, mongo};

use super::{Ended, LIMIT, Sent, dead, run, run_with, send, stack};

const TOKEN: &str = "correct-horse";

fn event(id: &str) -> String {
    format!(
        r#"{{"id":"{id}","timestamp":5,"source":"adsbdb","payload":{{}},"ingested_at":5,"api_version":"1.0.0"}}"#
    )
}

async fn send_events(names: &Names, ids: &[&str]) {
    let values: Vec<String> = ids.iter().map(|id| event(id)).collect();
    let sent = ids.iter().zip(&values);
    let sent: Vec<Sent<'_>> = sent
        .map(|(id, value)| Sent {
            key: Some(id.as_bytes()),
            value: Some(value.as_bytes()),
            ..Sent::default()
        })
        .collect();
    send(names, &names.topic, &sent).await;
}

async fn add(names: &Names, url: &str, token: &str, arguments: &[&str]) -> Ended {
    let more = [("CONSUMER_BASE_URL", url), ("ADMIN_TOKEN", token)];
    run_with(names, &more, &[&["add"], arguments].concat()).await
}

/// Waits until the consumer has both records in a batch and waits.
async fn is_stuck(consumer: &Process) {
    eventually("the record waits", LIMIT, || async {
        let health = testkit::http::get(&consumer.url("/health")).await.ok()?.body;
        let lane = &health["assignment"][0];
        (health["counters"]["read"] == 1 && !lane["waits_for"].is_null()).then_some(())
    })
    .await;
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn blocked_record_is_dead_lettered_by_command_and_can_be_replayed() {
    let stack = stack().await;
    let names = stack.names();
    kafka::create_topic(&names, 1).await;
    let adsbdb = mongo::collection(&names, "adsbdb").await;
    adsbdb.insert_many([doc! {"event_id": "x", "n": 1}, doc! {"event_id": "x", "n": 2}]).await.unwrap();
    send_events(&names, &["a"]).await;
    let consumer = stack.consumer(&names, &[("ADMIN_TOKEN", TOKEN)]);
    is_stuck(&consumer).await;
    let url = format!("http://localhost:{}", consumer.address.port());
    let (first, absent) = (format!("{}/0@0", names.topic), format!("{}/7@0", names.topic));
    let why = ["--reason", "ticket 42"];
    for (token, place, part) in [
        ("", &first, "403: no bearer token"),
        ("wrong", &first, "403: the bearer token is not the ADMIN_TOKEN"),
        (TOKEN, &absent, "/7 is not assigned to this consumer"),
    ] {
        let refused = add(&names, &url, token, &[&[place.as_str()][..], &why].concat()).await;
        assert!(refused.code == Some(1) && refused.err.contains(part), "{refused:?}");
        assert!(refused.err.contains("127.0.0.1:") && !refused.err.contains(TOKEN), "{refused:?}");
    }
    let done = add(&names, &url, TOKEN, &[&[first.as_str()][..], &why].concat()).await;
    let letter = dead(&names, 1).await.remove(0);
    let said = format!("{first} is set aside as {}/{}@0\n", names.dead_letter_topic(), letter.partition());
    assert_eq!((done.code, done.text()), (Some(0), said.as_str()), "{done:?}");
    eventually("it is committed", LIMIT, || async {
        (kafka::committed_offsets(&names).await.get(&0) == Some(&1)).then_some(())
    })
    .await;
    let finished = add(&names, &url, TOKEN, &[&[first.as_str()][..], &why, &["--json"]].concat()).await;
    let (code, refusals) = (finished.code, &finished.json()["refusals"]);
    let reason = refusals[0]["reason"].as_str().unwrap();
    assert!(code == Some(1) && reason.contains("it is finished"), "{finished:?}");
    let log = consumer.log();
    let line = log.lines().find(|line| line.contains("record set aside by an operator")).unwrap();
    assert!(line.contains("ticket 42") && !log.contains(TOKEN), "{log}");

    let listed = run(&names, &["list"]).await;
    assert!(listed.text().contains("SetAside: ticket 42"), "{listed:?}");
    adsbdb.delete_one(doc! {"n": 2}).await.unwrap();
    let replayed = run(&names, &["replay", "--json", "--reason", "SetAside"]).await;
    assert_eq!(replayed.summary(0)["replayed"], 1);
    eventually("it is stored", LIMIT, || async {
        (!mongo::all(&adsbdb, doc! {"event_id": "a"}).await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(consumer.terminate_with_counters().await.dead_lettered, 1);
}

#[tokio::test]
async fn invalid_arguments_and_unavailable_consumer_have_different_exit_codes() {
    let nobody = format!("http://{}", testkit::process::free_address());
    let names = Names::new("k:9092".into(), "mongodb://m".into());
    for (url, arguments) in [
        (&*nobody, &["t/0@0"][..]),
        (&nobody, &["t/0@0", "--reason", " "]),
        (&nobody, &["0@0", "--reason", "why"]),
        (&nobody, &["t/x@0", "--reason", "why"]),
        ("", &["t/0@0", "--reason", "why"]),
        ("consumer:8081", &["t/0@0", "--reason", "why"]),
    ] {
        let wrong = add(&names, url, TOKEN, arguments).await;
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
    }
    // The command does not read the variables of the consumer.
    let names = Names { kafka: String::new(), mongodb: String::new(), ..names };
    let away = add(&names, &nobody, TOKEN, &["t/0@0", "--reason", "why"]).await;
    assert!(away.code == Some(1) && away.err.contains("no consumer answers (CONSUMER_BASE_URL)"), "{away:?}");
    let json = add(&names, &nobody, TOKEN, &["t/0@0", "--reason", "why", "--json"]).await;
    assert_eq!((json.code, &json.json()["set_aside"]), (Some(1), &json!(null)), "{json:?}");
}
