//! A broker with SASL over TLS: KAFKA_PROPERTIES apply to every client. A wrong password is
//! reported, but never shown.

use std::path::Path;
use std::time::{Duration, Instant};

use devservers::{Broker, BrokerKind, BrokerOptions, Progress, Sasl};

use tokio::sync::OnceCell;

use crate::application::{Application, assert_says, unique};

const EVENT: &str = r#"{"id":"a-1","source":"manual","payload":{}}"#;
const PASSWORD: &str = "correcthorse";

struct SaslBroker {
    broker: Broker,
    folder: tempfile::TempDir,
}

impl SaslBroker {
    async fn start() -> Self {
        let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = testkit::servers::folder();
        std::fs::write(folder.path().join("ca.pem"), certificate.cert.pem()).unwrap();
        let mut options = BrokerOptions::new(BrokerKind::ApacheKafka, folder.path().join("broker"));
        options.sasl = Some(Sasl {
            certificate: certificate.cert.pem(),
            key: certificate.signing_key.serialize_pem(),
            user: "alice".into(),
            password: PASSWORD.into(),
        });
        let broker = Broker::start(options, Progress::silent()).await.unwrap();
        Self { broker, folder }
    }

    async fn shared() -> &'static Self {
        static SHARED: OnceCell<SaslBroker> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    fn authority(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }

    async fn application(&self, authority: &Path, mechanism: &str, password: &str) -> Application {
        let properties = format!(
            "security.protocol=SASL_SSL;ssl.ca.location={};sasl.mechanism={mechanism};sasl.username=alice;\
             sasl.password={password}",
            authority.display()
        );
        let bootstrap = self.broker.sasl_bootstrap().unwrap();
        Application::start(&bootstrap, &[("KAFKA_PROPERTIES", &properties)]).await
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mechanism_accepts_the_password_and_a_wrong_one_is_never_shown() {
    let broker = SaslBroker::shared().await;
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let app = broker.application(&broker.authority(), mechanism, PASSWORD).await.ready().await;
        assert_eq!(app.ingest(EVENT).await.status, 202, "{mechanism}");
        app.stop().await;

        let app = broker.application(&broker.authority(), mechanism, "wrongbattery").await;
        let began = Instant::now();
        let body = loop {
            let body = app.get("/readyz").await.problem(503, true);
            if body["detail"].as_str().unwrap().contains("uthentication") {
                break body;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{mechanism}: {body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_says(&body, &["kafka"]);
        let (_, rejected) = app.ingest(EVENT).await.retry_after(503);
        assert_says(&rejected, &["nothing was stored"]);
        for path in ["/readyz", "/health", "/metrics"] {
            let text = app.get(path).await.text;
            assert!(!text.contains("wrongbattery") && !text.contains("alice"), "{path}: {text}");
        }
        assert_eq!(app.get("/livez").await.status, 200, "the process keeps running");
        assert!(app.stop().await < Duration::from_secs(10));
    }
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untrusted_broker_gets_no_password() {
    let broker = SaslBroker::shared().await;
    let unknown_ca = rcgen::generate_simple_self_signed([unique("ca")]).unwrap();
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&authority, unknown_ca.cert.pem()).unwrap();
    let app = broker.application(authority.path(), "PLAIN", PASSWORD).await;
    let began = Instant::now();
    while !app.get("/readyz").await.text.contains("certificate") {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", app.get("/readyz").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.ingest(EVENT).await.retry_after(503);
}
