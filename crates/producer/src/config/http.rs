//! The part of the configuration that says who is let in, how many at a time, and how long they may take.

use std::time::Duration;

use service::{ConfigReader, parse};

use crate::config::Settings;
use crate::http::api_keys::ApiKeys;
use crate::http::cors::Origins;
use crate::http::tls::Tls;

/// Who is let in, and how many.
#[derive(Debug, Clone)]
pub struct Entrance {
    /// Most connections at a time.
    pub max_connections: usize,
    /// Most requests at a time that bring events.
    pub max_in_flight: usize,
    /// How long a connection may be idle between two requests.
    pub idle_timeout: Duration,
    /// Who may bring events; `None` is everybody.
    pub api_keys: Option<ApiKeys>,
    /// Pages of these origins may use the producer; `None` is no page of another origin.
    pub origins: Option<Origins>,
    /// The listener's certificate; `None` is HTTP in the clear.
    pub tls: Option<Tls>,
}

impl Entrance {
    /// Takes its variables.
    pub fn read(s: &Settings, check: &mut ConfigReader) -> Option<Self> {
        let number = parse::number(1..=1_000_000_usize);
        let max_connections = check.value("max_connections", s.max_connections.as_ref(), number);
        let number = parse::number(1..=1_000_000_usize);
        let max_in_flight = check.value("max_in_flight", s.max_in_flight.as_ref(), number);
        let number = parse::number(1..=3_600_000_u64);
        let idle_ms = check.value("idle_timeout_ms", s.idle_timeout_ms.as_ref(), number);
        let api_keys = check.optional("api_keys", s.api_keys.as_ref(), ApiKeys::parse);
        let origins = check.optional("cors_allowed_origins", s.cors_allowed_origins.as_ref(), Origins::parse);
        let tls = tls(s, check);
        Some(Self {
            max_connections: max_connections?,
            max_in_flight: max_in_flight?,
            idle_timeout: Duration::from_millis(idle_ms?),
            api_keys: api_keys?,
            origins: origins?,
            tls: tls?,
        })
    }
}

/// Both files, or neither.
fn tls(s: &Settings, check: &mut ConfigReader) -> Option<Option<Tls>> {
    match (s.tls_cert_file.as_deref().map(str::trim), s.tls_key_file.as_deref().map(str::trim)) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => match Tls::load(certificate, key) {
            Ok(tls) => return Some(Some(tls)),
            Err(why) => check.add_error("TLS_CERT_FILE, TLS_KEY_FILE", why),
        },
        (Some(_), None) => {
            check.add_error("TLS_KEY_FILE", "not set, but TLS_CERT_FILE is: set both or neither")
        }
        (None, Some(_)) => {
            check.add_error("TLS_CERT_FILE", "not set, but TLS_KEY_FILE is: set both or neither")
        }
    }
    None
}
