//! Verification of the producer's certificate, with and without PRODUCER_CA_FILE.

use std::net::SocketAddr;
use std::sync::Arc;

use poller::Config;
use poller::client::ProducerClient;
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
struct Identity {
    certificate: Certificate,
    key: KeyPair,
    params: CertificateParams,
}

fn params(host: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::new([host.to_owned()]).unwrap();
    params.is_ca = is_ca;
    params
}

/// The parameters of `openssl req -x509`: CA:TRUE.
fn openssl_params(host: &str) -> CertificateParams {
    params(host, IsCa::Ca(BasicConstraints::Unconstrained))
}

fn self_signed(params: CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    Identity { certificate: params.self_signed(&key).unwrap(), key, params }
}

fn signed_by(issuer: &Identity, params: CertificateParams) -> Identity {
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::from_params(&issuer.params, &issuer.key);
    Identity { certificate: params.signed_by(&key, &issuer).unwrap(), key, params }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    _ = stream.read(&mut [0; 4096]).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    _ = stream.write_all(answer).await;
    _ = stream.shutdown().await;
}

/// Starts a server that responds 200 to every request, over TLS if `identity` is given.
async fn serve(identity: Option<&Identity>) -> SocketAddr {
    let acceptor = identity.map(|identity| {
        let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.der().clone()], key)
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

/// Checks the readiness of the producer at `url`, with `ca_file` in PRODUCER_CA_FILE.
async fn check_url(url: &str, ca_file: &[&Identity]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let pem: String = ca_file.iter().map(|identity| identity.certificate.pem()).collect();
    std::fs::write(&file, pem).unwrap();
    let mut environment = vec![("PRODUCER_BASE_URL", url)];
    if !ca_file.is_empty() {
        environment.push(("PRODUCER_CA_FILE", file.to_str().unwrap()));
    }
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let producer = ProducerClient::new(&Config::from_environment(environment).unwrap()).unwrap();
    producer.ready().await.map_err(|error| error.reason)
}

/// Checks the readiness of a TLS server that has the certificate of `identity`.
async fn check(identity: &Identity, ca_file: &[&Identity]) -> Result<(), String> {
    check_url(&format!("https://{}", serve(Some(identity)).await), ca_file).await
}

#[tokio::test]
async fn a_certificate_of_the_ca_file_is_accepted() {
    let authority = self_signed(openssl_params("127.0.0.1"));
    let other = self_signed(openssl_params("127.0.0.1"));
    let plain = self_signed(params("127.0.0.1", IsCa::NoCa));
    let explicit = self_signed(params("127.0.0.1", IsCa::ExplicitNoCa));
    let leaf = signed_by(&other, params("127.0.0.1", IsCa::NoCa));
    for identity in [&authority, &plain, &explicit, &leaf] {
        assert_eq!(check(identity, &[identity]).await, Ok(()));
        assert_eq!(check(identity, &[&other, identity]).await, Ok(()));
    }
    assert_eq!(check(&leaf, &[&other]).await, Ok(()), "a certificate of the file issued it");
}

#[tokio::test]
async fn a_certificate_without_alternative_names_has_its_cn_as_name() {
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::ExplicitNoCa] {
        for (common_name, right) in
            [("localhost", true), ("LocalHost", true), ("localhost.", false), ("other", false)]
        {
            let mut params = CertificateParams::default();
            params.is_ca = is_ca;
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "localhost");
            params.distinguished_name.push(DnType::CommonName, common_name);
            let identity = self_signed(params);
            let url = format!("https://localhost:{}", serve(Some(&identity)).await.port());
            let checked = check_url(&url, &[&identity]).await;
            assert_eq!(checked.is_ok(), right, "{common_name}: {checked:?}");
            assert!(checked.err().is_none_or(|why| why.contains("subjectAltName=DNS:localhost")));
        }
    }
    let mut params = params("127.0.0.1", IsCa::ExplicitNoCa);
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let identity = self_signed(params);
    let url = format!("https://localhost:{}", serve(Some(&identity)).await.port());
    assert!(check_url(&url, &[&identity]).await.is_err(), "an alternative name replaces the CN");
}

#[tokio::test]
async fn a_certificate_of_the_ca_file_is_rejected_for_its_name_or_period() {
    for (host, from, to, words) in [
        ("localhost", 2020, 4096, "subjectAltName=IP:127.0.0.1"),
        ("127.0.0.1", 2020, 2021, "expired"),
        ("127.0.0.1", 4000, 4096, "not valid yet"),
    ] {
        let authority = IsCa::Ca(BasicConstraints::Unconstrained);
        for is_ca in [authority, IsCa::NoCa] {
            let mut params = params(host, is_ca);
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            let identity = self_signed(params);
            let reason = check(&identity, &[&identity]).await.unwrap_err();
            assert!(reason.contains(words), "{words}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_certificate_missing_in_the_ca_file_is_rejected_with_advice() {
    let (authority, plain) =
        (self_signed(openssl_params("127.0.0.1")), self_signed(params("127.0.0.1", IsCa::NoCa)));
    let mut named = openssl_params("127.0.0.1");
    named.distinguished_name.push(DnType::CommonName, "another");
    let other = self_signed(named);
    for (identity, file, words) in [
        (&authority, vec![&other], "name this very certificate in PRODUCER_CA_FILE"),
        (&authority, vec![], "name this very certificate in PRODUCER_CA_FILE"),
        (&plain, vec![&other], "has neither this certificate nor its issuer's"),
        (&plain, vec![], "name the certificate, or that of its authority, in PRODUCER_CA_FILE"),
        (&plain, vec![&authority], "the issuer's name with another key"),
    ] {
        let reason = check(identity, &file).await.unwrap_err();
        assert!(reason.starts_with("cannot be reached: ") && reason.contains(words), "{words}: {reason}");
    }
}

#[tokio::test]
async fn a_wrong_scheme_of_the_url_is_named() {
    let identity = self_signed(openssl_params("127.0.0.1"));
    let plain = format!("https://{}", serve(None).await);
    let reason = check_url(&plain, &[&identity]).await.unwrap_err();
    assert!(reason.contains("does not speak TLS") && reason.contains("http://"), "{reason}");
    let tls = format!("http://{}", serve(Some(&identity)).await);
    let reason = check_url(&tls, &[]).await.unwrap_err();
    assert!(reason.contains("may speak TLS") && reason.contains("https://"), "{reason}");
}
