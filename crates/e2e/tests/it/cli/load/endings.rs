//! Unsuccessful runs on real servers: no key, no producer, no consumer, a signal, an outage,
//! invalid arguments.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::process::{command, free_address};
use testkit::{HoldingProxy, Process, Stack, eventually};
use tokio::net::TcpListener;

use super::{Site, lines, load, run, text, verify};

/// `printf %s secret | sha256sum`
const KEYS: &str = "load:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

#[tokio::test(flavor = "multi_thread")]
async fn load_without_the_right_key_is_rejected_and_with_it_accepted() {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[("API_KEYS", KEYS)]);
    let consumer = stack.consumer(&names, &[]);
    producer.ready().await;
    consumer.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("key"), "secret\n").unwrap();
    let key_file = file("key").to_str().unwrap().to_owned();
    let (wrong, right) = (("PRODUCER_API_KEY", "guess"), ("PRODUCER_API_KEY_FILE", key_file.as_str()));
    let said = load(&producer.url(""), &[wrong], &file("wrong"), &["--events", "20"]).await;
    assert_eq!(
        (said.code, said.count("/answers/401"), said.count("/refused")),
        (Some(1), 20, 20),
        "{said:?}"
    );
    let refused = lines(&file("wrong")).split_off(1);
    assert!(refused.iter().all(|line| line["answer"] == "refused" && line["attempts"] == 1), "{refused:?}");
    let said = load(&producer.url(""), &[right], &file("right"), &["--events", "20"]).await;
    assert_eq!((said.code, said.count("/accepted")), (Some(0), 20), "{said:?}");
    for (ledger, documents) in [("wrong", 0), ("right", 20)] {
        let verdict = verify(&names, &file(ledger), &[]).await;
        assert_eq!((verdict.code, verdict.count("/documents")), (Some(0), documents), "{verdict:#?}");
    }
    assert!(producer.terminate().await.success() && consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn load_waits_for_a_producer_that_starts_later() {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (ledger, url) = (folder.path().join("ledger"), format!("http://{address}"));
    let path = ledger.clone();
    let loading =
        tokio::spawn(async move { load(&url, &[], &path, &["--events", "50", "--grace", "60s"]).await });
    // The first request asks for the version, the second has an event: both connections are closed.
    for _ in 0..2 {
        drop(listener.accept().await.unwrap());
    }
    drop(listener);
    let environment = [("KAFKA_BROKER", names.kafka.as_str()), ("KAFKA_TOPIC", &names.topic)];
    let producer = Process::start_at("producer", address, &environment);
    let consumer = stack.consumer(&names, &[]);
    let said = loading.await.unwrap();
    assert_eq!((said.code, said.count("/accepted")), (Some(0), 50), "{said:?}");
    assert!(said.count("/unreachable") + said.count("/cut") > 0, "{said:?}");
    assert_eq!(lines(&ledger)[0]["api_version"], Value::Null, "it did not say");
    let verdict = verify(&names, &ledger, &[]).await;
    assert_eq!((verdict.code, verdict.count("/documents")), (Some(0), 50), "{verdict:#?}");
    assert!(producer.terminate().await.success() && consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn signal_ends_the_load_with_a_complete_ledger() {
    let site = Site::start(Stack::shared_without_sync().await).await;
    let (ledger, url) = (site.ledger(), site.producer.url(""));
    let mut loading = command("slipstream", &[("PRODUCER_BASE_URL", &url)]);
    let arguments =
        ["load", "--source", "manual", "--rate", "400", "--json", "--ledger", ledger.to_str().unwrap()];
    let loading = loading.args(arguments).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(loading.id().unwrap().cast_signed());
    eventually("events are in the ledger", Duration::from_secs(30), || async {
        (std::fs::read_to_string(&ledger).ok()?.lines().count() > 200).then_some(())
    })
    .await;
    kill(pid, Signal::SIGTERM).unwrap();
    let ended =
        tokio::time::timeout(Duration::from_secs(10), loading.wait_with_output()).await.unwrap().unwrap();
    let said: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert_eq!(lines(&ledger).len() as u64 - 1, said["events"].as_u64().unwrap(), "{said}");
    let verdict = site.verify(&[]).await;
    assert_eq!(
        (verdict.code, verdict.count("/events")),
        (Some(0), said["events"].as_u64().unwrap()),
        "{verdict:#?}"
    );
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unprocessed_records_are_reported_and_not_verified() {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[]);
    producer.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let said = load(&producer.url(""), &[], &ledger, &["--events", "30", "--keys", "10"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let path = ledger.to_str().unwrap();
    let verdict = run(&names.for_every_source(&[]), &["verify", "--ledger", path, "--wait", "500ms"]).await;
    assert_eq!((verdict.code, verdict.count("/waiting")), (Some(3), 30), "{verdict:#?}");
    assert_eq!((verdict.count("/missing/count"), verdict.count("/not_judged")), (0, 10), "{verdict:#?}");
    assert_eq!((&verdict.json["verdict"], &verdict.json["well"]), (&"unfinished".into(), &false.into()));
    assert!(verdict.json["waiting_seconds"].is_null(), "nothing is finished: {verdict:#?}");
    let (code, said) = text(&names.for_every_source(&[]), &["verify", "--ledger", path, "--wait", "1"]).await;
    for part in [
        "  waiting        30 records: no record was finished",
        "  not compared   10 ids",
        "VERIFICATION INCOMPLETE: 30 ",
    ] {
        assert!(
            code == Some(3) && said.contains(part) && !said.contains("VERIFICATION FAILED"),
            "{part} in {said}"
        );
    }
    // A verification with --wait continues when the consumer starts.
    let arguments = ["verify", "--ledger", path, "--wait", "until-done"];
    let environment = names.for_every_source(&[]);
    let (waited, started) = tokio::join!(text(&environment, &arguments), async {
        let consumer = stack.consumer(&names, &[]);
        consumer.ready().await;
        consumer
    });
    assert!(waited.0 == Some(0) && waited.1.ends_with("verification passed\n"), "{waited:?}");
    assert!(
        waited.1.contains("30 events, 30 accepted") && waited.1.contains("missing        0"),
        "{waited:?}"
    );
    assert!(producer.terminate().await.success() && started.terminate().await.success());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_pending_records_cannot_change_are_verified() {
    let stack = Stack::shared_without_sync().await;
    let names = stack.names();
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let said = load(&producer.url(""), &[], &file("done"), &["--events", "20", "--keys", "5"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(verify(&names, &file("done"), &[]).await.code, Some(0));
    assert!(consumer.terminate().await.success());
    let manual = testkit::mongo::collection(&names, "manual").await;
    let said = load(&producer.url(""), &[], &file("waits"), &["--events", "20", "--keys", "5"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");

    let judge = async |ledger: &Path| {
        let arguments = ["verify", "--wait", "1", "--ledger", ledger.to_str().unwrap()];
        run(&names.for_every_source(&[]), &arguments).await
    };
    // All records of this load are finished and correct. Only records of the other load are
    // pending.
    let verdict = judge(&file("done")).await;
    assert_eq!((verdict.code, verdict.count("/waiting")), (Some(3), 20), "{verdict:#?}");
    assert_eq!(verdict.count("/not_judged"), 0, "{verdict:#?}");
    // A missing document of a finished load is reported, whatever is pending.
    manual.delete_one(bson::doc! {}).await.unwrap();
    let verdict = judge(&file("done")).await;
    assert_eq!((verdict.code, verdict.count("/missing/count")), (Some(1), 1), "{verdict:#?}");
    let verdict = judge(&file("waits")).await;
    assert_eq!((verdict.code, verdict.count("/not_judged")), (Some(3), 5), "{verdict:#?}");
    // A document that was never sent stays foreign.
    let id = format!("{}-9", lines(&file("waits"))[0]["run"].as_str().unwrap());
    manual.insert_one(bson::doc! { "event_id": id }).await.unwrap();
    let verdict = judge(&file("waits")).await;
    assert_eq!((verdict.code, verdict.count("/foreign/count")), (Some(1), 1), "{verdict:#?}");
    assert!(producer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_unknown_outcome_may_be_missing_not_altered_or_duplicated() {
    let stack = Stack::start().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[("DELIVERY_TIMEOUT_MS", "1000")]);
    let consumer = stack.consumer(&names, &[]);
    producer.ready().await;
    consumer.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let (ledger, before) = (folder.path().join("ledger"), folder.path().join("before"));
    let said = load(&producer.url(""), &[], &before, &["--events", "20"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    stack.broker.pause();
    let said =
        load(&producer.url(""), &[], &ledger, &["--events", "40", "--keys", "20", "--grace", "3s"]).await;
    stack.broker.resume();
    assert_eq!((said.code, said.count("/accepted")), (Some(1), 0), "{said:?}");
    assert!(said.count("/unknown") > 0, "{said:?}");
    let verdict = verify(&names, &ledger, &[]).await;
    assert_eq!((verdict.code, verdict.count("/unknown")), (Some(0), said.count("/unknown")), "{verdict:#?}");
    assert!(verdict.count("/answered_504") > 0 && verdict.json["share_of_504s"].as_f64().unwrap() > 0.0);
    assert_eq!(verify(&names, &before, &[]).await.code, Some(0));

    let run = lines(&ledger)[0]["run"].as_str().unwrap().to_owned();
    let manual = testkit::mongo::collection(&names, "manual").await;
    let of_the_run = bson::doc! { "event_id": { "$gte": format!("{run}-"), "$lt": format!("{run}.") } };
    let there = testkit::mongo::all(&manual, of_the_run).await;
    println!("{} of {} unknown events were stored", there.len(), said.count("/unknown"));
    let one = there.first().expect("what was taken by the broker is stored");
    let id = bson::doc! { "_id": one.get_object_id("_id").unwrap() };
    manual.update_one(id, bson::doc! { "$set": { "n": -1 } }).await.unwrap();
    let verdict = verify(&names, &ledger, &[]).await;
    assert_eq!((verdict.code, verdict.count("/altered/count")), (Some(1), 1), "{verdict:#?}");

    manual.drop_index("event_id_1").await.unwrap();
    let mut again = one.clone();
    again.remove("_id");
    manual.insert_one(again).await.unwrap();
    let verdict = verify(&names, &ledger, &[]).await;
    assert_eq!((verdict.code, verdict.count("/duplicated/count")), (Some(1), 1), "{verdict:#?}");
    assert!(producer.terminate().await.success() && consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn unverifiable_ledger_is_rejected() {
    let names = Stack::shared_without_sync().await.names();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let path = ledger.to_str().unwrap();
    let nobody = format!("http://{}", free_address());
    let arguments = ["load", "--source", "manual", "--events", "1", "--grace", "10ms", "--ledger", path];
    let here = [("PRODUCER_BASE_URL", nobody.as_str())];
    let (code, said) = text(&here, &arguments).await;
    assert!(code == Some(1) && said.contains("unreachable: "), "{said}");
    let (code, said) = text(&here, &arguments).await;
    assert!(code == Some(2) && said.contains("--ledger") && said.contains("exists"), "{said}");
    let verify = ["verify", "--ledger", path, "--wait", "1s"];
    for (more, part) in
        [(("UPSERT_KEYS", "mode_s"), "UPSERT_KEYS"), (("EXPECTED_SOURCE", "adsbdb"), "source manual")]
    {
        let (code, said) = text(&names.for_every_source(&[more]), &verify).await;
        assert!(code == Some(2) && said.contains(part), "{code:?} {said}");
    }
    let (code, said) = text(&names.for_every_source(&[]), &verify).await;
    assert!(code == Some(1) && said.contains("does not exist"), "the topic was never made: {code:?} {said}");
    testkit::kafka::create_topic(&names, 1).await;
    assert_eq!(
        run(&names.for_every_source(&[]), &verify).await.code,
        Some(0),
        "nothing was sent, nothing is there"
    );
    let away = free_address().to_string();
    let no_database = format!("mongodb://{away}");
    for (more, part) in
        [(("KAFKA_BROKER", away.as_str()), "refused"), (("MONGODB_URI", &no_database), "refused")]
    {
        let (code, said) = text(&names.for_every_source(&[more]), &verify).await;
        assert!(code == Some(1) && said.contains(part), "{code:?} {said}");
    }
    let server = testkit::mongo::address(&names.mongodb).await;
    let proxy = HoldingProxy::start(server, b"\x02find\0").await;
    let silent = format!("mongodb://{}", proxy.address);
    let (code, said) = text(&names.for_every_source(&[("MONGODB_URI", &silent)]), &verify).await;
    assert!(code == Some(1) && said.contains("mongodb does not answer"), "{code:?} {said}");
    let (code, said) = text(&names.for_every_source(&[]), &["verify", "--ledger", "/no/such"]).await;
    assert!(code == Some(1) && said.contains("/no/such: "), "{code:?} {said}");
    for (old, new, part) in [("\"n\":0", "\"n\":1", "does not generate"), ("\"n\":0", "\"n\":", "line 2")] {
        let text_before = std::fs::read_to_string(&ledger).unwrap();
        std::fs::write(&ledger, text_before.replace(old, new)).unwrap();
        let (code, said) = text(&names.for_every_source(&[]), &verify).await;
        assert!(code == Some(1) && said.contains(part), "{code:?} {said}");
        std::fs::write(&ledger, text_before).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_arguments_or_environment_are_rejected_before_any_request() {
    let producer = ("PRODUCER_BASE_URL", "http://127.0.0.1:9");
    for (environment, arguments, part) in [
        (&[producer][..], &["load", "--superseded", "10"][..], "percent"),
        (&[producer], &["load", "--rate", "0"], "above 0"),
        (&[producer], &["load", "--batch", "10001"], "10000"),
        (&[producer], &["load", "--keys", "0"], "0 is not in"),
        (&[producer, ("EXPECTED_SOURCE", "*")], &["load"], "--source"),
        (&[], &["load"], "PRODUCER_BASE_URL"),
        (&[], &["verify"], "--ledger"),
        (&[("KAFKA_BROKER", "k:9092")], &["verify", "--ledger", "none"], "MONGODB_URI"),
    ] {
        let (code, said) = text(environment, arguments).await;
        assert!(code == Some(2) && said.contains(part), "{arguments:?}: {code:?} {said}");
    }
}
