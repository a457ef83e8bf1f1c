//! Kafka and its topics.

use devservers::{Broker, BrokerKind, BrokerOptions, Progress, Sasl};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use testkit::{Names, Stack};

use super::findings::check;

/// Creates a topic with one partition.
pub async fn make_topic(names: &Names, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &names.kafka).create().unwrap();
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_broker_and_failed_login_are_failures() {
    let names = Stack::shared().await.names();
    let nobody = testkit::process::free_address().to_string();
    let away = check(&names, &[("KAFKA_BROKER", &nobody)]).await;
    away.assert("fail", "kafka", "refused");
    let login =
        "security.protocol=SASL_PLAINTEXT;sasl.mechanisms=PLAIN;sasl.username=u;sasl.password=hunter2";
    let refused = check(&names, &[("KAFKA_PROPERTIES", login)]).await;
    refused.assert("fail", "kafka", "does not answer");
    assert!(!format!("{refused:?}").contains("hunter2"));
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_is_reported_without_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, made.cert.pem()).unwrap();
    let mut options = BrokerOptions::new(BrokerKind::ApacheKafka, folder.path().join("broker"));
    options.sasl = Some(Sasl {
        certificate: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
        user: "alice".into(),
        password: "correcthorse".into(),
    });
    let broker = Broker::start(options, Progress::silent()).await.unwrap();
    let names = Names { kafka: broker.sasl_bootstrap().unwrap(), ..Stack::shared().await.names() };
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let login = |password: &str| {
            format!(
                "security.protocol=SASL_SSL;ssl.ca.location={};sasl.mechanism={mechanism};sasl.username=alice;\
                 sasl.password={password}",
                authority.display()
            )
        };
        check(&names, &[("KAFKA_PROPERTIES", &login("correcthorse"))]).await.assert("ok", "kafka", "answers");
        let wrong = check(&names, &[("KAFKA_PROPERTIES", &login("wrongbattery"))]).await;
        wrong.assert("fail", "kafka", "uthentication");
        assert!(!format!("{wrong:?}").contains("wrongbattery"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topic_and_topic_that_rejects_events_are_failures() {
    let names = Stack::shared().await.names();
    let subject = format!("topic {}", names.topic);
    let found = check(&names, &[]).await;
    found.assert("fail", &subject, "does not exist");
    found.assert("warn", &format!("group {}", names.group), "no consumer runs; lag unknown");
    make_topic(&names, &names.topic, &[("min.insync.replicas", "2")]).await;
    let found = check(&names, &[]).await;
    found.assert("fail", &subject, "no event can be accepted");
    found.assert("warn", &subject, "only copy");
    found.assert("fail", &format!("topic {}", names.dead_letter_topic()), "does not exist");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_topic_with_retention_or_small_records_is_reported() {
    let names = Stack::shared().await.names();
    make_topic(&names, &names.topic, &[("max.message.bytes", "2000000")]).await;
    let letters = names.dead_letter_topic();
    let settings = [
        ("retention.ms", "3600000"),
        ("retention.bytes", "5000000"),
        ("max.message.bytes", "1000000"),
        ("cleanup.policy", "compact,delete"),
    ];
    make_topic(&names, &letters, &settings).await;
    let found = check(&names, &[]).await;
    let subject = format!("topic {letters}");
    found.assert("warn", &subject, "after 1 h");
    found.assert("warn", &subject, "5000000 bytes");
    found.assert("warn", &subject, "compact");
    found.assert("fail", &subject, "below the source's 2000000");
}

#[tokio::test(flavor = "multi_thread")]
async fn source_topic_with_retention_is_a_warning_with_the_period() {
    let names = Stack::shared().await.names();
    make_topic(&names, &names.topic, &[("retention.ms", "5400000")]).await;
    let subject = format!("topic {}", names.topic);
    check(&names, &[]).await.assert("warn", &subject, "deleted after 90 min (retention.ms)");
    let kept = format!("{}-kept", names.topic);
    make_topic(&names, &kept, &[("retention.ms", "-1")]).await;
    let found = check(&names, &[("KAFKA_TOPIC", &kept)]).await;
    assert!(!found.has("warn", &format!("topic {kept}"), "retention.ms"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_dead_letter_topic_must_accept_the_largest_record_of_each_topic() {
    let names = Stack::shared().await.names();
    let (larger, letters) = (format!("{}-larger", names.topic), format!("{}-letters", names.topic));
    for (topic, limit) in [(&names.topic, "1000000"), (&larger, "2000000"), (&letters, "1100000")] {
        make_topic(&names, topic, &[("max.message.bytes", limit), ("retention.ms", "-1")]).await;
    }
    let (subject, topics) = (format!("topic {letters}"), format!("{},{larger}", names.topic));
    let both = check(&names, &[("KAFKA_TOPIC", &topics), ("DEAD_LETTER_TOPIC", &letters)]).await;
    both.assert("fail", &subject, "below the source's 2000000");
    let one = check(&names, &[("DEAD_LETTER_TOPIC", &letters)]).await;
    one.assert("ok", &subject, "1 partition,");
    assert!(!format!("{one:?}").contains("below the source's"), "{one:?}");
}

// The mock cluster of librdkafka reports neither configurations nor groups.
#[tokio::test(flavor = "multi_thread")]
async fn missing_kafka_metadata_is_a_failure() {
    let stack = Stack::shared().await;
    let cluster = MockCluster::new(3).unwrap();
    let names = Names { kafka: cluster.bootstrap_servers(), ..stack.names() };
    cluster.create_topic(&names.topic, 2, 3).unwrap();
    cluster.create_topic(&names.dead_letter_topic(), 1, 3).unwrap();
    cluster.request_errors(
        RDKafkaApiKey::OffsetFetch,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 20],
    );
    let found = check(&names, &[]).await;
    for subject in [
        format!("topic {}", names.topic),
        format!("offsets of {}", names.topic),
        format!("group {}", names.group),
    ] {
        found.assert("fail", &subject, "kafka returns an error");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_without_describe_right_is_not_reported_as_missing() {
    let stack = Stack::shared().await;
    let cluster = MockCluster::new(1).unwrap();
    let names = Names { kafka: cluster.bootstrap_servers(), ..stack.names() };
    cluster.create_topic(&names.topic, 1, 1).unwrap();
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.topic_error(&names.topic, refused).unwrap();
    check(&names, &[]).await.assert("fail", &format!("topic {}", names.topic), "no right to describe it");
}
