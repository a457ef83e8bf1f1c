//! The servers of `up`: those that the user names, else a broker and a database as child processes.
//! The ADSBDB simulator is used if the public service does not answer.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use devservers::{
    Broker, BrokerKind, BrokerOptions, Database, DatabaseKind, DatabaseOptions, Machine, Simulator,
};
use service::environment::value;

use crate::cli::UpOptions;
use crate::http;
use kafka::BoxError;

const PUBLIC_ADSBDB: &str = "https://api.adsbdb.com";

/// The servers and their addresses.
#[derive(Debug)]
pub struct LocalStack {
    broker: Option<Broker>,
    database: Option<Database>,
    simulator: Option<Simulator>,
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
    ///
    /// # Errors
    /// A server cannot be started; the error names what to install, or the variable for a running
    /// server.
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

    /// Base URL of the simulator, which overrides the producer's configuration.
    pub fn adsbdb(&self) -> Option<String> {
        self.simulator.as_ref().map(Simulator::base_url)
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
    http::get(&format!("{PUBLIC_ADSBDB}/v0/aircraft/random"), Duration::from_secs(3)).await.is_ok()
}
