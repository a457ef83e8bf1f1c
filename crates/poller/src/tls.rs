//! TLS of an https producer: verification of its certificate, and advice after a failure.
//!
//! With PRODUCER_CA_FILE, a certificate is accepted if it is in the file or if a certificate of the
//! file issued it, as with curl. webpki alone rejects a CA certificate as a server certificate.
//! `openssl req -x509` creates such certificates.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use service::http::root_cause;
use url::{Host, Url};

use crate::config::{Config, root_store};

/// Error names of webpki, which rustls passes on only as text.
const CA_AS_END_ENTITY: &str = "CaUsedAsEndEntity";
const UNSUPPORTED_VERSION: &str = "UnsupportedCertVersion";

/// A TLS configuration that accepts `certificates` and the certificates that they issued.
///
/// # Errors
/// One of them is invalid.
pub fn client_config(certificates: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(default_provider());
    let roots = Arc::new(root_store(certificates)?);
    let chains = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let verifier = CaFileVerifier { chains, certificates: certificates.to_vec() };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // reqwest sets the same protocols in a configuration of its own.
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// Accepts the certificates of PRODUCER_CA_FILE and the certificates that they issued.
#[derive(Debug)]
struct CaFileVerifier {
    /// Verifies a chain of issuers.
    chains: Arc<WebPkiServerVerifier>,
    /// The certificates of the file.
    certificates: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for CaFileVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.certificates.contains(certificate) {
            return self.chains.verify_server_cert(certificate, intermediates, name, ocsp, now);
        }
        // Without intermediates, every error is about this certificate. webpki checks the validity
        // period first, so an error about the issuer means that the period is valid.
        match self.chains.verify_server_cert(certificate, &[], name, ocsp, now) {
            Err(Error::InvalidCertificate(error)) if is_issuer_error(&error) || lacks_names(&error) => {
                verify_name(certificate, name).map(|()| ServerCertVerified::assertion())
            }
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Verifies the name. A certificate without alternative names has its CN as name, as in OpenSSL.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    match verify_server_name(&ParsedCertificate::try_from(certificate)?, name) {
        Err(Error::InvalidCertificate(error)) if lacks_names(&error) => {
            let roots = root_store(&[certificate.clone().into_owned()])?;
            let common_name = roots.roots.first().and_then(|root| common_name(&root.subject));
            let is_named = common_name.is_some_and(|cn| cn.eq_ignore_ascii_case(name.to_str().as_bytes()));
            if is_named { Ok(()) } else { Err(Error::InvalidCertificate(error)) }
        }
        outcome => outcome,
    }
}

fn lacks_names(error: &CertificateError) -> bool {
    matches!(error, CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty())
}

/// The CN of a subject in DER, up to 127 bytes: the type 2.5.4.3, then a string.
fn common_name(subject: &[u8]) -> Option<&[u8]> {
    const TYPE: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let start = subject.windows(TYPE.len()).position(|window| window == TYPE)? + TYPE.len();
    let [_, length @ 0..=127, rest @ ..] = subject.get(start..)? else { return None };
    rest.get(..usize::from(*length))
}

fn is_issuer_error(error: &CertificateError) -> bool {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => true,
        CertificateError::Other(other) => other.to_string() == CA_AS_END_ENTITY,
        _ => false,
    }
}

/// Explains why a connection to the producer failed.
#[derive(Debug, Clone)]
pub struct ConnectionDiagnostics {
    base_url: Url,
    has_ca_file: bool,
}

impl ConnectionDiagnostics {
    /// Diagnostics for the configured producer.
    pub fn new(config: &Config) -> Self {
        Self { base_url: config.producer.clone(), has_ca_file: config.ca_certificates.is_some() }
    }

    /// The root cause of a failure, and the advice if there is one.
    pub fn describe(&self, error: &(dyn StdError + 'static)) -> String {
        let root = root_cause(error);
        self.advice(error).map_or_else(|| root.to_string(), |advice| format!("{root}: {advice}"))
    }

    /// What to change so that the connection works, for the known causes.
    pub fn advice(&self, error: &(dyn StdError + 'static)) -> Option<String> {
        match tls_error(error) {
            Some(Error::InvalidCertificate(error)) => self.advice_on_certificate(error),
            Some(Error::InvalidMessage(_)) => {
                Some("it does not speak TLS; PRODUCER_BASE_URL may have to begin with http://".into())
            }
            None if self.base_url.scheme() == "http"
                && root_cause(error).to_string().contains("HTTP version") =>
            {
                Some("it may speak TLS; PRODUCER_BASE_URL may have to begin with https://".into())
            }
            _ => None,
        }
    }

    fn advice_on_certificate(&self, error: &CertificateError) -> Option<String> {
        let alt_name = || match self.base_url.host() {
            Some(Host::Domain(name)) => format!("-addext subjectAltName=DNS:{name}"),
            Some(Host::Ipv4(address)) => format!("-addext subjectAltName=IP:{address}"),
            Some(Host::Ipv6(address)) => format!("-addext subjectAltName=IP:{address}"),
            None => "-addext subjectAltName=…".into(),
        };
        Some(match error {
            CertificateError::UnknownIssuer if self.has_ca_file => {
                "the file of PRODUCER_CA_FILE has neither this certificate nor its issuer's".into()
            }
            CertificateError::UnknownIssuer => {
                "name the certificate, or that of its authority, in PRODUCER_CA_FILE".into()
            }
            CertificateError::BadSignature => {
                "the file of PRODUCER_CA_FILE has a certificate of the issuer's name with another key".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("it has another name; make one with `openssl req -x509 {}`", alt_name())
            }
            CertificateError::Other(other) if other.to_string() == CA_AS_END_ENTITY => {
                "it is an authority's certificate (CA:TRUE); name this very certificate in PRODUCER_CA_FILE, or make \
                 it with -addext basicConstraints=critical,CA:FALSE"
                    .into()
            }
            CertificateError::Other(other) if other.to_string().contains(UNSUPPORTED_VERSION) => {
                format!("it is an X.509 certificate of version 1; make one with `openssl req -x509 {}`", alt_name())
            }
            _ => return None,
        })
    }
}

/// The TLS error inside an error. An I/O error does not return its inner error as its source.
fn tls_error<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<Error>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}
