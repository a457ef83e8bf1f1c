//! The configuration of the HTTP server.

use std::time::Duration;

use service::{ConfigReader, parse};

use crate::config::settings::Settings;
use crate::http::api_keys::ApiKeys;
use crate::http::cors::Origins;
use crate::http::tls::Tls;

/// The limits, authentication, CORS and TLS of the HTTP server.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub max_connections: usize,
    pub max_in_flight: usize,
    pub idle_timeout: Duration,
    /// `None` if authentication is off.
    pub api_keys: Option<ApiKeys>,
    /// `None` if no cross-origin request is allowed.
    pub cors_origins: Option<Origins>,
    /// `None` for plain HTTP.
    pub tls: Option<Tls>,
}

impl HttpConfig {
    /// Parses the variables.
    pub fn read(s: &Settings, check: &mut ConfigReader) -> Option<Self> {
        let number = parse::number(1..=1_000_000_usize);
        let max_connections = check.value("max_connections", s.max_connections.as_ref(), number);
        let number = parse::number(1..=1_000_000_usize);
        let max_in_flight = check.value("max_in_flight", s.max_in_flight.as_ref(), number);
        let number = parse::number(1..=3_600_000_u64);
        let idle_timeout_ms = check.value("idle_timeout_ms", s.idle_timeout_ms.as_ref(), number);
        let api_keys = check.optional("api_keys", s.api_keys.as_ref(), ApiKeys::parse);
        let origins = check.optional("cors_allowed_origins", s.cors_allowed_origins.as_ref(), Origins::parse);
        let tls = tls(s, check);
        Some(Self {
            max_connections: max_connections?,
            max_in_flight: max_in_flight?,
            idle_timeout: Duration::from_millis(idle_timeout_ms?),
            api_keys: api_keys?,
            cors_origins: origins?,
            tls: tls?,
        })
    }
}

/// Reads certificate and key. Both variables must be set, or neither.
fn tls(s: &Settings, check: &mut ConfigReader) -> Option<Option<Tls>> {
    match (s.tls_cert_file.as_deref().map(str::trim), s.tls_key_file.as_deref().map(str::trim)) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => match Tls::load(certificate, key) {
            Ok(tls) => return Some(Some(tls)),
            Err(reason) => check.add_error("TLS_CERT_FILE, TLS_KEY_FILE", reason),
        },
        (Some(_), None) => {
            check.add_error("TLS_KEY_FILE", "not set, but TLS_CERT_FILE is: set both or neither");
        }
        (None, Some(_)) => {
            check.add_error("TLS_CERT_FILE", "not set, but TLS_KEY_FILE is: set both or neither");
        }
    }
    None
}
