//! The servers of `up`: those that the user names, else a broker and a database as child processes.
//! The ADSBDB simulator is used if the public service does not answer. The configurations of the
//! three processes are the user's variables, with the addresses of these servers.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ::sources::SOURCES_FILE;
use devservers::{
    Broker, BrokerKind, BrokerOptions, Database, DatabaseKind, DatabaseOptions, Machine, Simulator,
};
use kafka::BoxError;
use service::ConfigErrors;
use service::config::{Environment, environment_value as value};

use crate::cli::UpOptions;

/// The variable of the example's URLs, which replaces the hosts of public APIs.
const SIMULATOR_URL: &str = "SIMULATOR_URL";

const PUBLIC_ADSBDB: &str = "https://api.adsbdb.com";

/// The servers and their addresses.
#[derive(Debug)]
pub struct LocalStack {
    broker: Option<Broker>,
    database: Option<Database>,
    /// Its address overrides that of the producer's configuration.
    pub simulator: Option<Simulator>,
    /// Kafka bootstrap servers.
    pub kafka: String,
    /// MongoDB URI.
    pub mongodb: String,
    /// A line of text about each server.
    pub lines: Vec<String>,
}

impl LocalStack {
    /// Starts the servers that the environment does not name. `progress` gets a line for each
    /// download and start.
    pub async fn start(
        environment: &[(String, String)],
        options: &UpOptions,
        folder: &Path,
        progress: devservers::Progress,
    ) -> Result<Self, BoxError> {
        let mut stack = Self {
            broker: None,
            database: None,
            simulator: None,
            kafka: value(environment, "KAFKA_BROKER").unwrap_or_default().to_owned(),
            mongodb: value(environment, "MONGODB_URI").unwrap_or_default().to_owned(),
            lines: Vec::new(),
        };
        stack.start_broker(environment, folder, &progress).await?;
        stack.start_database(folder, &progress).await?;
        stack.choose_adsbdb(environment, options).await?;
        Ok(stack)
    }

    async fn start_broker(
        &mut self,
        environment: &[(String, String)],
        folder: &Path,
        progress: &devservers::Progress,
    ) -> Result<(), BoxError> {
        if !self.kafka.is_empty() {
            self.lines.push(format!("kafka     {} (KAFKA_BROKER)", self.kafka));
            return Ok(());
        }
        let kind = BrokerKind::choose(
            value(environment, "SLIPSTREAM_BROKER").map(OsStr::new),
            &Machine::from_env(),
        )?;
        let name = match kind {
            BrokerKind::ApacheKafka => "Apache Kafka",
            BrokerKind::Tansu => "tansu",
        };
        let broker = Broker::start(BrokerOptions::new(kind, folder.join("kafka")), progress.clone()).await?;
        self.kafka = broker.bootstrap();
        self.lines.push(format!("kafka     {} ({name})", self.kafka));
        self.broker = Some(broker);
        Ok(())
    }

    async fn start_database(
        &mut self,
        folder: &Path,
        progress: &devservers::Progress,
    ) -> Result<(), BoxError> {
        if !self.mongodb.is_empty() {
            self.lines.push("mongodb   the server in MONGODB_URI".into());
            return Ok(());
        }
        let database =
            Database::start(DatabaseOptions::new(folder.join("mongodb")), progress.clone()).await?;
        self.mongodb = database.uri();
        self.lines.push(format!("mongodb   {}", self.mongodb));
        if database.kind() == DatabaseKind::SecantusDb {
            // MongoDB stores such values unchanged.
            self.lines.push(
                "note      SecantusDB replaces MongoDB: an update changes values that look like extended JSON"
                    .into(),
            );
        }
        self.database = Some(database);
        Ok(())
    }

    async fn choose_adsbdb(
        &mut self,
        environment: &[(String, String)],
        options: &UpOptions,
    ) -> Result<(), BoxError> {
        let named = value(environment, "ADSBDB_BASE_URL");
        let reason = if options.simulate {
            "--simulate"
        } else if let Some(url) = named {
            self.lines.push(format!("adsbdb    {url} (ADSBDB_BASE_URL)"));
            return Ok(());
        } else if self.database.is_none() || public_adsbdb_answers().await {
            // Simulated flights must not be stored in the user's own database.
            self.lines.push(format!("adsbdb    {PUBLIC_ADSBDB}"));
            return Ok(());
        } else {
            "the public service does not answer"
        };
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await?;
        self.lines.push(format!("adsbdb    {} (simulator: {reason})", simulator.base_url()));
        self.simulator = Some(simulator);
        Ok(())
    }

    /// Stops the servers that were started; a child process that does not end in time is killed.
    pub async fn stop(self) {
        if let Some(simulator) = self.simulator {
            simulator.stop().await;
        }
        if let Some(database) = self.database {
            database.stop().await;
        }
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
    }
}

async fn public_adsbdb_answers() -> bool {
    crate::check::http::get(&format!("{PUBLIC_ADSBDB}/v0/aircraft/random"), Duration::from_secs(3))
        .await
        .is_ok()
}

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

/// Reads the configurations of producer and consumer as the processes do.
pub fn configs(
    environment: &[(String, String)],
    addresses: &Addresses,
) -> Result<(producer::Config, consumer::Config), ConfigErrors> {
    let producer =
        producer::Config::from_environment(with(environment, &producer_overrides(environment, addresses)));
    let consumer =
        consumer::Config::from_environment(with(environment, &consumer_overrides(environment, addresses)));
    // The poller's configuration is read again when the producer's real address is known; its
    // faults are reported now.
    let poller = poller_config(environment, addresses, addresses.producer);
    match (producer, consumer, poller) {
        (Ok(producer), Ok(consumer), Ok(_)) => Ok((producer, consumer)),
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
    if value(environment, SOURCES_FILE).is_some() && value(environment, "POLL_SOURCES").is_none() {
        overrides.push(("POLL_SOURCES", "*".into()));
    }
    overrides.extend(simulator_override(environment, addresses));
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
    // With a file, the consumer stores the sources of the file.
    let file = value(environment, SOURCES_FILE).map(|file| (SOURCES_FILE, quoted(file)));
    let is_ours = |name: &str| name != "EXPECTED_SOURCE" || file.is_none();
    let unset: Vec<_> = ours
        .into_iter()
        .filter(|(name, _)| is_ours(name) && value(environment, name).is_none())
        .chain(file.clone())
        .chain(simulator_override(environment, addresses))
        .collect();
    let processes = [
        ("PRODUCER_BASE_URL", format!("http://{producer}")),
        ("CONSUMER_BASE_URL", format!("http://{consumer}")),
    ];
    let adsbdb = addresses.adsbdb.clone().map(|url| ("ADSBDB_BASE_URL", url));
    let all = unset.into_iter().chain(processes).chain(adsbdb).map(|(name, value)| format!("{name}={value}"));
    all.collect::<Vec<_>>().join(" ")
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The variables of a sources file as the processes get them: those of the user, and the
/// simulator's URL if it runs.
pub fn file_variables(environment: &[(String, String)], addresses: &Addresses) -> Environment {
    let overrides: Vec<_> = simulator_override(environment, addresses).into_iter().collect();
    with(environment, &overrides)
}

/// SIMULATOR_URL, if there is a sources file and the simulator runs, unless the user set it.
pub fn simulator_override(
    environment: &[(String, String)],
    addresses: &Addresses,
) -> Option<(&'static str, String)> {
    value(environment, SOURCES_FILE)?;
    let is_set = value(environment, SIMULATOR_URL).is_some();
    addresses.adsbdb.clone().filter(|_| !is_set).map(|url| (SIMULATOR_URL, url))
}

fn producer_overrides(
    environment: &[(String, String)],
    addresses: &Addresses,
) -> Vec<(&'static str, String)> {
    let mut overrides =
        vec![("KAFKA_BROKER", addresses.kafka.clone()), ("LISTEN_ADDR", addresses.producer.to_string())];
    // Loopback needs no TLS, and no certificate has its name.
    overrides.extend(["TLS_CERT_FILE", "TLS_KEY_FILE"].map(|name| (name, String::new())));
    overrides.extend(addresses.adsbdb.clone().map(|url| ("ADSBDB_BASE_URL", url)));
    overrides.extend(simulator_override(environment, addresses));
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
    overrides.extend(simulator_override(environment, addresses));
    let has_file = value(environment, SOURCES_FILE).is_some();
    if !has_file && value(environment, "EXPECTED_SOURCE").is_none() {
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
