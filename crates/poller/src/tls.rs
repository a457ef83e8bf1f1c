//! Which certificate of an https producer is accepted, and what to do about one that is not.
//!
//! With PRODUCER_CA_FILE a certificate is accepted that descends from one of the file, or that is one of the file, as
//! with curl. webpki alone refuses the latter where it is an authority's, as `openssl req -x509` makes it.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use url::{Host, Url};

use crate::config::Config;

/// webpki's words, which rustls passes on as text.
const IS_AUTHORITY: &str = "CaUsedAsEndEntity";
const IS_VERSION_1: &str = "UnsupportedCertVersion";

/// The certificates of a file, as a set of authorities.
///
/// # Errors
/// One of them cannot be read.
pub fn authorities(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    certificates.iter().try_for_each(|certificate| roots.add(certificate.clone()))?;
    Ok(roots)
}

/// TLS that accepts `certificates` and what descends from them.
///
/// # Errors
/// One of them cannot be read.
pub fn client_config(certificates: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(default_provider());
    let roots = Arc::new(authorities(certificates)?);
    let descent = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let named = Named { descent, certificates: certificates.to_vec() };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(named))
        .with_no_client_auth();
    // As reqwest sets it where it makes the configuration itself.
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// Accepts the certificates that are named, and those that descend from them.
#[derive(Debug)]
struct Named {
    descent: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.certificates.contains(certificate) {
            return self.descent.verify_server_cert(certificate, intermediates, name, ocsp, now);
        }
        // Without intermediates every error is about this certificate. Its validity period is checked first, so an error
        // about its descent means that now is within it.
        match self.descent.verify_server_cert(certificate, &[], name, ocsp, now) {
            Err(Error::InvalidCertificate(error)) if is_about_descent(&error) || lacks_names(&error) => {
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
        self.descent.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.descent.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.descent.supported_verify_schemes()
    }
}

/// A certificate without alternative names has that of its CN, as for OpenSSL.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    match verify_server_name(&ParsedCertificate::try_from(certificate)?, name) {
        Err(Error::InvalidCertificate(error)) if lacks_names(&error) => {
            let own = authorities(&[certificate.clone().into_owned()])?;
            let common_name = own.roots.first().and_then(|own| common_name(&own.subject));
            let is_named = common_name.is_some_and(|own| own.eq_ignore_ascii_case(name.to_str().as_bytes()));
            if is_named { Ok(()) } else { Err(Error::InvalidCertificate(error)) }
        }
        outcome => outcome,
    }
}

fn lacks_names(error: &CertificateError) -> bool {
    matches!(error, CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty())
}

/// The value of the CN in a subject in DER, if it is short: the type 2.5.4.3, then a text.
fn common_name(subject: &[u8]) -> Option<&[u8]> {
    const TYPE: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let start = subject.windows(TYPE.len()).position(|window| window == TYPE)? + TYPE.len();
    let [_, length @ 0..=127, rest @ ..] = subject.get(start..)? else { return None };
    rest.get(..usize::from(*length))
}

fn is_about_descent(error: &CertificateError) -> bool {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => true,
        CertificateError::Other(other) => other.to_string() == IS_AUTHORITY,
        _ => false,
    }
}

/// The producer as its connections see it, to tell why one failed.
#[derive(Debug, Clone)]
pub struct ConnectionDiagnostics {
    base_url: Url,
    names_certificates: bool,
}

impl ConnectionDiagnostics {
    /// The configured producer.
    pub fn of(config: &Config) -> Self {
        Self { base_url: config.producer.clone(), names_certificates: config.authorities.is_some() }
    }

    /// What a failure says innermost, and what to do where that is known.
    pub fn reason(&self, error: &(dyn StdError + 'static)) -> String {
        let root = root_cause(error);
        self.advice(error).map_or_else(|| root.clone(), |advice| format!("{root}: {advice}"))
    }

    /// What to do about a connection that failed, where that is known.
    pub fn advice(&self, error: &(dyn StdError + 'static)) -> Option<String> {
        match tls_error(error) {
            Some(Error::InvalidCertificate(error)) => self.advice_on_certificate(error),
            Some(Error::InvalidMessage(_)) => {
                Some("it does not speak TLS; PRODUCER_BASE_URL may have to begin with http://".into())
            }
            None if self.base_url.scheme() == "http" && root_cause(error).contains("HTTP version") => {
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
            CertificateError::UnknownIssuer if self.names_certificates => {
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
            CertificateError::Other(other) if other.to_string() == IS_AUTHORITY => {
                "it is an authority's certificate (CA:TRUE); name this very certificate in PRODUCER_CA_FILE, or make \
                 it with -addext basicConstraints=critical,CA:FALSE"
                    .into()
            }
            CertificateError::Other(other) if other.to_string().contains(IS_VERSION_1) => {
                format!("it is an X.509 certificate of version 1; make one with `openssl req -x509 {}`", alt_name())
            }
            _ => return None,
        })
    }
}

/// The innermost cause: the outer ones repeat the URL and say that something went wrong.
pub fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The error of TLS in an error. An I/O error does not name what it holds as its source.
fn tls_error<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<Error>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => cause.source(),
        };
    }
    None
}
