//! Configuration: read whole before anything starts; every fault is named at once, the API key is never shown.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use service::{ConfigErrors, ConfigReader, Kind, Secret, parse};
use url::Url;

use crate::tls::authorities;

service::settings! {
    /// What the poller reads from its environment.
    pub struct Settings {
        /// Where the producer is, as in `http://api-producer:8080`.
        producer_base_url: Kind::Required,
        /// Time from one call to the next, in seconds; fractions allowed.
        interval_sec: Kind::Default("3"),
        /// How long calls are made, in seconds, counted from the producer being ready; 0 is until stopped.
        duration_sec: Kind::Default("120"),
        /// How long one call may take, in seconds, before it counts as failed.
        call_timeout_sec: Kind::Default("30"),
        /// Sent to the producer as `Authorization: Bearer …`.
        producer_api_key: Kind::OptionalSecret("no key is sent"),
        /// PEM file with the certificate of an https producer, or with those that it descends from.
        producer_ca_file: Kind::Optional("those of the system"),
        /// Where `/health`, `/livez`, `/readyz` and `/metrics` listen.
        listen_addr: Kind::Default("0.0.0.0:8082"),
    }
}

/// Shortest interval and call timeout, in seconds.
const LEAST_SECONDS: f64 = 0.001;

/// A configuration that is right.
#[derive(Debug, Clone)]
pub struct Config {
    /// The producer's base URL, without a user, a query or a fragment.
    pub producer: Url,
    /// Time from one tick to the next; above zero.
    pub interval: Duration,
    /// How long ticks go on; `None` is until stopped.
    pub duration: Option<Duration>,
    /// How long one call may take.
    pub call_timeout: Duration,
    /// The producer's key.
    pub api_key: Option<Secret>,
    /// Certificates, in DER, that the producer's must be one of or descend from; `None` is those of the system.
    pub authorities: Option<Vec<CertificateDer<'static>>>,
    /// Where the poller listens.
    pub listen_addr: SocketAddr,
}

impl Config {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// Every fault, by variable.
    pub fn from_environment(
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let (settings, mut check) = ConfigReader::read::<Settings>(Settings::VARIABLES, environment);
        let producer = check.value("producer_base_url", settings.producer_base_url.as_ref(), base_url);
        let interval =
            check.value("interval_sec", settings.interval_sec.as_ref(), parse::seconds(LEAST_SECONDS));
        let duration = check.value("duration_sec", settings.duration_sec.as_ref(), parse::seconds(0.0));
        let call_timeout = check.value(
            "call_timeout_sec",
            settings.call_timeout_sec.as_ref(),
            parse::seconds(LEAST_SECONDS),
        );
        let api_key = check.optional("producer_api_key", settings.producer_api_key.as_ref(), key);
        let authorities =
            check.optional("producer_ca_file", settings.producer_ca_file.as_ref(), certificates);
        let listen_addr = check.value("listen_addr", settings.listen_addr.as_ref(), parse::address);
        let config = (|| {
            Some(Self {
                producer: producer?,
                interval: interval?,
                duration: duration.map(|duration| Some(duration).filter(|duration| !duration.is_zero()))?,
                call_timeout: call_timeout?,
                api_key: api_key?,
                authorities: authorities?,
                listen_addr: listen_addr?,
            })
        })();
        check.finish(config)
    }
}

fn base_url(text: &str) -> Result<Url, String> {
    parse::base_url(text).map_err(|why| match text.contains('@') {
        true => format!("{why}; a key goes into PRODUCER_API_KEY"),
        false => why,
    })
}

/// The certificates in a file.
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("has no certificate in PEM".into()),
        Ok(found) => match authorities(&found) {
            Ok(_) => Ok(found),
            Err(error) => Err(format!("has a certificate that cannot be read: {error}")),
        },
        Err(error) => Err(format!("is not PEM: {error}")),
    }
}

/// A key that fits into a header line.
fn key(text: &str) -> Result<Secret, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(Secret::new(text))
    } else {
        Err("has a space or a character that is not printable ASCII, which no HTTP header can carry".into())
    }
}
