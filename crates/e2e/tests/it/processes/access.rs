//! A producer with TLS and API_KEYS, and a poller with a CA and a key.

use std::path::Path;
use std::time::Duration;

use devservers::Simulator;
use serde_json::{Value, json};
use testkit::process::command;
use testkit::{Process, Stack, eventually};

use testkit::certificate::certificate;

/// `printf %s secret | sha256sum`
const KEYS: &str = "poller:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

/// Runs a poller with this key. Returns its exit code and its output.
async fn poll(producer: &Process, authority: &str, key: Option<&str>) -> (Option<i32>, String) {
    let url = format!("https://{}", producer.address);
    let mut poller = command(
        "poller",
        &[
            ("PRODUCER_BASE_URL", &url),
            ("PRODUCER_CA_FILE", authority),
            ("INTERVAL_SEC", "0.2"),
            ("DURATION_SEC", "1"),
            ("LISTEN_ADDR", "127.0.0.1:0"),
        ],
    );
    poller.envs(key.map(|path| ("PRODUCER_API_KEY_FILE", path)));
    let output = tokio::time::timeout(Duration::from_secs(60), poller.output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// Runs `slipstream load` with one event. Returns its exit code and its summary.
async fn load(environment: &[(&str, &str)]) -> (Option<i32>, Value) {
    let arguments = ["load", "--events", "1", "--source", "manual", "--grace", "1s", "--json"];
    let output = command("slipstream", environment).args(arguments).output().await.unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn poller_with_key_and_ca_is_accepted_without_the_key_rejected() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, private) = certificate(folder.path());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (write("right", "secret\n"), write("wrong", "guess\n"));
    let producer = stack.producer(
        &names,
        &[
            ("ADSBDB_BASE_URL", &simulator.base_url()),
            ("TLS_CERT_FILE", &certificate),
            ("TLS_KEY_FILE", &private),
            ("API_KEYS", KEYS),
            ("RUST_LOG", "debug"),
        ],
    );
    let (code, said) = poll(&producer, &certificate, Some(&right)).await;
    assert_eq!(code, Some(0), "{said}");
    let url = format!("https://{}", producer.address);
    let trusting = [
        ("PRODUCER_BASE_URL", url.as_str()),
        ("PRODUCER_API_KEY_FILE", &right),
        ("PRODUCER_CA_FILE", &certificate),
    ];
    let (code, said) = load(&trusting).await;
    assert_eq!((code, &said["accepted"]), (Some(0), &json!(1)), "{said}");
    let (code, said) = load(&trusting[..2]).await;
    let why = said["unreachable_reason"].as_str().unwrap_or_default();
    assert!(code == Some(1) && why.contains("name this very certificate in PRODUCER_CA_FILE"), "{said}");
    for key in [None, Some(wrong.as_str())] {
        let (code, said) = poll(&producer, &certificate, key).await;
        assert!(code == Some(1) && said.contains("401"), "{code:?} {said}");
    }
    let named = || async { producer.log().contains(r#""key":"poller""#).then_some(()) };
    eventually("the access log names the key's holder", Duration::from_secs(5), named).await;
    for secret in ["secret", "guess", "2bb80d53"] {
        assert!(!producer.log().contains(secret), "{secret}");
    }
    assert!(producer.terminate().await.success());
}

#[tokio::test]
async fn unreadable_ca_file_is_a_configuration_error() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for (path, words) in [(empty.as_path(), "no certificate"), (Path::new("/no/such.pem"), "cannot be read")]
    {
        let environment = [("PRODUCER_BASE_URL", "https://p"), ("PRODUCER_CA_FILE", path.to_str().unwrap())];
        let output = command("poller", &environment).arg("--check-config").output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("PRODUCER_CA_FILE") && said.contains(words), "{said}");
    }
}
