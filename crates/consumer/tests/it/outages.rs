//! Servers that are away: at the start, in the middle, and at the stop.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use consumer::Config;
use kafka::KafkaProperties;
use testkit::servers::{shared_broker, shared_mongodb, start_broker, start_durable_mongodb};
use tokio::process::{Child, Command};

use crate::trial::{Member, SOON, Sent, Trial, event, eventually, get};

async fn is_told(member: &Member, words: &str) {
    let told = async || {
        let (ready, why) = member.get("/readyz").await;
        let (status, health) = member.get("/health").await;
        let health: serde_json::Value = serde_json::from_str(&health).unwrap();
        let up = if words == "kafka" { "slipstream_kafka_up" } else { "slipstream_store_up" };
        let told = ready == 503 && why.contains(words) && member.metric(up).await == Some(0.0);
        told && status == 200 && health["status"] == "degraded"
    };
    eventually(&format!("readyz and health say {words:?}"), SOON, told).await;
}

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_that_is_killed_and_comes_back_gets_every_record_and_no_dead_letter() {
    let database = start_durable_mongodb().await;
    let shared = Trial::new(3).await;
    let trial = Trial { uri: database.uri(), ..shared };
    let member = trial.start(&[("BATCH_MAX_RECORDS", "100")]).await;
    trial.send_many("a", 3_000).await;
    eventually("it has begun", SOON, async || member.seen().finished() > 200).await;
    database.kill();
    is_told(&member, "mongodb").await;
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
async fn g6_without_servers_it_waits_and_then_works_and_goes_on_after_the_broker_was_killed() {
    let (broker, database) = (start_broker().await, start_durable_mongodb().await);
    broker.kill();
    database.kill();
    let trial = Trial::on(&broker.bootstrap(), &database.uri(), 3);
    let member = trial.start(&[]).await;
    is_told(&member, "kafka").await;
    is_told(&member, "mongodb").await;

    broker.restart().await.unwrap();
    database.restart().await.unwrap();
    member.becomes_ready().await;
    trial.send_many("a", 500).await;
    member.finishes(500).await;
    let committed = async || trial.committed().await.values().sum::<i64>() == 500;
    eventually("all is committed", SOON, committed).await;

    // A broker that hangs, for less than a session: the partitions stay.
    broker.pause();
    is_told(&member, "kafka").await;
    broker.resume();
    let back = Instant::now();
    trial.send_many("b", 500).await;
    member.finishes(1_000).await;
    assert!(back.elapsed() < Duration::from_secs(5), "resumed after {:?}", back.elapsed());
    let committed = async || trial.committed().await.values().sum::<i64>() == 1_000;
    eventually("all is committed", SOON, committed).await;

    // A broker that is killed, for longer than a session: it also waits for the member that it remembers, which is
    // its own delay.
    broker.kill();
    is_told(&member, "kafka").await;
    eventually("the session is over", SOON, async || member.seen().lag.is_none()).await;
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
async fn g7_a_stop_ends_in_time_while_the_database_is_away_and_commits_nothing_unfinished() {
    let database = start_durable_mongodb().await;
    let shared = Trial::new(1).await;
    let trial = Trial { uri: database.uri(), ..shared };
    let member = trial.start(&[]).await;
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    member.finishes(1).await;
    database.kill();
    trial.send(Sent::new("b", &event("b", 1, "{}"))).await;
    eventually("the record is in hand", SOON, async || member.seen().read == 2).await;
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
async fn g7_sigterm_ends_the_process_in_time_and_with_0_while_both_servers_hang_or_are_gone() {
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

/// The consumer's own binary.
struct Process(Child);

impl Process {
    /// Starts it and waits until it is ready.
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
        assert_eq!(ended.expect("it ends within 10 s").unwrap().code(), Some(0));
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_client_is_fenced_for_good_makes_a_new_one_and_goes_on() {
    let trial = Trial::new(2).await;
    // Two members that claim to be the same: the broker fences the one that came first, a fatal error of its client.
    // No environment can say so: static members are refused.
    let same = |config: &mut Config| {
        config.properties = KafkaProperties::default().with("group.instance.id", "the-only-one");
    };
    let first = trial.start_with(&[], same).await;
    trial.send_many("a", 10).await;
    first.finishes(10).await;
    let second = trial.start_with(&[], same).await;
    eventually("the second takes over", SOON, async || second.seen().lag.is_some()).await;
    eventually("the first is fenced", SOON, async || first.seen().lag.is_none()).await;
    eventually("health says so", SOON, async || first.health().await["last_error"].is_object()).await;
    second.stop().await;
    let before = first.seen().finished();
    trial.send_many("b", 10).await;
    eventually("the first works again", SOON, async || first.seen().finished() >= before + 10).await;
    first.stop().await;
    assert_eq!(trial.ids().await.len(), 20);
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_cannot_be_made_are_named_and_work_begins_once_they_are_there() {
    let trial = Trial::on(&shared_broker().await.bootstrap(), &shared_mongodb().await.uri(), 1);
    let member = trial.start(&[("KAFKA_REPLICATION_FACTOR", "3")]).await;
    for topic in [trial.topic.clone(), format!("{}.dlq", trial.topic)] {
        let named = format!("topic {topic} cannot be created: ");
        let told = async || {
            let (ready, why) = member.get("/readyz").await;
            ready == 503 && why.contains(&named)
        };
        eventually(&named, SOON, told).await;
        assert_eq!(member.metric("slipstream_kafka_up").await, Some(0.0));
        trial.make_topic(&topic, 1, &[]).await;
    }
    member.becomes_ready().await;
    trial.send(Sent::new("a", &event("a", 1, "{}"))).await;
    member.finishes(1).await;
    assert_eq!(member.stop().await.inserted, 1);
}
