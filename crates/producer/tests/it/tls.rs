//! TLS of the HTTP server: handshakes, renewed certificates, and the process's own health check.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use producer::Config;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::application::{Application, Cluster, PATIENCE};
use crate::binary::{producer, read_until};

const EVENT: &str = r#"{"source":"manual","payload":{}}"#;

/// A certificate for 127.0.0.1 and its key, as files.
struct Certificate {
    folder: tempfile::TempDir,
    pem: String,
}

impl Certificate {
    fn new() -> Self {
        let mut certificate = Self { folder: tempfile::tempdir().unwrap(), pem: String::new() };
        certificate.renew();
        certificate
    }

    fn renew(&mut self) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        self.pem = made.cert.pem();
        std::fs::write(self.path("cert.pem"), &self.pem).unwrap();
        std::fs::write(self.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self) -> [(&'static str, String); 2] {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        [("TLS_CERT_FILE", path("cert.pem")), ("TLS_KEY_FILE", path("key.pem"))]
    }

    /// A connection of a client that trusts only this certificate.
    async fn connect(&self, app: &Application) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpStream::connect(app.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }

    /// A client that trusts only this certificate, with its own connections.
    fn client(&self) -> reqwest::Client {
        _ = ring::default_provider().install_default();
        let trusted = reqwest::Certificate::from_pem(self.pem.as_bytes()).unwrap();
        reqwest::Client::builder().tls_certs_only([trusted]).no_proxy().build().unwrap()
    }
}

async fn start(cluster: &Cluster, certificate: &Certificate, more: &[(&str, &str)]) -> Application {
    let settings = certificate.settings();
    let mut all: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.extend(more);
    Application::start_on(&cluster.mock.bootstrap_servers(), &cluster.topic, &all).await
}

async fn accepted(client: &reqwest::Client, app: &Application) {
    let url = format!("https://{}/ingest", app.address);
    let began = Instant::now();
    loop {
        let answer = client.post(&url).body(EVENT).send().await.unwrap();
        if answer.status() == 202 {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_accepted_over_tls_and_not_over_plain_http() {
    let (cluster, certificate) = (Cluster::start(), Certificate::new());
    let app = start(&cluster, &certificate, &[]).await;
    accepted(&certificate.client(), &app).await;
    let mut clear = TcpStream::connect(app.address).await.unwrap();
    clear.write_all(b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A closed connection may end with a reset.
    _ = clear.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let other_client = Certificate::new().client();
    assert!(other_client.get(format!("https://{}/livez", app.address)).send().await.is_err());
    accepted(&certificate.client(), &app).await;
    let text = certificate.client().get(format!("https://{}/metrics", app.address)).send().await.unwrap();
    let text = text.text().await.unwrap();
    assert!(text.contains(r#"slipstream_connections_cut_total{step="handshake"} 2"#), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_client_that_closes_its_sending_side_gets_its_response() {
    let (cluster, certificate) = (Cluster::start(), Certificate::new());
    let app = start(&cluster, &certificate, &[]).await;
    accepted(&certificate.client(), &app).await;
    cluster.mock.broker_round_trip_time(-1, Duration::from_millis(300)).unwrap();
    let complete =
        format!("POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{EVENT}", EVENT.len());
    let cut = "POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{";
    let unknown = "POST /ingest HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: x\r\n\r\n";
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (request, status) in [(&*complete, 202), (cut, 400), (unknown, 501), (preface, 505)] {
        let mut connection = certificate.connect(&app).await;
        connection.write_all(request.as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, connection.read_to_string(&mut answer));
        read.await.expect("an end in time").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_handshake_times_out_and_does_not_delay_the_shutdown() {
    let (cluster, certificate) = (Cluster::start(), Certificate::new());
    let app = start(&cluster, &certificate, &[("REQUEST_TIMEOUT_MS", "500")]).await;
    let mut silent = TcpStream::connect(app.address).await.unwrap();
    // The first bytes of a TLS record.
    silent.write_all(b"\x16\x03\x01").await.unwrap();
    let began = Instant::now();
    let read = tokio::time::timeout(PATIENCE, silent.read(&mut [0; 64])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let took = began.elapsed();
    assert!(took > Duration::from_millis(400) && took < Duration::from_secs(2), "{took:?}");
    let client = certificate.client();
    accepted(&client, &app).await;
    let _silent = TcpStream::connect(app.address).await.unwrap();
    assert!(app.stop().await < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_reloaded_and_an_invalid_one_is_not() {
    let (cluster, mut certificate) = (Cluster::start(), Certificate::new());
    let app = start(&cluster, &certificate, &[]).await;
    let (url, old) = (format!("https://{}/livez", app.address), certificate.client());
    assert_eq!(old.get(&url).send().await.unwrap().status(), 200);
    std::fs::write(certificate.path("cert.pem"), "half of a file").unwrap();
    // Long enough for a reload of the files. Each request uses a new connection.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        assert_eq!(certificate.client().get(&url).send().await.unwrap().status(), 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    certificate.renew();
    let began = Instant::now();
    while certificate.client().get(&url).send().await.is_err() {
        assert!(began.elapsed() < PATIENCE, "the renewed certificate was not loaded");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(old.get(&url).send().await.unwrap().status(), 200, "an open connection stays open");
}

#[test]
fn the_configuration_requires_both_files_and_a_matching_pair() {
    let (one, other) = (Certificate::new(), Certificate::new());
    let [certificate, key] = one.settings();
    let [_, (_, other_key)] = other.settings();
    let missing = one.path("missing.pem").to_str().unwrap().to_owned();
    let read = |pairs: &[(&str, &str)]| {
        let broker = [("KAFKA_BROKER", "k:1")];
        let pairs = broker.iter().chain(pairs).map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from_environment(pairs).map(drop).map_err(|faults| faults.to_string())
    };
    assert_eq!(read(&[(certificate.0, &certificate.1), (key.0, &key.1)]), Ok(()));
    for (pairs, words) in [
        (vec![(certificate.0, certificate.1.as_str())], "TLS_KEY_FILE: not set"),
        (vec![(key.0, key.1.as_str())], "TLS_CERT_FILE: not set"),
        (vec![(certificate.0, missing.as_str()), (key.0, &key.1)], "missing.pem"),
        (vec![(certificate.0, certificate.1.as_str()), (key.0, &other_key)], "cannot be used together"),
    ] {
        let error = read(&pairs).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn the_health_check_over_tls_accepts_only_the_configured_certificate() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let environment = |certificate: &Certificate| {
        let [(_, certificate), (_, key)] = certificate.settings();
        [
            ("KAFKA_BROKER", "127.0.0.1:9".to_owned()),
            ("LISTEN_ADDR", address.clone()),
            ("TLS_CERT_FILE", certificate),
            ("TLS_KEY_FILE", key),
        ]
    };
    let command = |certificate: &Certificate, argument: Option<&str>| {
        let pairs = environment(certificate);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut command = producer(&pairs);
        command.args(argument).stderr(Stdio::piped());
        command
    };
    assert_eq!(command(&certificate, Some("healthcheck")).output().await.unwrap().status.code(), Some(1));
    let mut process = command(&certificate, None).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(BufReader::new(process.stdout.take().unwrap()));
    read_until(&mut lines, "listening").await;
    let healthy = command(&certificate, Some("healthcheck")).output().await.unwrap();
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    let other_client = command(&other, Some("healthcheck")).output().await.unwrap();
    assert_eq!(other_client.status.code(), Some(1), "{other_client:?}");
    assert!(String::from_utf8_lossy(&other_client.stderr).contains("certificate"), "{other_client:?}");

    // An invalid renewal and a changed variable do not affect the running process.
    std::fs::write(certificate.path("cert.pem"), "half of a file").unwrap();
    let healthy =
        command(&certificate, Some("healthcheck")).env("MAX_PAYLOAD_BYTES", "abc").output().await.unwrap();
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    for wrong in ["nowhere", "127.0.0.1:1"] {
        let output =
            command(&certificate, Some("healthcheck")).env("LISTEN_ADDR", wrong).output().await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
}
