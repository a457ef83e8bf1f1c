//! Command line and configuration of the binary, and a broker with TLS and SASL. KAFKA_PROPERTIES
//! apply to the reader, the topic admin client and the dead-letter producer. A wrong password is
//! reported without being shown.

use std::process::{Command, Output};

use devservers::{Broker, BrokerKind, BrokerOptions, Progress, Sasl};
use testkit::servers::shared_mongodb;

use crate::trial::{SOON, Sent, Trial, event, eventually};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn wrong_configuration_names_all_variables_hides_passwords_and_exits_2() {
    let wrong = [
        ("MONGODB_URI", "mongodb://user:hunter2@h:port/"),
        ("BATCH_MAX_RECORDS", "abc"),
        ("KAFKA_BROKER", ""),
        ("LISTEN_ADDR", "nowhere"),
    ];
    let output = run(&[], &wrong);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    for (name, _) in wrong {
        assert!(message.contains(&format!("{name}:")), "{name} is not named in {message}");
    }
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn unset_mongodb_uri_is_named_and_exits_2() {
    let output = run(&["--check-config"], &[("KAFKA_BROKER", "k:9092")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("MONGODB_URI: not set"));
}

#[test]
fn help_lists_every_variable() {
    let output = run(&["--help"], &[]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for variable in consumer::Settings::VARIABLES {
        assert!(help.contains(&variable.name()), "{}", variable.name());
    }
}

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
