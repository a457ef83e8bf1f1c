//! TLS of the HTTP server. Certificate and key are two PEM files, which the configuration checks.
//!
//! Changed files are reloaded, so that a renewed certificate needs no restart. An invalid pair is
//! logged once, and the last valid pair stays in use.

use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig,
    SignatureScheme, StreamOwned,
};
use service::health::{Stream, TlsConnector};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

/// Interval of the check for changed files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The certificate and key of the HTTP server. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    files: Arc<Files>,
    current: Arc<Current>,
    /// Performs the handshakes of new connections.
    pub acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(f)
    }
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors A file cannot be read or is invalid, or the two do not match. The text does not
    /// contain the key.
    pub fn load(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, String> {
        let files = Files { certificate: certificate.into(), key: key.into() };
        let current = Arc::new(Current(RwLock::new(files.read()?)));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::<Current>::clone(&current));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files: Arc::new(files), current, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Reloads the files when they change. Runs until it is aborted.
    pub async fn reload_on_change(self) {
        let mut last_error = None;
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let files = Arc::clone(&self.files);
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { return };
            match read {
                Ok(pair) => {
                    last_error = None;
                    if self.current.replace(pair) {
                        tracing::info!("certificate renewed");
                    }
                }
                Err(reason) if last_error.as_ref() != Some(&reason) => {
                    tracing::warn!(reason, "certificate files are invalid, the last pair stays in use");
                    last_error = Some(reason);
                }
                Err(_) => {}
            }
        }
    }
}

/// The TLS client of the process's own health check. It accepts only the certificate in the file.
/// While the files are invalid it accepts any, because the process uses an earlier certificate
/// then.
pub fn secure(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> TlsConnector {
    let files = Files { certificate: certificate.into(), key: key.into() };
    connector(files.read().ok().map(|pair| pair.certified))
}

impl Files {
    fn read(&self) -> Result<Pair, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        Pair::parse(&read(&self.certificate)?, &read(&self.key)?)
    }
}

/// The pair that is in use.
struct Current(RwLock<Pair>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl Current {
    fn get(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).certified)
    }

    /// Replaces the pair. Returns whether `pair` is different.
    fn replace(&self, pair: Pair) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.fingerprint != pair.fingerprint;
        if changed {
            *current = pair;
        }
        changed
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

/// A certificate chain with the matching key.
struct Pair {
    pub certified: Arc<CertifiedKey>,
    /// Differs between different pairs.
    pub fingerprint: [u8; 32],
}

impl Pair {
    /// Parses two PEM texts.
    ///
    /// # Errors
    /// States which text is invalid, and why.
    pub fn parse(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the certificate file is not PEM: {error}"))?;
        if chain.is_empty() {
            return Err("the certificate file has no certificate in PEM".into());
        }
        let private = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| "the key file has no private key in PEM (PKCS#8, PKCS#1 or SEC1)".to_owned())?;
        let certified = CertifiedKey::from_der(chain, private, &provider())
            .map_err(|error| format!("certificate and key cannot be used together: {error}"))?;
        let mut fingerprint = Sha256::new();
        fingerprint.update(certificate);
        fingerprint.update(key);
        Ok(Self { certified: Arc::new(certified), fingerprint: fingerprint.finalize().into() })
    }
}

/// The crypto provider of all TLS connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Creates a client that accepts only the certificate `own`; with `None` it accepts any.
fn connector(own: Option<Arc<CertifiedKey>>) -> TlsConnector {
    Box::new(move |stream: TcpStream| {
        let verifier = Arc::new(OwnCertificate { own, provider: provider() });
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let name = ServerName::from(stream.peer_addr()?.ip());
        let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(client, stream)) as Box<dyn Stream>)
    })
}

/// Accepts the own certificate for any server name: only this process has its key.
struct OwnCertificate {
    own: Option<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnCertificate")
    }
}

impl ServerCertVerifier for OwnCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.own.as_ref().is_none_or(|own| own.cert.first() == Some(end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn fault(certificate: &str, key: &str) -> String {
        Pair::parse(certificate.as_bytes(), key.as_bytes()).err().unwrap()
    }

    #[test]
    fn an_error_names_the_file_and_does_not_contain_the_key() {
        let ((certificate, key), (_, other_key)) = (pem(), pem());
        assert!(Pair::parse(certificate.as_bytes(), key.as_bytes()).is_ok());
        assert!(fault("", &key).contains("no certificate"));
        assert!(fault(&key, &key).contains("no certificate"));
        assert!(fault(&certificate, "").contains("no private key"));
        assert!(fault(&certificate, &certificate).contains("no private key"));
        let error = fault(&certificate, &other_key);
        assert!(error.contains("cannot be used together"), "{error}");
        for line in other_key.lines().filter(|line| !line.starts_with('-')) {
            assert!(!error.contains(line), "{error}");
        }
    }

    #[test]
    fn a_renewed_pair_has_a_different_fingerprint() {
        let print = |(certificate, key): &(String, String)| {
            Pair::parse(certificate.as_bytes(), key.as_bytes()).unwrap().fingerprint
        };
        let (old, new) = (pem(), pem());
        assert_eq!(print(&old), print(&old));
        assert_ne!(print(&old), print(&new));
    }
}
