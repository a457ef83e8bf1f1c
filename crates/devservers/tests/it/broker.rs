//! Both brokers: start, respond, survive a kill.

use std::io;

use devservers::{Broker, BrokerKind, BrokerOptions, Progress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
const PRODUCER: &str = "org.apache.kafka.tools.ProducerPerformance";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";

async fn start(kind: BrokerKind, folder: &tempfile::TempDir) -> Broker {
    Broker::start(BrokerOptions::new(kind, folder.path().join("broker")), Progress::silent()).await.unwrap()
}

/// Sends an ApiVersions request: API key 18, version 0, correlation 7, no client id.
async fn answers(broker: &Broker) -> io::Result<()> {
    let mut stream = TcpStream::connect(broker.bootstrap()).await?;
    stream.write_all(b"\0\0\0\x0a\0\x12\0\0\0\0\0\x07\xff\xff").await?;
    let mut head = [0; 10];
    stream.read_exact(&mut head).await?;
    assert_eq!(head[4..], [0, 0, 0, 7, 0, 0], "correlation 7, no error");
    Ok(())
}

#[testkit_macros::needs(apache_kafka)]
#[tokio::test]
async fn apache_kafka_keeps_its_records_over_a_kill_and_a_restart_on_the_same_port() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(BrokerKind::ApacheKafka, &folder).await;
    let bootstrap = broker.bootstrap();
    answers(&broker).await.unwrap();
    let create = ["--bootstrap-server", &bootstrap, "--create", "--topic", "kept", "--partitions", "1"];
    broker.tool(TOPICS, &create).await.unwrap();

    let properties = format!("bootstrap.servers={bootstrap}");
    let produce = ["--topic", "kept", "--num-records", "10", "--record-size", "9", "--throughput", "-1"];
    broker.tool(PRODUCER, &[&produce[..], &["--producer-props", &properties]].concat()).await.unwrap();

    broker.kill();
    assert_eq!(broker.pid(), None);
    assert!(answers(&broker).await.is_err());
    broker.restart().await.unwrap();

    assert_eq!(broker.bootstrap(), bootstrap);
    answers(&broker).await.unwrap();
    let offsets = ["--bootstrap-server", &bootstrap, "--topic", "kept"];
    assert_eq!(broker.tool(OFFSETS, &offsets).await.unwrap().trim(), "kept:0:10");
    let groups = broker.tool(GROUPS, &["--bootstrap-server", &bootstrap, "--list"]).await.unwrap();
    assert_eq!(groups.trim(), "");
    let error = broker.tool(GROUPS, &["--bootstrap-server", &bootstrap, "--describe"]).await.unwrap_err();
    assert!(error.to_string().starts_with(GROUPS), "{error}");
    broker.stop().await;
    assert!(answers(&broker).await.is_err());
}

#[tokio::test]
async fn tansu_starts_and_restarts_on_the_same_port() {
    let folder = tempfile::tempdir().unwrap();
    let broker = start(BrokerKind::Tansu, &folder).await;
    let bootstrap = broker.bootstrap();
    answers(&broker).await.unwrap();
    broker.kill();
    assert!(answers(&broker).await.is_err());
    broker.restart().await.unwrap();
    assert_eq!(broker.bootstrap(), bootstrap);
    answers(&broker).await.unwrap();
    let error = broker.tool(TOPICS, &["--list"]).await.unwrap_err();
    assert!(error.to_string().contains("tansu, which has no command-line classes"), "{error}");
}

/// Starts a broker on a port in use, and checks that the error has the server's own message.
async fn assert_port_conflict(kind: BrokerKind, start: &str) {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = BrokerOptions { port, ..BrokerOptions::new(kind, folder.path()) };
    let error = Broker::start(options, Progress::silent()).await.unwrap_err().to_string();
    assert!(error.starts_with(start), "{error}");
    assert!(error.contains("Address already in use") || error.contains("Address in use"), "{error}");
}

#[testkit_macros::needs(apache_kafka)]
#[tokio::test]
async fn a_port_in_use_ends_the_start_of_apache_kafka_with_its_message() {
    assert_port_conflict(BrokerKind::ApacheKafka, "Apache Kafka ended").await;
}

#[tokio::test]
async fn a_port_in_use_ends_the_start_of_tansu_with_its_message() {
    assert_port_conflict(BrokerKind::Tansu, "tansu ended").await;
}
