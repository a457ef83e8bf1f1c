//! Wires the consumer. Building needs no server; a run ends within 10 s after the stop token.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::kafka::topics::{log_changes, maintain_topics};
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::{Listener, routes};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::counters::Counters;
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
    context: Arc<WorkerContext>,
    workers: Arc<Workers>,
    counters: Counters,
}

impl App {
    /// Binds the listener and wires all parts, without connecting to a server.
    ///
    /// # Errors
    /// The address cannot be bound, or a client library rejects the configuration.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let listener = Listener::bind(config.listen_addr).await?;
        let mut registry = Registry::with_prefix("slipstream");
        let metrics = Metrics::new(&mut registry, &config.topics);
        let dead_letters = DeadLetters::new(
            config.dead_letter_producer(),
            config.group_id.clone(),
            config.dead_letter_topic.clone(),
        );
        let context = Arc::new(WorkerContext {
            store: Store::with_deadline(config.store.clone(), config.call_deadline).await?,
            dead_letters,
            metrics: metrics.clone(),
            expected: config.expected.clone(),
            limits: config.limits,
            unlisted_grace: config.unlisted_grace,
        });
        let workers = Arc::new(Workers::new(Arc::clone(&context), Handle::current()));
        let counters = Counters::new(metrics, Arc::clone(&workers));
        Ok(Self { config, listener, registry, context, workers, counters })
    }

    /// The bound address, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// A handle on the counters, which stays valid after the run.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// The listener, the reader or the committer ended unexpectedly.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), Failure> {
        // These tasks outlive `stop`: workers that finish their batches need the server states.
        let background = CancellationToken::new();
        let _stops_with_app = background.clone().drop_guard();
        let admin_client = self.config.topic_admin();
        let kafka = maintain_topics(&admin_client, self.config.topic_specs(), background.clone())?;
        tokio::spawn(log_changes(kafka.clone()));
        let (group, client_id) = (self.config.group_id.clone(), self.config.client_id());
        let foreign_members = watch_group(admin_client, group, client_id, background.clone());
        let (store, store_stop) = (self.context.store.clone(), background.clone());
        tokio::spawn(async move { store.watch(store_stop).await });
        let reader_stop = stop.child_token();
        let _reader_stops_with_app = reader_stop.clone().drop_guard();
        let reader = Reader {
            client: self.config.group_member(),
            topics: self.config.topics.clone(),
            workers: Arc::clone(&self.workers),
            kafka: kafka.clone(),
            runtime: Handle::current(),
            stop: reader_stop,
        };
        let (workers, counters) = (Arc::clone(&self.workers), self.counters.clone());
        let health = Health {
            registry: self.registry,
            store: self.context.store.state(),
            context: self.context,
            workers: self.workers,
            counters: self.counters,
            kafka,
            foreign_members,
            names: names(&self.config),
            started: Instant::now(),
            stuck_after: self.config.stuck_after,
        };
        let admin = Admin { token: self.config.admin_token.clone(), workers: Arc::clone(&workers) };
        let routes = routes(Arc::new(health)).merge(admin::routes(admin));
        let serve = self.listener.serve(routes, background.clone());
        let listener = tokio::spawn(serve);
        let mut reader = spawn(reader)?;
        tokio::select! {
            biased;
            () = stop.cancelled() => workers.begin_shutdown(WORKER_STOP_TIMEOUT),
            _ = &mut reader => {
                return Err(workers.fatal_error().unwrap_or("the reader ended unexpectedly").into());
            }
            ended = listener => {
                ended??;
                return Err("the listener ended unexpectedly".into());
            }
        }
        if tokio::time::timeout(READER_STOP_TIMEOUT, reader).await.is_err() {
            tracing::warn!("reader did not end in time and is left behind");
        }
        log_summary(&counters.snapshot());
        Ok(())
    }
}

/// Starts the reader thread. The receiver completes when the thread ends, also after a panic.
fn spawn(reader: Reader) -> std::io::Result<oneshot::Receiver<()>> {
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        reader.run();
        _ = ended.send(());
    })?;
    Ok(receiver)
}

/// Logs the counters once, because `/metrics` has ended.
fn log_summary(counters: &Snapshot) {
    let Snapshot { read, inserted, updated, unchanged, superseded, skipped, dead_lettered, repeated, .. } =
        *counters;
    tracing::info!(
        read,
        inserted,
        updated,
        unchanged,
        superseded,
        skipped,
        dead_lettered,
        repeated,
        "consumer stopped"
    );
}

fn names(config: &Config) -> serde_json::Value {
    let dead_letters: Vec<String> = config.topics.iter().map(|topic| config.dead_letters_of(topic)).collect();
    json!({
        "topics": config.topics,
        "dead_letter_topics": dead_letters,
        "group": config.group_id,
        "database": config.store.database,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use rdkafka::mocking::MockCluster;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn unexpected_end_of_the_committer_stops_the_process_with_an_error() {
        let cluster = MockCluster::new(1).unwrap();
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
        let app = App::build(Config::from_environment(environment).unwrap()).await.unwrap();
        let workers = Arc::clone(&app.workers);
        assert_eq!(workers.fatal_error(), None);
        workers.committer_panics.store(true, Ordering::Relaxed);
        let run = app.run_until(CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_secs(60), run).await.expect("the app ends");
        assert_eq!(ended.unwrap_err().to_string(), "the committer ended unexpectedly");
        assert!(workers.fatal_error().is_some(), "/livez fails");
    }
}
