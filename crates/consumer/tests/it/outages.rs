//! Unavailable servers: at startup, during operation, and at shutdown.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use consumer::Config;
use kafka::KafkaProperties;
use testkit::servers::{shared_broker, shared_mongodb, start_broker, start_durable_mongodb};
use tokio::process::{Child, Command};

use crate::trial::{Member, SOON, Sent, Trial, event, eventually, get};

async fn is_reported(member: &Member, server: &str) {
    let is_degraded = async || {
        let (ready, why) = member.get("/readyz").await;
        let (status, health) = member.get("/health").await;
        let health: serde_json::Value = serde_json::from_str(&health).unwrap();
        let up = if server == "kafka" { "slipstream_kafka_up" } else { "slipstream_store_up" };
        let reported = ready == 503 && why.contains(server) && member.metric(up).await == Some(0.0);
        reported && status == 200 && health["status"] == "degraded"
    };
    eventually(&format!("readyz and health report {server:?}"), SOON, is_degraded).await;
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_killed_database_gets_all_records_on_restart_without_dead_letters() {
    let database = start_durable_mongodb().await;
    let shared = Trial::new(3).await;
    let trial = Trial { uri: database.uri(), ..shared };
    let member = trial.start(&[("BATCH_MAX_RECORDS", "100")]).await;
    trial.send_many("a", 3_000).await;
    eventually("work has begun", SOON, async || member.seen().finished() > 200).await;
    database.kill();
    is_reported(&member, "mongodb").await;
    trial.send_many("b", 1_000).await;
    assert_eq!(member.get("/livez").await.0, 200);
    let before = member.seen().finished();
    database.restart().await.unwrap();
    let goes_on = async || member.seen().finished() > before;
    eventually("work resumes", Duration::from_secs(5), goes_on).await;
    member.finishes(4_000).await;
    member.becomes_ready().await;
    assert_eq!(trial.ids().await.len(), 4_000);
    let counted = member.stop().await;
    assert_eq!((counted.dead_lettered, counted.superseded), (0, 0), "{counted:?}");
    assert!(trial.dead_letters().await.is_empty());
    assert_eq!(trial.committed().await.values().sum::<i64>(), 4_000);
}

#[testkit::needs(apache_kafka, own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_consumer_waits_for_servers_at_start_and_resumes_after_broker_kill() {
    let (broker, database) = (start_broker().await, start_durable_mongodb().await);
    broker.kill();
    database.kill();
    let trial = Trial::on(&broker.bootstrap(), &database.uri(), 3);
    let member = trial.start(&[]).await;
    is_reported(&member, "kafka").await;
    is_reported(&member, "mongodb").await;

    broker.restart().await.unwrap();
    database.restart().await.unwrap();
    member.becomes_ready().await;
    trial.send_many("a", 500).await;
    member.finishes(500).await;
    let committed = async || trial.committed().await.values().sum::<i64>() == 500;
    eventually("all offsets are committed", SOON, committed).await;

    // A broker that hangs for less than the session timeout: the partitions stay assigned.
    broker.pause();
    is_reported(&member, "kafka").await;
    broker.resume();
    let back = Instant::now();
    trial.send_many("b", 500).await;
    member.finishes(1_000).await;
    assert!(back.elapsed() < Duration::from_secs(5), "resumed after {:?}", back.elapsed());
    let committed = async || trial.committed().await.values().sum::<i64>() == 1_000;
    eventually("all offsets are committed", SOON, committed).await;

    // A broker that is killed for longer than the session timeout. After its restart it also waits
    // for the old member, which is the broker's own delay.
    broker.kill();
    is_reported(&member, "kafka").await;
    eventually("the session has expired", SOON, async || member.seen().lag.is_none()).await;
    broker.restart().await.unwrap();
    member.becomes_ready().await;
    let back = Instant::now();
    trial.send_many("c", 500).await;
    member.finishes(1_500).await;
    let session = Duration::from_secs(10);
    assert!(back.elapsed() < session + Duration::from_secs(5), "resumed after {:?}", back.elapsed());
    member.stop().await;
    assert_eq!(trial.ids().await.len(), 1_500);
    assert_eq!(trial.committed().await.values().sum::<i64>(), 1_500);
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g7_stop_during_database_outage_ends_in_time_and_commits_only_finished() {
    let database = start_durable_mongodb().await;
    let shared = Trial::new(1).await;
    let trial = Trial { uri: database.uri(), ..shared };
    let member = trial.start(&[]).await;
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    member.finishes(1).await;
    database.kill();
    trial.send(Sent::new("b", &event("b", 1, "{}"))).await;
    eventually("the record is in the current batch", SOON, async || member.seen().read == 2).await;
    let counted = member.stop().await;
    assert_eq!(counted.finished(), 1);
    assert_eq!(trial.committed().await, [(0, 1)].into());

    database.restart().await.unwrap();
    let member = trial.start(&[]).await;
    member.finishes(1).await;
    member.stop().await;
    assert_eq!(trial.ids().await, ["a", "b"]);
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g7_sigterm_exits_0_in_time_while_both_servers_hang_or_are_down() {
    let (broker, database) = (start_broker().await, start_durable_mongodb().await);
    let trial = Trial::on(&broker.bootstrap(), &database.uri(), 2);
    let (first, second) = (Process::start(&trial).await, Process::start(&trial).await);
    trial.send_many("a", 200).await;
    eventually("all are stored", SOON, async || trial.ids().await.len() == 200).await;
    database.pause();
    trial.send_many("b", 200).await;
    broker.pause();
    first.ends_cleanly().await;
    broker.kill();
    database.kill();
    second.ends_cleanly().await;
}

/// The consumer as a separate process.
struct Process(Child);

impl Process {
    /// Starts the process and waits until it is ready.
    async fn start(trial: &Trial) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .env_clear()
            .envs(trial.environment(&[("LISTEN_ADDR", &address.to_string())]))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ready = async || get(address, "/readyz").await.is_ok_and(|(status, _)| status == 200);
        eventually("the process is ready", SOON, ready).await;
        Self(child)
    }

    async fn ends_cleanly(mut self) {
        let pid = self.0.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let ended = tokio::time::timeout(Duration::from_secs(10), self.0.wait()).await;
        assert_eq!(ended.expect("the process exits within 10 s").unwrap().code(), Some(0));
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn member_with_a_fenced_client_recreates_it_and_continues() {
    let trial = Trial::new(2).await;
    // Two members with the same instance id: the broker fences the first one, a fatal error of its
    // client. The configuration rejects static members, so the test sets the property directly.
    let same = |config: &mut Config| {
        config.properties = KafkaProperties::default().with("group.instance.id", "the-only-one");
    };
    let first = trial.start_with(&[], same).await;
    trial.send_many("a", 10).await;
    first.finishes(10).await;
    let second = trial.start_with(&[], same).await;
    eventually("the second takes over", SOON, async || second.seen().lag.is_some()).await;
    eventually("the first is fenced", SOON, async || first.seen().lag.is_none()).await;
    eventually("health reports the error", SOON, async || first.health().await["last_error"].is_object())
        .await;
    second.stop().await;
    let before = first.seen().finished();
    trial.send_many("b", 10).await;
    eventually("the first works again", SOON, async || first.seen().finished() >= before + 10).await;
    first.stop().await;
    assert_eq!(trial.ids().await.len(), 20);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_cannot_be_created_are_named_until_they_exist() {
    let trial = Trial::on(&shared_broker().await.bootstrap(), &shared_mongodb().await.uri(), 1);
    let member = trial.start(&[("KAFKA_REPLICATION_FACTOR", "3")]).await;
    for topic in [trial.topic.clone(), format!("{}.dlq", trial.topic)] {
        let message = format!("topic {topic} cannot be created: ");
        let is_named = async || {
            let (ready, why) = member.get("/readyz").await;
            ready == 503 && why.contains(&message)
        };
        eventually(&message, SOON, is_named).await;
        assert_eq!(member.metric("slipstream_kafka_up").await, Some(0.0));
        trial.make_topic(&topic, 1, &[]).await;
    }
    member.becomes_ready().await;
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    member.finishes(1).await;
    assert_eq!(member.stop().await.inserted, 1);
}
