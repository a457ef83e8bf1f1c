//! The configurations of the three processes: the user's variables, with overrides by `up`.

use std::net::SocketAddr;
use std::time::Duration;

use service::ConfigErrors;
use service::environment::{Environment, value};

/// The addresses of servers and processes.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Kafka bootstrap servers.
    pub kafka: String,
    /// MongoDB URI.
    pub mongodb: String,
    /// Base URL of ADSBDB, unless it is the public one.
    pub adsbdb: Option<String>,
    /// Listen address of the producer.
    pub producer: SocketAddr,
    /// Time between two polls, if the command line sets it.
    pub poll_interval: Option<Duration>,
}

/// The configurations of producer and consumer.
#[derive(Debug)]
pub struct Configs {
    /// The producer's.
    pub producer: producer::Config,
    /// The consumer's.
    pub consumer: consumer::Config,
}

/// Reads the configurations of producer and consumer as the processes do.
///
/// # Errors
/// All wrong variables of the three processes.
pub fn configs(environment: &[(String, String)], addresses: &Addresses) -> Result<Configs, ConfigErrors> {
    let producer = producer::Config::from_environment(with(environment, &producer_overrides(addresses)));
    let consumer =
        consumer::Config::from_environment(with(environment, &consumer_overrides(environment, addresses)));
    // The poller's configuration is read again when the producer's real address is known; its
    // faults are reported now.
    let poller = poller_config(environment, addresses, addresses.producer);
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

/// Reads the poller's configuration with the producer's real address.
///
/// # Errors
/// All wrong variables.
pub fn poller_config(
    environment: &[(String, String)],
    addresses: &Addresses,
    producer: SocketAddr,
) -> Result<poller::Config, ConfigErrors> {
    let mut overrides = vec![
        ("PRODUCER_BASE_URL", format!("http://{producer}")),
        ("DURATION_SEC", "0".into()),
        ("LISTEN_ADDR", "127.0.0.1:0".into()),
    ];
    if let Some(interval) = addresses.poll_interval {
        overrides.push(("INTERVAL_SEC", interval.as_secs_f64().to_string()));
    }
    poller::Config::from_environment(with(environment, &overrides))
}

/// The variables that other `slipstream` commands need besides the user's, in shell syntax.
pub fn tool_variables(
    environment: &[(String, String)],
    addresses: &Addresses,
    producer: SocketAddr,
    consumer: SocketAddr,
) -> String {
    let ours = [
        ("KAFKA_BROKER", addresses.kafka.clone()),
        ("MONGODB_URI", addresses.mongodb.clone()),
        ("EXPECTED_SOURCE", "'*'".into()),
    ];
    let unset = ours.into_iter().filter(|(name, _)| value(environment, name).is_none());
    let processes = [
        ("PRODUCER_BASE_URL", format!("http://{producer}")),
        ("CONSUMER_BASE_URL", format!("http://{consumer}")),
    ];
    let adsbdb = addresses.adsbdb.clone().map(|url| ("ADSBDB_BASE_URL", url));
    let all = unset.chain(processes).chain(adsbdb).map(|(name, value)| format!("{name}={value}"));
    all.collect::<Vec<_>>().join(" ")
}

fn producer_overrides(addresses: &Addresses) -> Vec<(&'static str, String)> {
    let mut overrides =
        vec![("KAFKA_BROKER", addresses.kafka.clone()), ("LISTEN_ADDR", addresses.producer.to_string())];
    // Loopback needs no TLS, and no certificate has its name.
    overrides.extend(["TLS_CERT_FILE", "TLS_KEY_FILE"].map(|name| (name, String::new())));
    overrides.extend(addresses.adsbdb.clone().map(|url| ("ADSBDB_BASE_URL", url)));
    overrides
}

fn consumer_overrides(
    environment: &[(String, String)],
    addresses: &Addresses,
) -> Vec<(&'static str, String)> {
    let mut overrides = vec![
        ("KAFKA_BROKER", addresses.kafka.clone()),
        ("MONGODB_URI", addresses.mongodb.clone()),
        ("LISTEN_ADDR", "127.0.0.1:0".into()),
    ];
    if value(environment, "EXPECTED_SOURCE").is_none() {
        overrides.push(("EXPECTED_SOURCE", "*".into()));
    }
    overrides
}

fn with(environment: &[(String, String)], overrides: &[(&'static str, String)]) -> Environment {
    // A secret's file variable would conflict with the value that replaces it.
    let is_replaced =
        |key: &str| overrides.iter().any(|(name, _)| key == *name || key == format!("{name}_FILE"));
    let kept = environment.iter().filter(|(key, _)| !is_replaced(key)).cloned();
    kept.chain(overrides.iter().map(|(key, value)| ((*key).to_owned(), value.clone()))).collect()
}
