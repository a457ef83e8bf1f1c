//! The consumer, wired. Building it needs no server; running it ends with the stop token, within 10 s.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::topics::{log_changes, maintain_topics};
use prometheus_client::registry::Registry;
use serde_json::json;
use service::health::{Listener, routes};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::health::Health;
use crate::kafka::clients;
use crate::kafka::dead_letters::DeadLetters;
use crate::kafka::group::watch_group;
use crate::kafka::reader::{GRACE, Reader};
use crate::metrics::{Counters, Metrics, Snapshot};
use crate::mongo::Store;
use crate::partition::worker::Work;
use crate::partition::workers::Lanes;

/// After the stop, the reader is waited for this long; the rest of the 10 s is for the end of the process.
const STOP_LIMIT: Duration = Duration::from_millis(9300);

/// Why the consumer could not start or go on.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The consumer, ready to run.
pub struct App {
    config: Config,
    listener: Listener,
    registry: Registry,
    work: Arc<Work>,
    lanes: Arc<Lanes>,
    counters: Counters,
}

impl App {
    /// Binds the listener and wires everything; connects to nothing yet.
    ///
    /// # Errors
    /// The address cannot be bound, or a client library refuses the configuration.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let listener = Listener::bind(config.listen_addr).await?;
        let mut registry = Registry::with_prefix("slipstream");
        let metrics = Metrics::new(&mut registry, &config.topics);
        let dead_letters = DeadLetters::new(
            clients::dead_letters(&config),
            config.group_id.clone(),
            config.dead_letter_topic.clone(),
        );
        let work = Arc::new(Work {
            store: Store::with_deadline(config.store.clone(), config.call_deadline).await?,
            dead_letters,
            metrics: metrics.clone(),
            expected: config.expected.clone(),
            limits: config.limits,
            unlisted_grace: config.unlisted_grace,
        });
        let lanes = Arc::new(Lanes::new(Arc::clone(&work), Handle::current()));
        let counters = Counters::new(metrics, Arc::clone(&lanes));
        Ok(Self { config, listener, registry, work, lanes, counters })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// A handle on the counters, good also after the run.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Reads, writes and answers until `stop`.
    ///
    /// # Errors
    /// The listener or the reader ended without being told to.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), Failure> {
        // Outlives `stop`: what is in hand still needs to know how the servers are.
        let background = CancellationToken::new();
        let _ends_with_us = background.clone().drop_guard();
        let specs = self.config.topic_specs();
        let kafka = maintain_topics(&clients::upkeep(&self.config), specs, background.clone())?;
        tokio::spawn(log_changes(kafka.clone()));
        let (group, client_id) = (self.config.group_id.clone(), self.config.client_id());
        let strangers = watch_group(clients::upkeep(&self.config), group, client_id, background.clone());
        let (store, watched) = (self.work.store.clone(), background.clone());
        tokio::spawn(async move { store.watch(watched).await });
        let reading = stop.child_token();
        let _reads_no_longer_than_us = reading.clone().drop_guard();
        let reader = Reader {
            client: clients::reader(&self.config),
            topics: self.config.topics.clone(),
            lanes: Arc::clone(&self.lanes),
            kafka: kafka.clone(),
            runtime: Handle::current(),
            stop: reading,
        };
        let (lanes, counters) = (Arc::clone(&self.lanes), self.counters.clone());
        let health = Health {
            registry: self.registry,
            store: self.work.store.state(),
            work: self.work,
            lanes: self.lanes,
            counters: self.counters,
            kafka,
            strangers,
            names: names(&self.config),
            started: Instant::now(),
            stuck_after: self.config.stuck_after,
        };
        let admin = Admin { token: self.config.admin_token.clone(), lanes: Arc::clone(&lanes) };
        let routes = routes(Arc::new(health)).merge(admin::routes(admin));
        let serve = self.listener.serve(routes, background.clone());
        let served = tokio::spawn(serve);
        let mut read = spawn(reader)?;
        tokio::select! {
            biased;
            () = stop.cancelled() => lanes.stop(GRACE),
            _ = &mut read => return Err(lanes.broken().unwrap_or("the reader ended by itself").into()),
            ended = served => {
                ended??;
                return Err("the listener ended by itself".into());
            }
        }
        if tokio::time::timeout(STOP_LIMIT, read).await.is_err() {
            tracing::warn!("the reader did not end in time and is left behind");
        }
        summarize(&counters.snapshot());
        Ok(())
    }
}

/// Starts the reader's thread; the receiver is answered when it ends, also by a panic.
fn spawn(reader: Reader) -> std::io::Result<oneshot::Receiver<()>> {
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        reader.run();
        _ = ended.send(());
    })?;
    Ok(receiver)
}

/// One line on what was done, since nobody can ask for it any more.
fn summarize(counted: &Snapshot) {
    let Snapshot { read, inserted, updated, unchanged, stale, skipped, dead_lettered, repeated, .. } =
        *counted;
    tracing::info!(
        read,
        inserted,
        updated,
        unchanged,
        stale,
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
    async fn a_committer_that_ends_stops_the_process_with_an_error() {
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
        let lanes = Arc::clone(&app.lanes);
        assert_eq!(lanes.broken(), None);
        lanes.panics.store(true, Ordering::Relaxed);
        let run = app.run_until(CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it ends by itself");
        assert_eq!(ended.unwrap_err().to_string(), "the committer ended unexpectedly");
        assert!(lanes.broken().is_some(), "/livez fails");
    }
}
