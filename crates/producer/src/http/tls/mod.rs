//! TLS of the listener: a certificate and its key from two PEM files, checked when the configuration is read, and read
//! again when the files change, so that a renewed certificate needs no restart. A pair that is wrong then is told once,
//! and the last good one stays in use.

mod pair;
mod probe;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use service::healthcheck::TlsConnector;
use tokio_rustls::TlsAcceptor;

use pair::Pair;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The listener's certificate and key. A handle, cheap to clone.
#[derive(Clone)]
pub struct Tls {
    files: Arc<Files>,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
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
    /// # Errors
    /// A file cannot be read or is not what it should be, or they do not belong together; in words, without the key.
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

    /// Makes connections secure.
    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Takes the files again whenever they change, for ever.
    pub async fn follow_files(self) {
        let mut refused = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let files = Arc::clone(&self.files);
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { return };
            match read {
                Ok(pair) => {
                    refused = None;
                    if self.current.put(pair) {
                        tracing::info!("certificate renewed");
                    }
                }
                Err(why) if refused.as_ref() != Some(&why) => {
                    tracing::warn!(reason = why, "certificate files cannot be used, the last pair stays");
                    refused = Some(why);
                }
                Err(_) => {}
            }
        }
    }
}

/// The client's side, for the process' own health check: takes the certificate in the file and no other. While the files
/// cannot be used it takes any, since the process then goes on with those that they held before.
pub fn secure(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> TlsConnector {
    let files = Files { certificate: certificate.into(), key: key.into() };
    probe::secure(files.read().ok().map(|pair| pair.certified))
}

impl Files {
    fn read(&self) -> Result<Pair, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        Pair::parse(&read(&self.certificate)?, &read(&self.key)?)
    }
}

/// The pair in use.
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

    /// Whether `pair` is another than the present one.
    fn put(&self, pair: Pair) -> bool {
        let mut present = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = present.fingerprint != pair.fingerprint;
        if changed {
            *present = pair;
        }
        changed
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
