//! The guarantees of the contract that need the whole system. A test's prefix is the number of its
//! guarantee.

mod series;
mod sources;

/// G4: the content of error responses, and retries.
mod error_responses {
    use std::time::Duration;

    use bson::doc;
    use serde_json::json;
    use testkit::http::{Response, request};
    use testkit::{Stack, eventually, http, kafka, mongo};

    const JSON: &str = "application/json";

    /// Panics unless the response is a complete problem document with this status and `retryable`.
    fn assert_problem(response: &Response, status: u16, retryable: bool) {
        assert_eq!(response.status, status, "{response:?}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"), "{response:?}");
        assert_eq!(response.body["retryable"], retryable, "{response:?}");
        assert_eq!(response.body["status"], status, "{response:?}");
        for field in ["type", "title", "detail"] {
            assert!(response.body[field].is_string(), "{field} in {response:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g4_every_error_response_states_whether_a_retry_helps() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let more = [
            ("REQUIRE_ID", "true"),
            ("MAX_PAYLOAD_BYTES", "1000"),
            ("ACCEPT_SOURCES", "manual,adsbdb"),
            // Nothing listens on port 1: ADSBDB is unavailable.
            ("ADSBDB_BASE_URL", "http://127.0.0.1:1"),
        ];
        let producer = stack.producer(&names, &more);
        producer.ready().await;
        let url = producer.url("/ingest");
        let large =
            json!({"id": "x", "source": "manual", "payload": {"text": "x".repeat(2_000)}}).to_string();
        for (method, path, content_type, body, status) in [
            ("POST", "/ingest", JSON, "", 400),
            ("POST", "/ingest", JSON, "{", 400),
            ("POST", "/ingest", JSON, r#"{"source":"manual","payload":{}}"#, 400),
            ("GET", "/nowhere", JSON, "", 404),
            ("DELETE", "/ingest", JSON, "", 405),
            ("POST", "/ingest", JSON, &large, 413),
            ("POST", "/ingest", "text/plain", "{}", 415),
            ("POST", "/ingest", JSON, r#"{"id":"x","source":"manual","payload":[]}"#, 422),
            ("POST", "/ingest", JSON, r#"{"id":"x","source":"other","payload":{}}"#, 422),
            ("POST", "/ingest", JSON, r#"{"id":"x","source":"manual","payload":{},"more":1}"#, 422),
            ("POST", "/ingest/adsbdb/poll?interval_sec=0", JSON, "", 400),
            ("GET", "/ingest/adsbdb/poll/none", JSON, "", 404),
        ] {
            let response = request(method, &producer.url(path), content_type, body).await.unwrap();
            assert_problem(&response, status, false);
            assert_eq!(response.header("retry-after"), None, "{response:?}");
        }
        let response = request("POST", &producer.url("/ingest/adsbdb"), JSON, "").await.unwrap();
        assert_problem(&response, 502, true);
        let fine = json!({"id": "x", "source": "manual", "payload": {}});
        assert_eq!(http::post(&url, &fine).await.unwrap().status, 202);
        assert_eq!(
            kafka::read_all(&names, &names.topic).await.len(),
            1,
            "what is refused is not on the topic"
        );
        assert!(producer.terminate().await.success());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g4_unknown_outcome_is_504_and_a_retry_with_the_same_id_is_safe() {
        let stack = Stack::start().await;
        let names = stack.names();
        let producer = stack.producer(&names, &[("DELIVERY_TIMEOUT_MS", "1000")]);
        let consumer = stack.consumer(&names, &[]);
        producer.ready().await;
        consumer.ready().await;
        let (url, body) = (producer.url("/ingest"), json!({"source": "manual", "payload": {"n": 1}}));
        let first = http::post(&url, &body).await.unwrap();
        assert_eq!(first.status, 202);
        stack.broker.pause();
        let response = http::post(&url, &body).await.unwrap();
        assert_problem(&response, 504, true);
        let id = response.body["id"].as_str().expect("the id, though it was generated").to_owned();
        stack.broker.resume();

        let again = json!({"id": id, "source": "manual", "payload": {"n": 2}});
        for _ in 0..3 {
            eventually("it is accepted", Duration::from_secs(30), || async {
                let response = http::post(&url, &again).await.ok()?;
                assert!(response.status == 202 || response.body["retryable"] == true, "{response:?}");
                (response.status == 202).then_some(())
            })
            .await;
        }
        let manual = mongo::collection(&names, "manual").await;
        let first = first.body["id"].as_str().expect("an id");
        eventually("both events are documents", Duration::from_secs(30), || async {
            // The events can be in different partitions, so either can be stored first.
            mongo::find(&manual, first).await?;
            let found = mongo::find(&manual, &id).await?;
            (found.get_i32("n").ok()? == 2).then_some(())
        })
        .await;
        assert_eq!(manual.count_documents(doc! {}).await.unwrap(), 2);
        assert!(producer.terminate().await.success());
        assert!(consumer.terminate().await.success());
    }
}

/// Servers that are unavailable and return.
mod outages {
    use std::time::{Duration, Instant};

    use bson::doc;
    use serde_json::json;
    use testkit::{Stack, eventually, http, kafka, mongo};

    /// Duration of the outage: longer than every timeout of the client libraries.
    const OUTAGE: Duration = Duration::from_secs(20);

    #[testkit::needs(own_mongodb)]
    #[tokio::test(flavor = "multi_thread")]
    async fn g6_mongodb_unavailable_for_20_s_no_event_is_lost() {
        let stack = Stack::start().await;
        let names = stack.names();
        let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
        producer.ready().await;
        consumer.ready().await;
        let manual = mongo::collection(&names, "manual").await;
        let bodies =
            (0..3_000).map(|n| json!({"id": format!("e{n}"), "source": "manual", "payload": {"n": n}}));
        let (url, bodies) = (producer.url("/ingest"), bodies.collect());
        let load = tokio::spawn(async move { http::post_all(&url, bodies).await });
        eventually("the middle of the load", Duration::from_secs(30), || async {
            (manual.count_documents(doc! {}).await.ok()? >= 500).then_some(())
        })
        .await;

        stack.mongodb.kill();
        let gone = Instant::now();
        eventually("the consumer says that it is not ready", Duration::from_secs(15), || async {
            let response = http::get(&consumer.url("/readyz")).await.ok()?;
            (response.status == 503).then_some(())
        })
        .await;
        load.await.unwrap();
        tokio::time::sleep_until((gone + OUTAGE).into()).await;
        assert!(consumer.is_running() && producer.is_running());
        stack.mongodb.restart().await.unwrap();
        let back = Instant::now();
        eventually("every event is a document", Duration::from_secs(60), || async {
            (manual.count_documents(doc! {}).await.ok()? == 3_000).then_some(())
        })
        .await;
        println!("all stored {:?} after the database answered again", back.elapsed());
        assert!(
            kafka::read_all(&names, &names.dead_letter_topic()).await.is_empty(),
            "an outage is no reason for a dead letter"
        );
        assert!(consumer.is_running() && producer.is_running());
        let log = consumer.log();
        let lines =
            ["mongodb is unavailable", "mongodb is ready"].map(|message| log.matches(message).count());
        assert_eq!(lines, [1, 2], "one line a change of state: {log}");
        assert!(consumer.terminate().await.success());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g6_unavailable_broker_is_reported_at_once_and_work_resumes() {
        let stack = Stack::start().await;
        let names = stack.names();
        let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
        producer.ready().await;
        consumer.ready().await;
        stack.broker.kill();
        eventually("readyz is 503", Duration::from_secs(10), || async {
            let response = http::get(&producer.url("/readyz")).await.ok()?;
            (response.status == 503).then_some(())
        })
        .await;

        let asked = Instant::now();
        let body = json!({"id": "one", "source": "manual", "payload": {}});
        let response = http::post(&producer.url("/ingest"), &body).await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert_eq!(response.status, 503, "{response:?}");
        assert!(response.header("retry-after").is_some(), "{response:?}");
        assert_eq!((&response.body["retryable"], &response.body["id"]), (&json!(true), &json!("one")));
        let health = http::get(&producer.url("/health")).await.unwrap();
        assert_eq!((health.status, &health.body["status"]), (200, &json!("degraded")), "{health:?}");
        assert!(health.body["last_error"].is_string() || health.body["last_error"].is_object(), "{health:?}");

        stack.broker.restart().await.unwrap();
        let back = Instant::now();
        eventually("events are accepted again", Duration::from_secs(5), || async {
            let response = http::post(&producer.url("/ingest"), &body).await.ok()?;
            (response.status == 202).then_some(())
        })
        .await;
        println!("accepted {:?} after the broker answered again", back.elapsed());
        let manual = mongo::collection(&names, "manual").await;
        eventually("the event is a document", Duration::from_secs(30), || mongo::find(&manual, "one")).await;
        println!("stored {:?} after the broker answered again", back.elapsed());
        assert!(consumer.is_running() && producer.is_running());
    }
}

/// Processes that are killed under load.
mod process_kills {
    use std::collections::HashSet;
    use std::time::Duration;

    use bson::doc;
    use serde_json::json;
    use testkit::{Stack, eventually, http, mongo};

    #[tokio::test(flavor = "multi_thread")]
    async fn g1_5_000_events_survive_three_kills_of_the_consumer() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let producer = stack.producer(&names, &[]);
        producer.ready().await;
        let bodies =
            (0..5_000).map(|n| json!({"id": format!("e{n}"), "source": "manual", "payload": {"n": n}}));
        let (url, bodies) = (producer.url("/ingest"), bodies.collect());
        let load = tokio::spawn(async move { http::post_all(&url, bodies).await });

        let manual = mongo::collection(&names, "manual").await;
        for kill in 1..=3_u64 {
            let consumer = stack.consumer(&names, &[]);
            // It is killed while it works: it has stored more documents than before.
            eventually("the consumer works", Duration::from_secs(60), || async {
                let stored = manual.count_documents(doc! {}).await.ok()?;
                (stored >= kill * 600).then_some(())
            })
            .await;
            consumer.kill().await;
        }
        load.await.unwrap();
        let consumer = stack.consumer(&names, &[]);
        let documents = eventually("every event is a document", Duration::from_secs(90), || async {
            let documents = mongo::all(&manual, doc! {}).await;
            (documents.len() >= 5_000).then_some(documents)
        })
        .await;
        let ids: HashSet<&str> =
            documents.iter().map(|document| document.get_str("event_id").unwrap()).collect();
        assert_eq!((ids.len(), documents.len()), (5_000, 5_000), "none lost, none twice");
        assert!(consumer.terminate().await.success());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g1_accepted_events_survive_a_kill_of_the_producer() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let consumer = stack.consumer(&names, &[]);
        let producer = stack.producer(&names, &[]);
        producer.ready().await;
        let accepted = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let (url, collected) = (producer.url("/ingest"), std::sync::Arc::clone(&accepted));
        let load = tokio::spawn(async move {
            for n in 0.. {
                let id = format!("k{n}");
                let body = json!({"id": id, "source": "manual", "payload": {}});
                match http::post(&url, &body).await {
                    Ok(response) if response.status == 202 => collected.lock().unwrap().push(id),
                    Ok(response) => panic!("{response:?}"),
                    Err(_) => return,
                }
            }
        });
        eventually("some are accepted", Duration::from_secs(30), || async {
            (accepted.lock().unwrap().len() > 300).then_some(())
        })
        .await;
        producer.kill().await;
        load.await.unwrap();
        let manual = mongo::collection(&names, "manual").await;
        let accepted = accepted.lock().unwrap().clone();
        eventually("every accepted event is a document", Duration::from_secs(60), || async {
            let documents = mongo::all(&manual, doc! {}).await;
            let ids: HashSet<&str> =
                documents.iter().filter_map(|document| document.get_str("event_id").ok()).collect();
            accepted.iter().all(|id| ids.contains(id.as_str())).then_some(())
        })
        .await;
        assert!(consumer.terminate().await.success());
    }
}

/// Graceful shutdown under load.
mod shutdown {
    use std::time::Duration;

    use bson::doc;
    use serde_json::json;
    use testkit::{Process, Stack, eventually, http, mongo};

    const EVENTS: u64 = 4_000;

    /// The number of records that the consumer has read and finished.
    async fn counted(consumer: &Process) -> Option<(u64, u64)> {
        let counters = http::get(&consumer.url("/health")).await.ok()?.body["counters"].clone();
        let finished = ["inserted", "updated", "unchanged", "superseded", "skipped", "dead_lettered"];
        let finished = finished.iter().map(|outcome| counters[outcome].as_u64()).sum::<Option<u64>>()?;
        Some((counters["read"].as_u64()?, finished))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g7_consumer_shutdown_under_load_no_loss_and_no_repeat() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let producer = stack.producer(&names, &[]);
        producer.ready().await;
        let bodies =
            (0..EVENTS).map(|n| json!({"id": format!("e{n}"), "source": "manual", "payload": {"n": n}}));
        let (url, bodies) = (producer.url("/ingest"), bodies.collect());
        let load = tokio::spawn(async move { http::post_all(&url, bodies).await });
        let first = stack.consumer(&names, &[]);
        let before = eventually("a third is finished", Duration::from_secs(60), || async {
            counted(&first).await.filter(|(_, finished)| *finished > EVENTS / 3)
        });
        before.await;
        let manual = mongo::collection(&names, "manual").await;
        let ended = first.terminate().await;
        assert!(ended.success(), "{ended}");
        load.await.unwrap();
        assert!(producer.terminate().await.success());
        // The records that the first consumer finished are stored, committed, and not read again: the
        // second one finishes exactly the others.
        let stored = manual.count_documents(doc! {}).await.unwrap();
        let second = stack.consumer(&names, &[]);
        eventually("the rest is finished", Duration::from_secs(60), || async {
            (manual.count_documents(doc! {}).await.ok()? == EVENTS).then_some(())
        })
        .await;
        let rest = eventually("the rest is counted", Duration::from_secs(5), || async {
            counted(&second).await.filter(|(read, finished)| read == finished)
        });
        assert_eq!(stored + rest.await.1, EVENTS, "nothing lost, nothing twice");
        assert!(second.terminate().await.success());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g7_producer_shutdown_under_load_responds_to_each_request() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let consumer = stack.consumer(&names, &[]);
        let producer = stack.producer(&names, &[]);
        producer.ready().await;
        let url = producer.url("/ingest");
        let senders: Vec<_> =
            (0..8).map(|sender| tokio::spawn(send_until_connection_refused(url.clone(), sender))).collect();
        let manual = mongo::collection(&names, "manual").await;
        eventually("events arrive", Duration::from_secs(60), || async {
            (manual.count_documents(doc! {}).await.ok()? > 200).then_some(())
        })
        .await;
        let ended = producer.terminate().await;
        assert!(ended.success(), "{ended}");
        let (mut accepted, mut cut) = (0, 0);
        for sender in senders {
            let sent = sender.await.unwrap();
            accepted += sent.accepted;
            cut += u64::from(sent.cut);
        }
        eventually("every accepted event is a document", Duration::from_secs(60), || async {
            (manual.count_documents(doc! {}).await.ok()? >= accepted).then_some(())
        })
        .await;
        assert!(consumer.terminate().await.success());
        let stored = manual.count_documents(doc! {}).await.unwrap();
        assert!(stored <= accepted + cut, "{stored} stored, {accepted} accepted, {cut} cut");
    }

    /// Responses to one client until the producer has ended.
    struct Sent {
        accepted: u64,
        /// Whether the last connection was closed without a response: it was opened when the listener
        /// closed, and its request was not read. The outcome is unknown to the client.
        cut: bool,
    }

    /// Sends until the producer has ended. Panics if a response is neither 202 nor 503.
    async fn send_until_connection_refused(url: String, sender: usize) -> Sent {
        let mut accepted = 0;
        loop {
            let body = json!({"id": format!("{sender}-{accepted}"), "source": "manual", "payload": {}});
            match http::post(&url, &body).await {
                Ok(response) if response.status == 202 => accepted += 1,
                Ok(response) => assert_eq!(response.status, 503, "{response:?}"),
                Err(error) => return Sent { accepted, cut: !error.is_connect() },
            }
        }
    }
}
