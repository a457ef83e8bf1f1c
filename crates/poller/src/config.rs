//! Configuration from the environment.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};
use url::Url;

service::settings! {
    /// The variables of the poller.
    pub struct Settings {
        /// URL of the producer, for example `http://api-producer:8080`.
        producer_base_url: Kind::Required,
        /// Time from one call to the next, in seconds; fractions are allowed.
        interval_sec: Kind::Default("3"),
        /// Duration of the polling in seconds, from the time that the producer is ready; 0 means no
        /// end.
        duration_sec: Kind::Default("120"),
        /// Seconds after which a call without a response fails.
        call_timeout_sec: Kind::Default("30"),
        /// Key sent to the producer as `Authorization: Bearer …`.
        producer_api_key: Kind::OptionalSecret("no key is sent"),
        /// PEM file with the certificate of an https producer, or with the certificates of its
        /// authorities.
        producer_ca_file: Kind::Optional("those of the system"),
        /// Address of `/health`, `/livez`, `/readyz` and `/metrics`.
        listen_addr: Kind::Default("0.0.0.0:8082"),
    }
}

/// Minimum of the interval and of the call timeout, in seconds.
const MIN_SECONDS: f64 = 0.001;

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of the producer, without user, query and fragment.
    pub producer: Url,
    /// Time between two ticks, above zero.
    pub interval: Duration,
    /// Time from the first tick to the end of the schedule. `None` means no end.
    pub duration: Option<Duration>,
    /// Deadline of a call.
    pub call_timeout: Duration,
    /// API key of the producer.
    pub api_key: Option<Secret>,
    /// Certificates in DER that are trusted instead of those of the system.
    pub ca_certificates: Option<Vec<CertificateDer<'static>>>,
    /// Address of the health listener.
    pub listen_addr: SocketAddr,
}

impl Config {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// Every error, by variable.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (settings, mut reader) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let producer = reader.value("producer_base_url", settings.producer_base_url.as_ref(), base_url);
        let interval =
            reader.value("interval_sec", settings.interval_sec.as_ref(), parse::seconds(MIN_SECONDS));
        let duration = reader.value("duration_sec", settings.duration_sec.as_ref(), parse::seconds(0.0));
        let call_timeout =
            reader.value("call_timeout_sec", settings.call_timeout_sec.as_ref(), parse::seconds(MIN_SECONDS));
        let api_key = reader.optional("producer_api_key", settings.producer_api_key.as_ref(), api_key);
        let ca_certificates =
            reader.optional("producer_ca_file", settings.producer_ca_file.as_ref(), certificates);
        let listen_addr = reader.value("listen_addr", settings.listen_addr.as_ref(), parse::address);
        let config = (|| {
            Some(Self {
                producer: producer?,
                interval: interval?,
                duration: duration.map(|duration| Some(duration).filter(|duration| !duration.is_zero()))?,
                call_timeout: call_timeout?,
                api_key: api_key?,
                ca_certificates: ca_certificates?,
                listen_addr: listen_addr?,
            })
        })();
        reader.finish(config)
    }
}

fn base_url(text: &str) -> Result<Url, String> {
    parse::base_url(text).map_err(|error| match text.contains('@') {
        true => format!("{error}; set the key in PRODUCER_API_KEY"),
        false => error,
    })
}

/// Reads the certificates of a PEM file.
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("has no certificate in PEM".into()),
        Ok(certificates) => match root_store(&certificates) {
            Ok(_) => Ok(certificates),
            Err(error) => Err(format!("has an invalid certificate: {error}")),
        },
        Err(error) => Err(format!("is not PEM: {error}")),
    }
}

/// The certificates as trust anchors.
///
/// # Errors
/// One of them is invalid.
pub fn root_store(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    certificates.iter().try_for_each(|certificate| roots.add(certificate.clone()))?;
    Ok(roots)
}

/// A key that is valid in an HTTP header.
fn api_key(text: &str) -> Result<Secret, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(Secret::new(text))
    } else {
        Err("has a space or a character other than printable ASCII, which an HTTP header cannot have".into())
    }
}
