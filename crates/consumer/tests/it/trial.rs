//! One test's share of the servers: a topic, a group and a database of its own, and verbs on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use consumer::{App, Config, Counters, Failure, Snapshot};
use futures::TryStreamExt;
use mongodb::{Client, Collection, Database};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use testkit::servers::{shared_broker, shared_mongodb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take that needs no outage to end.
pub const SOON: Duration = Duration::from_secs(60);

/// A topic, a group and a database of one test.
pub struct Trial {
    pub bootstrap: String,
    pub uri: String,
    pub topic: String,
    pub group: String,
    pub database: String,
    pub partitions: i32,
    pub producer: FutureProducer,
}

/// A record to be produced.
pub struct Sent<'a> {
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub timestamp: Option<i64>,
    pub headers: Option<OwnedHeaders>,
}

impl<'a> Sent<'a> {
    pub fn new(key: &'a str, value: &'a str) -> Self {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        Self { partition: 0, key, value, timestamp: None, headers: None }
    }
}

/// An event of source `adsbdb`, as the producer writes it.
pub fn event(id: &str, at: i64, payload: &str) -> String {
    format!(
        r#"{{"id":"{id}","timestamp":{at},"source":"adsbdb","payload":{payload},"ingested_at":{at},"api_version":"1.0.0"}}"#
    )
}

/// Waits until `reached` returns true, or panics.
pub async fn eventually(what: &str, limit: Duration, reached: impl AsyncFnMut() -> bool) {
    assert!(in_time(limit, reached).await, "not within {limit:?}: {what}");
}

/// Whether `reached` returns true within the limit.
async fn in_time(limit: Duration, mut reached: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !reached().await {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

impl Trial {
    /// On the shared servers, with a topic of `partitions`.
    pub async fn new(partitions: i32) -> Self {
        let (bootstrap, uri) = (shared_broker().await.bootstrap(), shared_mongodb().await.uri());
        let trial = Self::on(&bootstrap, &uri, partitions);
        trial.make_topic(&trial.topic, partitions, &[]).await;
        trial
    }

    /// On servers of the test's own; makes nothing there.
    pub fn on(bootstrap: &str, uri: &str, partitions: i32) -> Self {
        let name = format!("t{:016x}", fastrand::u64(..));
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("reconnect.backoff.max.ms", "200");
        Self {
            bootstrap: bootstrap.into(),
            uri: uri.into(),
            topic: format!("{name}.raw"),
            group: format!("{name}-group"),
            database: name,
            partitions,
            producer: config.create().unwrap(),
        }
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap()
    }

    pub async fn make_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let new = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (key, value)| new.set(key, value));
        let made = self.admin().create_topics([&new], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }

    /// Produces one record and waits for its acknowledgement; its offset.
    pub async fn send(&self, sent: Sent<'_>) -> i64 {
        self.send_with(&self.producer, sent).await
    }

    pub async fn send_with(&self, producer: &FutureProducer, sent: Sent<'_>) -> i64 {
        let record: FutureRecord<'_, [u8], [u8]> = FutureRecord {
            topic: &self.topic,
            partition: Some(sent.partition),
            payload: sent.value,
            key: sent.key,
            timestamp: sent.timestamp,
            headers: sent.headers,
        };
        producer.send(record, SOON).await.unwrap().offset
    }

    /// Produces `count` distinct events over all partitions, ids `{prefix}{n}`.
    pub async fn send_many(&self, prefix: &str, count: usize) {
        let mut waiting = Vec::with_capacity(count);
        for n in 0..count {
            let id = format!("{prefix}{n}");
            let value = event(&id, 1_730_000_000_000 + n as i64, &format!(r#"{{"n":{n},"mode_s":"{id}"}}"#));
            let partition = n as i32 % self.partitions;
            let mut record = FutureRecord::to(&self.topic).key(&id).payload(&value).partition(partition);
            loop {
                match self.producer.send_result(record) {
                    Ok(delivery) => break waiting.push(delivery),
                    Err((_, refused)) => {
                        record = refused;
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        for delivery in waiting {
            delivery.await.unwrap().unwrap();
        }
    }

    /// What a consumer of this trial reads from its environment.
    pub fn environment(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let partitions = self.partitions.to_string();
        let base = [
            ("KAFKA_BROKER", self.bootstrap.as_str()),
            ("KAFKA_TOPIC", &self.topic),
            ("KAFKA_GROUP_ID", &self.group),
            ("MONGODB_URI", &self.uri),
            ("MONGODB_DB", &self.database),
            ("KAFKA_PARTITIONS", &partitions),
            ("LISTEN_ADDR", "127.0.0.1:0"),
        ];
        base.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    /// On a database of the test's own making.
    pub async fn with_database(uri: &str, partitions: i32) -> Self {
        Self { uri: uri.into(), ..Self::new(partitions).await }
    }

    /// Starts a consumer.
    pub async fn start(&self, more: &[(&str, &str)]) -> Member {
        self.start_with(more, |_| {}).await
    }

    /// Starts a consumer, with changes that no environment can make.
    pub async fn start_with(&self, more: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> Member {
        let mut config = Config::from_environment(self.environment(more)).unwrap();
        change(&mut config);
        let app = App::build(config).await.unwrap();
        let (address, counters, stop) = (app.address(), app.counters(), CancellationToken::new());
        let run = tokio::spawn(app.run_until(stop.clone()));
        Member { address, counters, stop, run }
    }

    pub async fn mongo(&self) -> Database {
        Client::with_uri_str(&self.uri).await.unwrap().database(&self.database)
    }

    pub async fn collection(&self, source: &str) -> Collection<Document> {
        self.mongo().await.collection(source)
    }

    /// The document of `id`, without its `_id`.
    pub async fn document(&self, id: &str) -> Option<Document> {
        let mut found = self.collection("adsbdb").await.find_one(doc! {"event_id": id}).await.unwrap()?;
        found.remove("_id").unwrap();
        Some(found)
    }

    /// Every document's event_id, sorted.
    pub async fn ids(&self) -> Vec<String> {
        let cursor =
            self.collection("adsbdb").await.find(doc! {}).projection(doc! {"event_id": 1}).await.unwrap();
        let documents: Vec<Document> = cursor.try_collect().await.unwrap();
        let mut ids: Vec<String> =
            documents.iter().map(|d| d.get_str("event_id").unwrap().to_owned()).collect();
        ids.sort();
        ids
    }
}

/// A consumer that runs in this process.
pub struct Member {
    pub address: SocketAddr,
    pub counters: Counters,
    stop: CancellationToken,
    run: JoinHandle<Result<(), Failure>>,
}

impl Member {
    pub fn seen(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Waits until `records` are finished.
    pub async fn finishes(&self, records: u64) {
        let what = format!("{records} records finished");
        let waiting = async || self.seen().finished() >= records;
        eventually(&what, SOON, waiting).await;
        assert_eq!(self.seen().finished(), records, "{:?}", self.seen());
    }

    /// Stops it cleanly; what it counted. Fails if it takes 10 s.
    pub async fn stop(self) -> Snapshot {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.run).await;
        ended.expect("it ends within 10 s").unwrap().unwrap();
        self.counters.snapshot()
    }

    /// Asks it over HTTP; status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.address, path).await.unwrap()
    }

    pub async fn ready(&self) -> bool {
        self.get("/readyz").await.0 == 200
    }

    /// Waits until it is ready, or panics with its health.
    pub async fn becomes_ready(&self) {
        let ready = in_time(SOON, async || self.ready().await).await;
        assert!(ready, "not ready within {SOON:?}: {}", self.health().await);
    }

    pub async fn health(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/health").await.1).unwrap()
    }

    /// How many partitions it has.
    pub async fn assigned(&self) -> usize {
        self.health().await["assignment"].as_array().unwrap().len()
    }

    /// What `/metrics` says of `name`, labels included.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.get("/metrics").await.1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(line.parse().unwrap())
    }
}

/// Asks `address` over HTTP; status and body.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, answer.split_once("\r\n\r\n").unwrap().1.to_owned()))
}

impl Trial {
    /// The group's committed offset of each partition that has one.
    pub async fn committed(&self) -> BTreeMap<i32, i64> {
        let deadline = Instant::now() + SOON;
        let committed = loop {
            let consumer = self.reader(&self.group);
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&self.topic, 0, self.partitions - 1);
            let ask = move || consumer.committed_offsets(list, Duration::from_secs(5));
            match tokio::task::spawn_blocking(ask).await.unwrap() {
                Ok(committed) => break committed,
                Err(error) => assert!(is_passing(&error) && Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
        committed.elements().iter().filter_map(|e| Some((e.partition(), offset(e.offset())?))).collect()
    }

    /// Everything in the dead-letter topic now.
    pub async fn dead_letters(&self) -> Vec<OwnedMessage> {
        self.records_of(format!("{}.dlq", self.topic)).await
    }

    /// Everything in `topic` now.
    pub async fn records_of(&self, topic: String) -> Vec<OwnedMessage> {
        let consumer = self.reader("none");
        tokio::task::spawn_blocking(move || read_to_end(&consumer, &topic)).await.unwrap()
    }

    pub fn reader(&self, group: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap()
    }
}

/// Whether a broker that was away is not yet its groups' coordinator again.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let coordinator = [Code::NotCoordinator, Code::CoordinatorNotAvailable, Code::CoordinatorLoadInProgress];
    error.rdkafka_error_code().is_some_and(|code| coordinator.contains(&code))
}

/// The text of a dead letter's header about its error.
pub fn told(letter: &OwnedMessage, name: &str) -> String {
    let name = format!("__connect.errors.{name}");
    let header = letter.headers().unwrap().iter().find(|header| header.key == name);
    String::from_utf8(header.unwrap_or_else(|| panic!("no {name}")).value.unwrap().to_vec()).unwrap()
}

fn read_to_end(consumer: &BaseConsumer, topic: &str) -> Vec<OwnedMessage> {
    let metadata = consumer.fetch_metadata(Some(topic), SOON).unwrap();
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    for &partition in &partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut messages, mut open) = (Vec::new(), partitions.len());
    let deadline = Instant::now() + SOON;
    while open > 0 {
        assert!(Instant::now() < deadline, "the dead-letter topic does not end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => messages.push(message.detach()),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    messages
}
