//! TLS of the HTTP server. Certificate and key are two PEM files, which the configuration checks.
//!
//! Changed files are reloaded, so that a renewed certificate needs no restart. An invalid pair is
//! logged once, and the last valid pair stays in use.

mod health_check;
mod pair;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use service::healthcheck::TlsConnector;
use tokio_rustls::TlsAcceptor;

use pair::{Pair, provider};

/// Interval of the check for changed files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The certificate and key of the HTTP server. Cheap to clone.
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

    /// Performs the handshakes of new connections.
    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
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
    health_check::secure(files.read().ok().map(|pair| pair.certified))
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
