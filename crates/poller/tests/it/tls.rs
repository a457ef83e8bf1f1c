//! Certificates of a producer that speaks TLS, and those that PRODUCER_CA_FILE names.

use std::net::SocketAddr;
use std::sync::Arc;

use poller::Config;
use poller::client::Producer;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A certificate and its key.
struct Made {
    certificate: Certificate,
    key: KeyPair,
    params: CertificateParams,
}

fn params(host: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::new([host.to_owned()]).unwrap();
    params.is_ca = is_ca;
    params
}

/// What `openssl req -x509` makes: CA:TRUE.
fn of_openssl(host: &str) -> CertificateParams {
    params(host, IsCa::Ca(BasicConstraints::Unconstrained))
}

fn self_signed(params: CertificateParams) -> Made {
    let key = KeyPair::generate().unwrap();
    Made { certificate: params.self_signed(&key).unwrap(), key, params }
}

fn signed_by(issuer: &Made, params: CertificateParams) -> Made {
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::from_params(&issuer.params, &issuer.key);
    Made { certificate: params.signed_by(&key, &issuer).unwrap(), key, params }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    _ = stream.read(&mut [0; 4096]).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    _ = stream.write_all(answer).await;
    _ = stream.shutdown().await;
}

/// Answers every request with 200, over TLS if it has a certificate.
async fn serve(tls: Option<&Made>) -> SocketAddr {
    let acceptor = tls.map(|made| {
        let key = PrivateKeyDer::try_from(made.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            match &acceptor {
                None => answer(stream).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        answer(stream).await;
                    }
                }
            }
        }
    });
    address
}

/// What the poller says of the producer at `url` if its file holds `named`.
async fn asked(url: &str, named: &[&Made]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("named.pem");
    let pem: String = named.iter().map(|made| made.certificate.pem()).collect();
    std::fs::write(&file, pem).unwrap();
    let mut environment = vec![("PRODUCER_BASE_URL", url)];
    if !named.is_empty() {
        environment.push(("PRODUCER_CA_FILE", file.to_str().unwrap()));
    }
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let producer = Producer::new(&Config::from_environment(environment).unwrap()).unwrap();
    producer.ready().await.map_err(|refusal| refusal.reason)
}

/// The same of a producer that shows `shown`.
async fn shown(shown: &Made, named: &[&Made]) -> Result<(), String> {
    asked(&format!("https://{}", serve(Some(shown)).await), named).await
}

#[tokio::test]
async fn a_certificate_that_the_file_holds_is_accepted() {
    let authority = self_signed(of_openssl("127.0.0.1"));
    let other = self_signed(of_openssl("127.0.0.1"));
    let plain = self_signed(params("127.0.0.1", IsCa::NoCa));
    let explicit = self_signed(params("127.0.0.1", IsCa::ExplicitNoCa));
    let leaf = signed_by(&other, params("127.0.0.1", IsCa::NoCa));
    for made in [&authority, &plain, &explicit, &leaf] {
        assert_eq!(shown(made, &[made]).await, Ok(()));
        assert_eq!(shown(made, &[&other, made]).await, Ok(()));
    }
    assert_eq!(shown(&leaf, &[&other]).await, Ok(()), "it descends from the one in the file");
}

#[tokio::test]
async fn a_certificate_without_alternative_names_has_that_of_its_cn() {
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::ExplicitNoCa] {
        for (common_name, right) in
            [("localhost", true), ("LocalHost", true), ("localhost.", false), ("other", false)]
        {
            let mut params = CertificateParams::default();
            params.is_ca = is_ca;
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "localhost");
            params.distinguished_name.push(DnType::CommonName, common_name);
            let made = self_signed(params);
            let url = format!("https://localhost:{}", serve(Some(&made)).await.port());
            let asked = asked(&url, &[&made]).await;
            assert_eq!(asked.is_ok(), right, "{common_name}: {asked:?}");
            assert!(asked.err().is_none_or(|why| why.contains("subjectAltName=DNS:localhost")));
        }
    }
    let mut params = params("127.0.0.1", IsCa::ExplicitNoCa);
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let made = self_signed(params);
    let url = format!("https://localhost:{}", serve(Some(&made)).await.port());
    assert!(asked(&url, &[&made]).await.is_err(), "with another alternative name the CN does not count");
}

#[tokio::test]
async fn a_certificate_that_the_file_holds_is_refused_for_its_name_or_time() {
    for (host, from, to, words) in [
        ("localhost", 2020, 4096, "subjectAltName=IP:127.0.0.1"),
        ("127.0.0.1", 2020, 2021, "expired"),
        ("127.0.0.1", 4000, 4096, "not valid yet"),
    ] {
        let authority = IsCa::Ca(BasicConstraints::Unconstrained);
        for is_ca in [authority, IsCa::NoCa] {
            let mut params = params(host, is_ca);
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            let made = self_signed(params);
            let reason = shown(&made, &[&made]).await.unwrap_err();
            assert!(reason.contains(words), "{words}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_the_file_does_not_hold_is_refused_with_advice() {
    let (authority, plain) =
        (self_signed(of_openssl("127.0.0.1")), self_signed(params("127.0.0.1", IsCa::NoCa)));
    let mut named = of_openssl("127.0.0.1");
    named.distinguished_name.push(DnType::CommonName, "another");
    let other = self_signed(named);
    for (made, file, words) in [
        (&authority, vec![&other], "name this very certificate in PRODUCER_CA_FILE"),
        (&authority, vec![], "name this very certificate in PRODUCER_CA_FILE"),
        (&plain, vec![&other], "has neither this certificate nor its issuer's"),
        (&plain, vec![], "name the certificate, or that of its authority, in PRODUCER_CA_FILE"),
        (&plain, vec![&authority], "the issuer's name with another key"),
    ] {
        let reason = shown(made, &file).await.unwrap_err();
        assert!(reason.starts_with("cannot be reached: ") && reason.contains(words), "{words}: {reason}");
    }
}

#[tokio::test]
async fn a_scheme_that_the_producer_does_not_speak_is_named() {
    let made = self_signed(of_openssl("127.0.0.1"));
    let plain = format!("https://{}", serve(None).await);
    let reason = asked(&plain, &[&made]).await.unwrap_err();
    assert!(reason.contains("does not speak TLS") && reason.contains("http://"), "{reason}");
    let tls = format!("http://{}", serve(Some(&made)).await);
    let reason = asked(&tls, &[]).await.unwrap_err();
    assert!(reason.contains("may speak TLS") && reason.contains("https://"), "{reason}");
}
