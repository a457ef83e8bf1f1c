//! `slipstream check`: reports faults of a deployment, and changes nothing. A probe is a function
//! that returns findings. A probe that needs an unavailable server is skipped.
//!
//! Its configuration has the consumer's variables, the poller's PRODUCER_* variables, and the
//! addresses of the other processes.

mod broker;
mod finding;
pub mod http;
mod mongodb;

use std::process::ExitCode;

use finding::{Finding, Level};
use kafka::BoxError;
pub use mongodb::collections;
use serde_json::json;
use service::plural::counted;
use service::{ConfigErrors, ConfigReader, Kind, parse};

use crate::cli::CheckOptions;
use crate::output;

/// Runs all probes and prints their findings. The exit code is 0 if no finding failed; warnings do
/// not count.
pub async fn check(options: CheckOptions, environment: Vec<(String, String)>) -> Result<ExitCode, BoxError> {
    let config = Config::from_environment(&environment)?;
    let (kafka, mongodb, producer, consumer, adsbdb) = tokio::join!(
        broker::check(&config.consumer),
        mongodb::check(&config.consumer),
        http::producer(config.producer.as_ref()),
        http::consumer(config.consumer_url.as_deref()),
        http::adsbdb(&config.adsbdb_url),
    );
    let findings: Vec<Finding> =
        [kafka, mongodb, producer, consumer, vec![adsbdb]].into_iter().flatten().collect();
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (failures, warnings) = (count(Level::Fail), count(Level::Warn));
    if options.json {
        output::write_line(json!({"findings": findings, "failures": failures, "warnings": warnings}))?;
    } else {
        findings.iter().try_for_each(output::write_line)?;
        output::write_line(format_args!(
            "{}, {}",
            counted(failures, "failure"),
            counted(warnings, "warning")
        ))?;
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

service::settings! {
    /// The variables besides the consumer's and the poller's.
    pub struct Settings {
        /// Base URL of the producer, such as `http://api-producer:8080`.
        producer_base_url: Kind::Optional("not checked"),
        /// Base URL of the consumer, such as `http://adsbdb-consumer:8081`.
        consumer_base_url: Kind::Optional("not checked"),
        /// Base URL of ADSBDB.
        adsbdb_base_url: Kind::Default("https://api.adsbdb.com"),
    }
}

/// The configuration of a deployment.
#[derive(Debug)]
pub struct Config {
    /// Kafka, MongoDB, group, topics and UPSERT_KEYS.
    pub consumer: consumer::Config,
    /// Address, API key and certificates of the producer.
    pub producer: Option<poller::Config>,
    /// The consumer's base URL.
    pub consumer_url: Option<String>,
    /// ADSBDB's base URL.
    pub adsbdb_url: String,
}

impl Config {
    /// Reads and checks the environment.
    pub fn from_environment(environment: &[(String, String)]) -> Result<Self, ConfigErrors> {
        let (s, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment.iter().cloned());
        let url = |text: &str| parse::base_url(text).map(|url| url.as_str().trim_end_matches('/').to_owned());
        let of_producer = environment.iter().filter(|(name, _)| name.starts_with("PRODUCER_")).cloned();
        let producer =
            s.producer_base_url.map(|_| poller::Config::from_environment(of_producer)).transpose().map_err(
                |faults| faults.0.into_iter().for_each(|(name, problem)| check.add_error(&name, problem)),
            );
        let consumer_url = check.optional("consumer_base_url", s.consumer_base_url.as_ref(), url);
        let adsbdb_url = check.value("adsbdb_base_url", s.adsbdb_base_url.as_ref(), url);
        let consumer = consumer::Config::from_environment(environment.iter().cloned()).map_err(|faults| {
            faults.0.into_iter().for_each(|(name, problem)| check.add_error(&name, problem));
        });
        let config = (|| {
            Some(Self {
                consumer: consumer.ok()?,
                producer: producer.ok()?,
                consumer_url: consumer_url?,
                adsbdb_url: adsbdb_url?,
            })
        })();
        check.finish(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_every_wrong_variable() {
        let environment = [
            ("PRODUCER_BASE_URL", "p:8080"),
            ("PRODUCER_CA_FILE", "/no/such.pem"),
            ("KAFKA_BROKER", "k:9092"),
            ("MONGODB_DB", "a.b"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let faults = Config::from_environment(&environment).unwrap_err().0;
        let names: Vec<&str> = faults.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["PRODUCER_BASE_URL", "PRODUCER_CA_FILE", "MONGODB_URI", "MONGODB_DB"]);
    }
}
