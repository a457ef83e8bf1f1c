//! The servers of an `up`: those the user names, else a broker and a database run as children, and the ADSBDB
//! simulator where the public service does not answer.

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

/// What runs, and where.
#[derive(Debug)]
pub struct House {
    broker: Option<Broker>,
    database: Option<Database>,
    simulator: Option<Simulator>,
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// MongoDB's URI.
    pub mongodb: String,
    /// A line about each server, for the user.
    pub lines: Vec<String>,
}

impl House {
    /// Starts what the environment does not name. `say` is told what is fetched and started.
    ///
    /// # Errors
    /// A server cannot be had; one sentence says what to install or which variable names a running one.
    pub async fn start(
        environment: &[(String, String)],
        options: &UpOptions,
        folder: &Path,
        say: devservers::Progress,
    ) -> Result<Self, BoxError> {
        let mut house = Self {
            broker: None,
            database: None,
            simulator: None,
            kafka: value(environment, "KAFKA_BROKER").unwrap_or_default().to_owned(),
            mongodb: value(environment, "MONGODB_URI").unwrap_or_default().to_owned(),
            lines: Vec::new(),
        };
        house.start_broker(environment, folder, &say).await?;
        house.start_database(folder, &say).await?;
        house.choose_adsbdb(environment, options).await?;
        Ok(house)
    }

    async fn start_broker(
        &mut self,
        environment: &[(String, String)],
        folder: &Path,
        say: &devservers::Progress,
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
        let broker = Broker::start(BrokerOptions::new(kind, folder.join("kafka")), say.clone()).await?;
        self.kafka = broker.bootstrap();
        self.lines.push(format!("kafka     {} ({name})", self.kafka));
        self.broker = Some(broker);
        Ok(())
    }

    async fn start_database(&mut self, folder: &Path, say: &devservers::Progress) -> Result<(), BoxError> {
        if !self.mongodb.is_empty() {
            self.lines.push("mongodb   the one that MONGODB_URI names".into());
            return Ok(());
        }
        let database = Database::start(DatabaseOptions::new(folder.join("mongodb")), say.clone()).await?;
        self.mongodb = database.uri();
        self.lines.push(format!("mongodb   {}", self.mongodb));
        if database.kind() == DatabaseKind::SecantusDb {
            // MongoDB takes every value for data.
            self.lines.push(
                "note      SecantusDB stands in for MongoDB: an update changes values that look like extended JSON"
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
        let why = if options.simulate {
            "--simulate"
        } else if let Some(url) = named {
            self.lines.push(format!("adsbdb    {url} (ADSBDB_BASE_URL)"));
            return Ok(());
        } else if self.database.is_none() || public_adsbdb_answers().await {
            // Made-up flights do not belong into a database that the user brought.
            self.lines.push(format!("adsbdb    {PUBLIC_ADSBDB}"));
            return Ok(());
        } else {
            "the public service does not answer"
        };
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await?;
        self.lines.push(format!("adsbdb    {} (simulator: {why})", simulator.base_url()));
        self.simulator = Some(simulator);
        Ok(())
    }

    /// ADSBDB's base URL where it is not for the producer's own configuration to say.
    pub fn adsbdb(&self) -> Option<String> {
        self.simulator.as_ref().map(Simulator::base_url)
    }

    /// Stops what was started; a child that does not end in time is killed.
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
