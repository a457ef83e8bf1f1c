//! `slipstream dead-letters` on real servers: list, show, replay, add.

mod listing;
mod refusals;
mod replays;
mod runs;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use testkit::process::command;
use testkit::{Names, Process, Stack, eventually, kafka};

const LIMIT: Duration = Duration::from_secs(60);

/// The timestamp of a test's dead letters: some hours ago. Kafka may delete records that are older
/// than a week.
static START_MS: LazyLock<i64> = LazyLock::new(|| {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64 - 5 * 3_600_000
});

/// The shared servers. Groups need Apache Kafka.
async fn stack() -> &'static Stack {
    Stack::shared().await
}

/// Exit code and output of a command.
struct Ended {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}\n{}\n{}", self.code, String::from_utf8_lossy(&self.out), self.err)
    }
}

impl Ended {
    fn of(output: std::process::Output) -> Self {
        let err = String::from_utf8(output.stderr).unwrap();
        Self { code: output.status.code(), out: output.stdout, err }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Each output line as JSON. Panics unless the exit code is 0.
    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The summary of a replay. Panics unless it exited with `code`.
    fn summary(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.json()
    }
}

async fn run_with(names: &Names, more: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = command("slipstream", &names.environment(more));
    Ended::of(command.arg("dead-letters").args(arguments).output().await.unwrap())
}

async fn run(names: &Names, arguments: &[&str]) -> Ended {
    run_with(names, &[], arguments).await
}

async fn replay(names: &Names, arguments: &[&str]) -> Ended {
    run(names, &[&["replay", "--json"], arguments].concat()).await
}

fn client(names: &Names) -> FutureProducer {
    ClientConfig::new().set("bootstrap.servers", &names.kafka).set("acks", "all").create().unwrap()
}

/// A header; its value can be null.
type Entry<'a> = (&'a str, Option<&'a [u8]>);

/// A record to send.
#[derive(Debug, Clone, Default)]
struct Sent<'a> {
    partition: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    record_ms: Option<i64>,
    headers: &'a [Entry<'a>],
}

async fn send(names: &Names, topic: &str, records: &[Sent<'_>]) {
    let producer = client(names);
    let sent = records.iter().map(|sent| {
        let headers = sent
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: *value }));
        let record: FutureRecord<'_, [u8], [u8]> = FutureRecord {
            topic,
            partition: Some(sent.partition),
            payload: sent.value,
            key: sent.key,
            timestamp: sent.record_ms,
            headers: Some(headers),
        };
        producer.send_result(record).map_err(|(error, _)| error).unwrap()
    });
    for delivery in sent.collect::<Vec<_>>() {
        delivery.await.unwrap().unwrap();
    }
}

/// Creates the topic and its dead-letter topic.
async fn make_topics(names: &Names, partitions: i32) {
    kafka::create_topic(names, partitions).await;
    kafka::create_topic(&letters(names), partitions).await;
}

/// The names with the dead-letter topic as topic and the group of replays as group.
fn letters(names: &Names) -> Names {
    let group = format!("{}.dead-letters", names.group);
    Names { topic: names.dead_letter_topic(), group, ..names.clone() }
}

/// Writes dead letters as the consumer does: keys `k0`, `k1`, …, with reasons and partitions in
/// turn.
async fn write_letters(names: &Names, count: usize, partitions: usize, reasons: &[&str]) {
    let keys: Vec<String> = (0..count).map(|n| format!("k{n}")).collect();
    let offsets: Vec<String> = (0..count).map(|n| (n / partitions).to_string()).collect();
    let ids: Vec<String> = (0..partitions).map(|id| id.to_string()).collect();
    let headers: Vec<[Entry<'_>; 6]> = (0..count)
        .map(|n| {
            let reason = reasons[n % reasons.len()];
            [
                ("content-type", Some(&b"application/json"[..])),
                ("__connect.errors.topic", Some(names.topic.as_bytes())),
                ("__connect.errors.partition", Some(ids[n % partitions].as_bytes())),
                ("__connect.errors.offset", Some(offsets[n].as_bytes())),
                ("__connect.errors.exception.class.name", Some(&b"Refused"[..])),
                ("__connect.errors.exception.message", Some(reason.as_bytes())),
            ]
        })
        .collect();
    let records: Vec<Sent<'_>> = (0..count)
        .map(|n| Sent {
            partition: i32::try_from(n % partitions).unwrap(),
            key: Some(keys[n].as_bytes()),
            value: Some(keys[n].as_bytes()),
            record_ms: Some(*START_MS + n as i64),
            headers: &headers[n],
        })
        .collect();
    send(names, &names.dead_letter_topic(), &records).await;
}

/// The number of records of each key on the topic.
async fn keys(names: &Names) -> BTreeMap<String, usize> {
    let mut keys = BTreeMap::new();
    for record in kafka::read_all(names, &names.topic).await {
        *keys.entry(String::from_utf8(record.key().unwrap().to_vec()).unwrap()).or_default() += 1;
    }
    keys
}

/// Panics unless each of the `count` keys from `k0` is on the topic exactly once.
async fn assert_each_once(names: &Names, count: usize) {
    let keys = keys(names).await;
    let wrong: Vec<_> = (0..count).map(|n| format!("k{n}")).filter(|key| keys.get(key) != Some(&1)).collect();
    assert!(wrong.is_empty() && keys.len() == count, "{} keys, not once: {wrong:?}", keys.len());
}

/// Waits until there are `count` dead letters.
async fn dead(names: &Names, count: usize) -> Vec<OwnedMessage> {
    let topic = names.dead_letter_topic();
    eventually("the dead letters are there", LIMIT, || async {
        let letters = kafka::read_all(names, &topic).await;
        (letters.len() >= count).then_some(letters)
    })
    .await
}

/// Starts a consumer and waits until it is ready.
async fn consumer(stack: &Stack, names: &Names) -> Process {
    let consumer = stack.consumer(names, &[]);
    consumer.ready().await;
    consumer
}

/// `slipstream dead-letters add`: the consumer dead-letters a blocked record on command.
mod add {
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
        let said =
            format!("{first} is set aside as {}/{}@0\n", names.dead_letter_topic(), letter.partition());
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
        assert!(
            away.code == Some(1) && away.err.contains("no consumer answers (CONSUMER_BASE_URL)"),
            "{away:?}"
        );
        let json = add(&names, &nobody, TOKEN, &["t/0@0", "--reason", "why", "--json"]).await;
        assert_eq!((json.code, &json.json()["set_aside"]), (Some(1), &json!(null)), "{json:?}");
    }
}

/// Timestamps that a topic rejects: Kafka 4 accepts at most one hour ahead (KIP-1030).
mod timestamps {
    use std::time::{SystemTime, UNIX_EPOCH};

    use rdkafka::Message;
    use rdkafka::message::OwnedMessage;
    use testkit::{Names, kafka};

    use super::refusals::set_all;
    use super::{Sent, consumer, dead, letters, replay, run, send, stack};

    const HOUR_MS: i64 = 3_600_000;
    const TIMESTAMP: &str = "__connect.errors.timestamp";
    const AFTER: &str = "message.timestamp.after.max.ms";
    const BEFORE: &str = "message.timestamp.before.max.ms";

    fn now_ms() -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
    }

    fn by_key(records: &[OwnedMessage], key: &str) -> OwnedMessage {
        let records: Vec<_> = records.iter().filter(|record| record.key() == Some(key.as_bytes())).collect();
        assert_eq!(records.len(), 1, "{key}");
        records[0].clone()
    }

    /// Poison records with three timestamps: two hours ahead, five hours ago, and now.
    async fn send_poison(names: &Names) -> [(&'static str, i64); 3] {
        let now = now_ms();
        let times = [("ahead", now + 2 * HOUR_MS), ("old", now - 5 * HOUR_MS), ("now", now)];
        let sent = times.map(|(key, at)| Sent {
            key: Some(key.as_bytes()),
            value: Some(b"{"),
            record_ms: Some(at),
            ..Sent::default()
        });
        send(names, &names.topic, &sent).await;
        times
    }

    #[testkit::needs(apache_kafka)]
    #[tokio::test(flavor = "multi_thread")]
    async fn g5_dead_letter_with_a_rejected_timestamp_gets_the_current_time() {
        let stack = stack().await;
        let names = stack.names();
        kafka::create_topic(&names, 1).await;
        let (hour, no_limit) = (HOUR_MS.to_string(), i64::MAX.to_string());
        set_all(&names, &[(AFTER, &no_limit)]).await;
        kafka::create_topic(&letters(&names), 1).await;
        set_all(&letters(&names), &[(BEFORE, &hour)]).await;
        let started = now_ms();
        let times = send_poison(&names).await;
        let consumer = consumer(stack, &names).await;
        let found = dead(&names, 3).await;
        assert_eq!(consumer.terminate_with_counters().await.dead_lettered, 3);
        for (key, at) in times {
            let letter = by_key(&found, key);
            let (has, header) = (letter.timestamp().to_millis().unwrap(), kafka::header(&letter, TIMESTAMP));
            if key == "now" {
                assert_eq!((has, header), (at, None), "{key}");
            } else {
                assert!((started..=now_ms()).contains(&has), "{key}: {has}");
                assert_eq!(header, Some(at.to_string()), "{key}");
            }
        }
        let listed = run(&names, &["list", "--json"]).await.lines();
        let mut told: Vec<i64> = listed.iter().map(|letter| letter["timestamp"].as_i64().unwrap()).collect();
        told.sort_unstable();
        assert_eq!(told, [times[1].1, times[2].1, times[0].1]);

        // The topic accepts these timestamps again, so the replay keeps them.
        assert_eq!(replay(&names, &[]).await.summary(0)["replayed"], 3);
        let all = kafka::read_all(&names, &names.topic).await;
        for (key, at) in times {
            let replayed = by_key(&all[3..], key);
            assert_eq!(replayed.timestamp().to_millis(), Some(at), "{key}");
            assert_eq!(kafka::header(&replayed, TIMESTAMP), None, "{key}");
        }

        // The topic rejects them: each is reported with the configuration, and kept for another replay.
        for (settings, setting, key) in [
            (&[(AFTER, hour.as_str())][..], AFTER, "ahead"),
            (&[(AFTER, &no_limit), (BEFORE, &hour)], BEFORE, "old"),
        ] {
            set_all(&names, settings).await;
            let group = format!("{}-{key}", names.group);
            let ended = replay(&names, &["--group", &group]).await;
            assert_eq!(ended.summary(1)["refused"], 1, "{key}: {ended:?}");
            assert_eq!(ended.json()["replayed"], 2, "{key}: {ended:?}");
            assert!(
                ended.err.contains("INVALID_TIMESTAMP") && ended.err.contains(setting),
                "{key}: {ended:?}"
            );
        }
    }
}
