//! `slipstream check`: reports faults of a deployment, and changes nothing. A probe is a function
//! that returns findings. A probe that needs an unavailable server is skipped.

mod collections;
mod config;
mod finding;
mod group;
mod http;
mod mongodb;
mod topic;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::CheckOptions;
use crate::output;
pub use collections::collections;
pub use config::{Config, Settings};
use finding::{Finding, Level};
use kafka::BoxError;
use kafka::cluster::{Cluster, GroupPosition, Topic};
use kafka::requests::UNAVAILABLE_REMEDY;
use kafka::topics::TopicSpec;
use service::plural::counted;

/// Runs all probes and prints their findings. The exit code is 0 if no finding failed; warnings do
/// not count.
///
/// # Errors
/// A wrong configuration.
pub async fn check(options: CheckOptions, environment: Vec<(String, String)>) -> Result<ExitCode, BoxError> {
    let config = Config::from_environment(&environment)?;
    let (kafka, mongodb, producer, consumer, adsbdb) = tokio::join!(
        kafka(&config.consumer),
        mongodb(&config.consumer),
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

async fn kafka(config: &consumer::Config) -> Vec<Finding> {
    let cluster =
        Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &config.group_id);
    let cluster = match cluster {
        Ok(cluster) => cluster,
        Err(error) => {
            let cause = format!("no client can be created: {error}");
            return vec![Finding::fail("kafka", cause, "correct KAFKA_BROKER and KAFKA_PROPERTIES")];
        }
    };
    let mut topics = match cluster.topics().await {
        Ok(topics) => topics,
        Err(error) => {
            let cause = format!("does not answer at {} (KAFKA_BROKER): {}", error.address, error.cause);
            return vec![Finding::fail("kafka", cause, UNAVAILABLE_REMEDY)];
        }
    };
    let mut findings = vec![Finding::ok("kafka", format!("answers, {}", counted(topics.len(), "topic")))];
    let specs = config.topic_specs();
    for spec in &specs {
        if let Some(topic) = topics.get_mut(&spec.name) {
            match cluster.topic_config(&spec.name).await {
                Ok(config) => topic.config = config,
                Err(cause) => findings.push(request_failed(topic::subject(&spec.name), &cause)),
            }
        }
    }
    let (positions, is_complete) = check_topics(&cluster, &specs, &topics, &mut findings).await;
    match cluster.group().await {
        Ok(group) => {
            let foreign_members = group.foreign_members(&config.client_id());
            let members = (&group, foreign_members);
            findings.extend(group::check(&config.group_id, members, &positions, is_complete));
        }
        Err(error) => {
            findings.push(request_failed(format!("group {}", config.group_id), &error.cause));
        }
    }
    findings
}

/// Checks the topics. Returns the group's positions, and whether these are all of them.
async fn check_topics(
    cluster: &Cluster,
    specs: &[TopicSpec],
    topics: &BTreeMap<String, Topic>,
    findings: &mut Vec<Finding>,
) -> (Vec<GroupPosition>, bool) {
    let (mut positions, mut is_complete) = (Vec::new(), true);
    for spec in specs {
        let Some(topic) = topics.get(&spec.name) else {
            findings.push(match cluster.is_topic_hidden(&spec.name).await {
                Ok(false) => topic::missing(&spec.name),
                Ok(true) => topic::hidden(&spec.name),
                Err(error) => request_failed(topic::subject(&spec.name), &error.cause),
            });
            is_complete &= spec.is_dead_letter_topic();
            continue;
        };
        findings.extend(topic::check(&spec.name, topic));
        if spec.is_dead_letter_topic() {
            let sources = spec.dead_letters_of.iter().filter_map(|source| topics.get(source));
            findings.extend(topic::check_dead_letter_topic(&spec.name, topic, sources));
            continue;
        }
        findings.extend(topic::check_retention(&spec.name, topic));
        match cluster.positions(&spec.name, topic.partition_ids()).await {
            Ok(found) => positions.extend(found),
            Err(error) => {
                findings.push(request_failed(format!("offsets of {}", spec.name), &error.cause));
                is_complete = false;
            }
        }
    }
    (positions, is_complete)
}

/// The finding if Kafka is available, but a request failed.
fn request_failed(subject: impl Into<String>, cause: &str) -> Finding {
    let remedy = "the addresses that the brokers advertise must be reachable from here, and the user needs the \
                  right to describe topics, configurations and groups";
    Finding::fail(subject, format!("kafka returns an error: {cause}"), remedy)
}

async fn mongodb(config: &consumer::Config) -> Vec<Finding> {
    let uri = &config.store.uri;
    let connect = async {
        let database = mongodb::open(config).await?;
        mongodb::hello(config, &database).await.map(|hello| (database, hello))
    };
    match connect.await {
        Ok((database, hello)) => {
            let server = mongodb::check_hello(&hello);
            let is_usable = server.level == Level::Ok;
            let mut findings = vec![server, mongodb::check_write_concern(uri, Some(&hello))];
            findings.extend(mongodb::check_options(uri).into_iter().chain(mongodb::check_password(uri)));
            if is_usable {
                findings.extend(collections::check(config, &database).await);
            }
            findings
        }
        Err(unavailable) => {
            let of_uri = mongodb::check_options(uri).into_iter().chain(mongodb::check_password(uri));
            [unavailable, mongodb::check_write_concern(uri, None)].into_iter().chain(of_uri).collect()
        }
    }
}
