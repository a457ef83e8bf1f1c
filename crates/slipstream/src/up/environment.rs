//! What each of the three processes is told: the user's own variables, with what `up` knows better on top.

use std::net::SocketAddr;
use std::time::Duration;

use service::ConfigErrors;
use service::environment::{Environment, value};

/// Where the servers and the processes are.
#[derive(Debug, Clone)]
pub struct Places {
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// MongoDB's URI.
    pub mongodb: String,
    /// ADSBDB's base URL, if it is not the public one.
    pub adsbdb: Option<String>,
    /// Where the producer listens.
    pub producer: SocketAddr,
    /// Time between two polls, if the user said it on the command line.
    pub poll_interval: Option<Duration>,
}

/// The configurations of the three processes.
#[derive(Debug)]
pub struct Configs {
    /// The producer's.
    pub producer: producer::Config,
    /// The consumer's.
    pub consumer: consumer::Config,
}

/// Reads the configurations of producer and consumer, as the processes themselves would.
///
/// # Errors
/// Every wrong variable of all three processes.
pub fn configs(environment: &[(String, String)], places: &Places) -> Result<Configs, ConfigErrors> {
    let producer = producer::Config::from_environment(with(environment, &producer_overrides(places)));
    let consumer =
        consumer::Config::from_environment(with(environment, &consumer_overrides(environment, places)));
    // The poller's is read again once the producer's real address is known; its faults are told now.
    let poller = poller_config(environment, places, places.producer);
    match (producer, consumer, poller) {
        (Ok(producer), Ok(consumer), Ok(_)) => Ok(Configs { producer, consumer }),
        (producer, consumer, poller) => {
            let all = producer.err().into_iter().chain(consumer.err()).chain(poller.err());
            let mut faults: Vec<_> = all.flat_map(|faults| faults.0).collect();
            faults.sort();
            faults.dedup();
            Err(ConfigErrors(faults))
        }
    }
}

/// Reads the poller's configuration, once the producer's real address is known.
///
/// # Errors
/// Every wrong variable.
pub fn poller_config(
    environment: &[(String, String)],
    places: &Places,
    producer: SocketAddr,
) -> Result<poller::Config, ConfigErrors> {
    let mut overrides = vec![
        ("PRODUCER_BASE_URL", format!("http://{producer}")),
        ("DURATION_SEC", "0".into()),
        ("LISTEN_ADDR", "127.0.0.1:0".into()),
    ];
    if let Some(interval) = places.poll_interval {
        overrides.push(("INTERVAL_SEC", interval.as_secs_f64().to_string()));
    }
    poller::Config::from_environment(with(environment, &overrides))
}

/// What the operator's command has to know beyond the user's own variables, as a shell takes it.
pub fn for_tools(
    environment: &[(String, String)],
    places: &Places,
    producer: SocketAddr,
    consumer: SocketAddr,
) -> String {
    let ours = [
        ("KAFKA_BROKER", places.kafka.clone()),
        ("MONGODB_URI", places.mongodb.clone()),
        ("EXPECTED_SOURCE", "'*'".into()),
    ];
    let unnamed = ours.into_iter().filter(|(name, _)| value(environment, name).is_none());
    let processes = [
        ("PRODUCER_BASE_URL", format!("http://{producer}")),
        ("CONSUMER_BASE_URL", format!("http://{consumer}")),
    ];
    let adsbdb = places.adsbdb.clone().map(|url| ("ADSBDB_BASE_URL", url));
    let all = unnamed.chain(processes).chain(adsbdb).map(|(name, value)| format!("{name}={value}"));
    all.collect::<Vec<_>>().join(" ")
}

fn producer_overrides(places: &Places) -> Vec<(&'static str, String)> {
    let mut overrides =
        vec![("KAFKA_BROKER", places.kafka.clone()), ("LISTEN_ADDR", places.producer.to_string())];
    // On loopback nobody listens in, and no certificate has its name.
    overrides.extend(["TLS_CERT_FILE", "TLS_KEY_FILE"].map(|name| (name, String::new())));
    overrides.extend(places.adsbdb.clone().map(|url| ("ADSBDB_BASE_URL", url)));
    overrides
}

fn consumer_overrides(environment: &[(String, String)], places: &Places) -> Vec<(&'static str, String)> {
    let mut overrides = vec![
        ("KAFKA_BROKER", places.kafka.clone()),
        ("MONGODB_URI", places.mongodb.clone()),
        ("LISTEN_ADDR", "127.0.0.1:0".into()),
    ];
    if value(environment, "EXPECTED_SOURCE").is_none() {
        overrides.push(("EXPECTED_SOURCE", "*".into()));
    }
    overrides
}

fn with(environment: &[(String, String)], overrides: &[(&'static str, String)]) -> Environment {
    // A secret's file would stand beside the value that replaces it.
    let replaced =
        |key: &str| overrides.iter().any(|(name, _)| key == *name || key == format!("{name}_FILE"));
    let kept = environment.iter().filter(|(key, _)| !replaced(key)).cloned();
    kept.chain(overrides.iter().map(|(key, value)| ((*key).to_owned(), value.clone()))).collect()
}
