//! `slipstream dead-letters` on real servers: list, show, replay, add.

mod add;
mod listing;
mod refusals;
mod replays;
mod runs;
mod timestamps;

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
