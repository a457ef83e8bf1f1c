//! `slipstream check`: tells what is wrong with a deployment, from outside, and changes nothing. A probe is a function
//! that returns findings; what it needs another server for is not asked once that one is known to be away.

mod collections;
mod config;
mod finding;
mod group;
mod http;
mod store;
mod topic;

use std::process::ExitCode;

use serde_json::json;

use crate::cli::CheckOptions;
use crate::stdout;
pub use collections::collections;
pub use config::{Config, Settings};
use finding::{Finding, Level};
use kafka::BoxError;
use kafka::cluster::Cluster;
use kafka::requests::UNAVAILABLE_REMEDY;
use service::plural::counted;

/// Probes everything. The exit code is 0 if nothing failed; warnings do not count.
///
/// # Errors
/// A wrong configuration.
pub async fn check(options: CheckOptions, environment: Vec<(String, String)>) -> Result<ExitCode, BoxError> {
    let config = Config::from_environment(&environment)?;
    let (kafka, store, producer, consumer, adsbdb) = tokio::join!(
        kafka(&config.consumer),
        store(&config.consumer),
        http::producer(config.producer.as_ref()),
        http::consumer(config.consumer_url.as_deref()),
        http::adsbdb(&config.adsbdb_url),
    );
    let findings: Vec<Finding> =
        [kafka, store, producer, consumer, vec![adsbdb]].into_iter().flatten().collect();
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (failures, warnings) = (count(Level::Fail), count(Level::Warn));
    if options.json {
        stdout::write_line(json!({"findings": findings, "failures": failures, "warnings": warnings}))?;
    } else {
        findings.iter().try_for_each(stdout::write_line)?;
        stdout::write_line(format_args!(
            "{}, {}",
            counted(failures, "failure"),
            counted(warnings, "warning")
        ))?;
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn kafka(config: &consumer::Config) -> Vec<Finding> {
    let cluster =
        match Cluster::new(&config.kafka_broker, &config.properties, "slipstream-check", &config.group_id) {
            Ok(cluster) => cluster,
            Err(why) => {
                let cause = format!("cannot be asked: {why}");
                return vec![Finding::fail("kafka", cause, "correct KAFKA_BROKER and KAFKA_PROPERTIES")];
            }
        };
    let mut topics = match cluster.topics().await {
        Ok(topics) => topics,
        Err(why) => {
            let cause = format!("does not answer at {} (KAFKA_BROKER): {}", why.address, why.cause);
            return vec![Finding::fail("kafka", cause, UNAVAILABLE_REMEDY)];
        }
    };
    let mut findings = vec![Finding::ok("kafka", format!("answers, {}", counted(topics.len(), "topic")))];
    let specs = config.topic_specs();
    for spec in &specs {
        if let Some(topic) = topics.get_mut(&spec.name) {
            match cluster.topic_config(&spec.name).await {
                Ok(settings) => topic.config = settings,
                Err(why) => findings.push(untold(topic::subject(&spec.name), &why)),
            }
        }
    }
    let (mut positions, mut all) = (Vec::new(), true);
    for spec in &specs {
        let Some(topic) = topics.get(&spec.name) else {
            findings.push(match cluster.is_topic_hidden(&spec.name).await {
                Ok(false) => topic::missing(&spec.name),
                Ok(true) => topic::hidden(&spec.name),
                Err(why) => untold(topic::subject(&spec.name), &why.cause),
            });
            all &= spec.is_dead_letter_topic();
            continue;
        };
        findings.extend(topic::judge(&spec.name, topic));
        if spec.is_dead_letter_topic() {
            let sources = spec.dead_letters_of.iter().filter_map(|source| topics.get(source));
            findings.extend(topic::judge_dead_letters(&spec.name, topic, sources));
            continue;
        }
        findings.extend(topic::judge_retention(&spec.name, topic));
        match cluster.positions(&spec.name, topic.partition_ids()).await {
            Ok(found) => positions.extend(found),
            Err(why) => {
                findings.push(untold(format!("offsets of {}", spec.name), &why.cause));
                all = false;
            }
        }
    }
    match cluster.group().await {
        Ok(group) => {
            let strangers = group.foreign_members(&config.client_id());
            findings.extend(group::judge(&config.group_id, (&group, strangers), &positions, all));
        }
        Err(why) => findings.push(untold(format!("group {}", config.group_id), &why.cause)),
    }
    findings
}

/// Kafka answers, but not this question.
fn untold(subject: impl Into<String>, why: &str) -> Finding {
    let remedy = "the addresses that the brokers advertise must be reachable from here, and the user allowed to describe \
                  topics, configurations and groups";
    Finding::fail(subject, format!("kafka does not tell: {why}"), remedy)
}

async fn store(config: &consumer::Config) -> Vec<Finding> {
    let uri = &config.store.uri;
    let asked = async {
        let database = store::open(config).await?;
        store::hello(config, &database).await.map(|hello| (database, hello))
    };
    match asked.await {
        Ok((database, hello)) => {
            let answers = store::judge_hello(&hello);
            let goes_on = answers.level == Level::Ok;
            let mut findings = vec![answers, store::safety(uri, Some(&hello))];
            findings.extend(store::ignored(uri).into_iter().chain(store::password(uri)));
            if goes_on {
                findings.extend(collections::judge(config, &database).await);
            }
            findings
        }
        Err(away) => {
            let of_the_uri = store::ignored(uri).into_iter().chain(store::password(uri));
            [away, store::safety(uri, None)].into_iter().chain(of_the_uri).collect()
        }
    }
}
