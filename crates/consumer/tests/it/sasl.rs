//! A broker with TLS and SASL. KAFKA_PROPERTIES apply to the reader, the topic admin client and the
//! dead-letter producer. A wrong password is reported without being shown.

use devservers::{Broker, BrokerKind, BrokerOptions, Progress, Sasl};
use testkit::servers::shared_mongodb;

use crate::trial::{SOON, Sent, Trial, event, eventually};

const PASSWORD: &str = "correcthorse";

async fn broker(folder: &std::path::Path) -> Broker {
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(folder.join("ca.pem"), certificate.cert.pem()).unwrap();
    let mut options = BrokerOptions::new(BrokerKind::ApacheKafka, folder.join("broker"));
    options.sasl = Some(Sasl {
        certificate: certificate.cert.pem(),
        key: certificate.signing_key.serialize_pem(),
        user: "alice".into(),
        password: PASSWORD.into(),
    });
    Broker::start(options, Progress::silent()).await.unwrap()
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn sasl_password_works_and_a_wrong_one_is_reported_but_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let broker = broker(folder.path()).await;
    let trial = Trial::on(&broker.bootstrap(), &shared_mongodb().await.uri(), 1);
    let secure = broker.sasl_bootstrap().unwrap();
    let properties = |mechanism: &str, password: &str| {
        format!(
            "security.protocol=SASL_SSL;ssl.ca.location={};sasl.mechanism={mechanism};sasl.username=alice;\
             sasl.password={password}",
            folder.path().join("ca.pem").display()
        )
    };
    let mut finished = 0;
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let wrong = properties(mechanism, "wrongbattery");
        let member = trial.start(&[("KAFKA_BROKER", &secure), ("KAFKA_PROPERTIES", &wrong)]).await;
        let is_reported = async || {
            let (status, body) = member.get("/readyz").await;
            status == 503 && body.contains("kafka") && body.contains("uthentication")
        };
        eventually("readyz reports it", SOON, is_reported).await;
        for path in ["/readyz", "/health", "/metrics"] {
            let (_, text) = member.get(path).await;
            assert!(!text.contains("wrongbattery") && !text.contains("alice"), "{path}: {text}");
        }
        assert_eq!(member.get("/livez").await.0, 200, "the process keeps running");
        assert_eq!(member.stop().await.read, 0);

        let right = properties(mechanism, PASSWORD);
        let member = trial.start(&[("KAFKA_BROKER", &secure), ("KAFKA_PROPERTIES", &right)]).await;
        member.becomes_ready().await;
        trial.send(Sent::new(mechanism, &event(mechanism, 1, "{}"))).await;
        trial.send(Sent::new(mechanism, "no event")).await;
        member.finishes(2).await;
        assert_eq!(member.stop().await.dead_lettered, 1, "{mechanism}");
        finished += 2;
        assert_eq!(trial.committed().await.values().sum::<i64>(), finished);
    }
    assert_eq!(trial.ids().await, ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]);
    assert_eq!(trial.dead_letters().await.len(), 3);
}
