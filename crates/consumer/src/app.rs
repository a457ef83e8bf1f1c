//! Wires the consumer. Building needs no server; a run ends within 10 s after the stop token.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::kafka::topics::{log_changes, topic_maintenance};
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::{Listener, routes};
use service::tasks::Supervisor;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::health::Health;
use crate::kafka::dead_letters::DeadLetters;
use crate::kafka::group::watch_group;
use crate::kafka::reader::{Reader, WORKER_STOP_TIMEOUT};
use crate::metrics::{Metrics, Snapshot};
use crate::mongo::Store;
use crate::partition::worker::WorkerContext;
use crate::partition::workers::Workers;

/// How long the reader may take after the stop. The rest of the 10 s is for the process exit.
const READER_STOP_TIMEOUT: Duration = Duration::from_millis(9300);

/// Why the consumer could not start or continue.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The consumer, ready to run.
pub struct App {
    config: Config,
    listener: Listener,
    registry: Registry,
    workers: Arc<Workers>,
}

/// The counters of a consumer that runs in this process. Clones share them.
#[derive(Clone)]
pub struct Counters(Arc<Workers>);

impl Counters {
    /// Whether this process has finished the record at `offset`, committed or not. The result is
    /// right only for offsets that it may have read since its start.
    pub fn has_finished(&self, topic: &str, partition: i32, offset: i64) -> bool {
        self.0.has_finished(topic, partition, offset)
    }

    /// The counters at this moment.
    pub fn snapshot(&self) -> Snapshot {
        self.0.snapshot()
    }
}

impl App {
    /// Binds the listener and wires all parts, without connecting to a server.
    ///
    /// # Errors
    /// The address cannot be bound, or a client library rejects the configuration.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let listener = Listener::bind(config.listen_addr).await?;
        let mut registry = Registry::with_prefix("slipstream");
        let mut metrics = Metrics::new(&mut registry, &config.topics);
        if let Some(configured) = config.expected.configured() {
            metrics = metrics.with_sources(&mut registry, configured.stored());
        }
        let dead_letters = DeadLetters::new(
            config.dead_letter_producer(),
            config.group_id.clone(),
            config.dead_letter_topic.clone(),
        );
        let context = Arc::new(WorkerContext {
            store: Store::with_sources(config.store.clone(), config.call_deadline, config.expected.clone())?,
            dead_letters,
            metrics,
            expected: config.expected.clone(),
            limits: config.limits,
            unlisted_grace: config.unlisted_grace,
        });
        let workers = Arc::new(Workers::new(context, Handle::current()));
        Ok(Self { config, listener, registry, workers })
    }

    /// The bound address, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// A handle on the counters, which stays valid after the run.
    pub fn counters(&self) -> Counters {
        Counters(Arc::clone(&self.workers))
    }

    /// Starts the watch of MongoDB, and for the sources file the preparation of its collections and
    /// the watch of its deletes.
    fn spawn_store_tasks(&self, tasks: &Supervisor, stop: &CancellationToken) {
        let (store, store_stop) = (self.workers.context.store.clone(), stop.clone());
        tasks.spawn("mongodb watch", async move { store.watch(store_stop).await });
        let (store, store_stop) = (self.workers.context.store.clone(), stop.clone());
        tasks.spawn("collection preparation", async move { store.prepare(store_stop).await });
        let (store, store_stop) = (self.workers.context.store.clone(), stop.clone());
        let times = self.config.recheck_times;
        tasks.spawn("delete watch", async move { store.watch_deletes(times, store_stop).await });
    }

    /// Runs until `stop`, or until a task fails. Then it commits what is finished.
    ///
    /// # Errors
    /// A long-lived task or thread ended or panicked, which is a bug. The text names it.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), Failure> {
        self.run_with(stop, |_| ()).await
    }

    /// As [`App::run_until`], with the tasks that `start_tasks` starts. Tests end such a task on
    /// purpose.
    async fn run_with(
        self,
        stop: CancellationToken,
        start_tasks: impl FnOnce(&Supervisor),
    ) -> Result<(), Failure> {
        // These tasks outlive `stop`: workers that finish their batches need the server states.
        let background = CancellationToken::new();
        let _stops_with_app = background.clone().drop_guard();
        let tasks = Supervisor::new(&stop);
        // Dropped before the other guard, which was declared first. The supervisor then knows that
        // the end of the tasks is planned.
        let _planned_end = tasks.stop_token().clone().drop_guard();
        let admin_client = self.config.topic_admin();
        let (kafka, maintenance) =
            topic_maintenance(&admin_client, self.config.topic_specs(), background.clone())?;
        let log = log_changes(kafka.clone());
        // One task, because the log ends with the maintenance. The failure is then the cause.
        tasks.spawn("topic maintenance", async {
            tokio::join!(maintenance, log);
        });
        let (group, client_id) = (self.config.group_id.clone(), self.config.client_id());
        let (foreign_members, watching) = watch_group(admin_client, group, client_id, background.clone());
        tasks.spawn("group watch", watching);
        let store_state = self.workers.context.store.state();
        self.spawn_store_tasks(&tasks, &background);
        let reader = Reader {
            client: self.config.group_member(),
            topics: self.config.topics.clone(),
            workers: Arc::clone(&self.workers),
            kafka: kafka.clone(),
            runtime: Handle::current(),
            stop: tasks.stop_token().clone(),
            tasks: tasks.clone(),
        };
        let health = Health {
            registry: self.registry,
            tasks: tasks.clone(),
            store: store_state,
            workers: Arc::clone(&self.workers),
            kafka,
            foreign_members,
            names: names(&self.config),
            names_held_partitions: self.config.sources.is_some(),
            started: Instant::now(),
            stuck_after: self.config.stuck_after,
        };
        let workers = self.workers;
        let admin = Admin { token: self.config.admin_token.clone(), workers: Arc::clone(&workers) };
        let routes = routes(Arc::new(health)).merge(admin::routes(admin));
        let serve = self.listener.serve(routes, background.clone());
        tasks.spawn("health listener", serve);
        // The receiver completes when the sender is dropped, also by a panic.
        let (ended, reader_ended) = oneshot::channel::<()>();
        let thread = tasks.spawn_thread("reader", move || {
            let _ended = ended;
            reader.run();
        })?;
        start_tasks(&tasks);
        tasks.stop_token().cancelled().await;
        workers.begin_shutdown(WORKER_STOP_TIMEOUT);
        if tokio::time::timeout(READER_STOP_TIMEOUT, reader_ended).await.is_err() {
            tracing::warn!("reader did not end in time, the process exits without it");
        } else {
            // The thread ends at once: it only reports its result to the supervisor.
            _ = thread.join();
        }
        log_summary(&workers.snapshot());
        tasks.alive().map_err(Into::into)
    }
}

/// Logs the counters once, because `/metrics` has ended.
fn log_summary(counters: &Snapshot) {
    let Snapshot { read, inserted, updated, unchanged, superseded, deleted, .. } = *counters;
    let Snapshot { skipped, dead_lettered, repeated, .. } = *counters;
    tracing::info!(
        read,
        inserted,
        updated,
        unchanged,
        superseded,
        deleted,
        skipped,
        dead_lettered,
        repeated,
        "consumer stopped"
    );
}

fn names(config: &Config) -> serde_json::Value {
    let dead_letters: Vec<String> = config.topics.iter().map(|topic| config.dead_letters_of(topic)).collect();
    let mut names = json!({
        "topics": config.topics,
        "dead_letter_topics": dead_letters,
        "group": config.group_id,
        "database": config.store.database,
    });
    if let Some(file) = &config.sources {
        let of_source = |source: &sources::Source| {
            let store = config.expected.store_of(&source.name, &config.store.upsert_keys);
            let topic = source.topic.as_ref().or(config.topics.first());
            json!({
                "source": source.name.as_str(),
                "topic": topic,
                "collection": store.collection,
                "keys": store.keys.fields().collect::<Vec<_>>(),
                "stored": config.expected.contains(source.name.as_str()),
            })
        };
        names["sources"] = file.iter().map(of_source).collect();
    }
    names
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
    use testkit::failed_task::{LogLines, failed_livez, livez};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    async fn app(cluster: &MockCluster<'static, DefaultProducerContext>) -> App {
        for topic in ["t", "t.dlq"] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let bootstrap = cluster.bootstrap_servers();
        let environment = [
            ("KAFKA_BROKER", bootstrap.as_str()),
            ("KAFKA_TOPIC", "t"),
            ("MONGODB_URI", "mongodb://127.0.0.1:1"),
            ("LISTEN_ADDR", "127.0.0.1:0"),
        ];
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        App::build(Config::from_environment(environment).unwrap()).await.unwrap()
    }

    /// Sends an event that the consumer skips, so that it needs no database.
    async fn send_skipped(bootstrap: &str) {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
        let event =
            r#"{"id":"a","timestamp":1,"source":"other","payload":{},"ingested_at":1,"api_version":"1"}"#;
        let record = FutureRecord::<str, str>::to("t").key("a").payload(event);
        producer.send(record, TIMEOUT).await.unwrap();
    }

    /// The offset of the only partition that `group` has committed.
    fn committed_offset(bootstrap: &str, group: &str) -> Offset {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", group);
        let client: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition("t", 0);
        client.committed_offsets(list, TIMEOUT).unwrap().elements()[0].offset()
    }

    /// Runs a consumer until it has finished a record, and lets thread `name` panic. Returns the
    /// response of `/livez` during the shutdown, the error of the run, and the committed offset.
    async fn run_until_panic(name: &'static str) -> (String, String, Offset) {
        let cluster = MockCluster::new(1).unwrap();
        let app = app(&cluster).await;
        let (bootstrap, group) = (cluster.bootstrap_servers(), app.config.group_id.clone());
        let (workers, address, counters) = (Arc::clone(&app.workers), app.address(), app.counters());
        let run = tokio::spawn(app.run_until(CancellationToken::new()));
        let panic = async {
            while workers.assigned().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(livez(address).await.starts_with("HTTP/1.1 200"));
            send_skipped(&bootstrap).await;
            while counters.snapshot().skipped == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            workers.panicking_thread.set(name).unwrap();
            // Leaving the group takes this long, and the listener responds meanwhile.
            cluster.broker_round_trip_time(-1, Duration::from_millis(700)).unwrap();
            (failed_livez(address).await, run.await.unwrap())
        };
        let (livez, ended) = tokio::time::timeout(TIMEOUT, panic).await.expect("the app ends");
        cluster.broker_round_trip_time(-1, Duration::ZERO).unwrap();
        let committed = tokio::task::spawn_blocking(move || committed_offset(&bootstrap, &group));
        (livez, ended.unwrap_err().to_string(), committed.await.unwrap())
    }

    fn panicked(name: &str) -> String {
        format!("task \"{name}\" panicked: the test ends this thread")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn unexpected_end_of_the_committer_stops_the_process_with_an_error() {
        let (livez, error, committed) = run_until_panic("committer").await;
        assert!(livez.starts_with("HTTP/1.1 503") && livez.contains("committer"), "{livez}");
        assert_eq!(error, panicked("committer"));
        assert_eq!(committed, Offset::Offset(1), "the finished record is committed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn unexpected_end_of_the_lag_monitor_stops_the_process_with_an_error() {
        let (livez, error, committed) = run_until_panic("lag monitor").await;
        assert!(livez.starts_with("HTTP/1.1 503") && livez.contains("lag monitor"), "{livez}");
        assert_eq!(error, panicked("lag monitor"));
        assert_eq!(committed, Offset::Offset(1));
    }

    /// A panic of the reader also ends the threads of its client. The error must name the reader.
    #[tokio::test(flavor = "multi_thread")]
    async fn unexpected_end_of_the_reader_stops_the_process_with_an_error() {
        let (_, error, _) = run_until_panic("reader").await;
        assert_eq!(error, panicked("reader"));
    }

    #[tokio::test]
    async fn unexpected_end_of_a_task_is_logged_and_stops_the_process_with_an_error() {
        let lines = LogLines::default();
        let _guard = lines.collect();
        let (cluster, stop) = (MockCluster::new(1).unwrap(), CancellationToken::new());
        let run = app(&cluster).await.run_with(stop.clone(), |tasks| {
            tasks.spawn("extra task", async {});
        });
        let ended = tokio::time::timeout(TIMEOUT, run).await.expect("the app ends");
        assert_eq!(ended.unwrap_err().to_string(), "task \"extra task\" ended before the stop signal");
        assert!(!stop.is_cancelled(), "the consumer stops without the stop signal");
        let errors = lines.errors();
        assert!(errors.len() == 1 && errors[0].contains("\"task\":\"extra task\""), "{errors:?}");
    }

    #[tokio::test]
    async fn a_stopped_consumer_logs_no_failed_task() {
        let lines = LogLines::default();
        let _guard = lines.collect();
        let (cluster, stop) = (MockCluster::new(1).unwrap(), CancellationToken::new());
        let run = app(&cluster).await.run_until(stop.clone());
        let stopping = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(run, stopping);
        ended.unwrap();
        assert_eq!(lines.errors(), Vec::<String>::new());
    }
}
