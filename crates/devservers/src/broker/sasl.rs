//! A second listener of Apache Kafka with TLS and passwords: SASL_SSL with PLAIN and both SCRAM
//! mechanisms.

use std::fmt;
use std::path::Path;

use crate::{ServerError, address};

const KEYSTORE: &str = "sasl-keystore.pem";

/// The user and the certificate of the broker.
#[derive(Clone)]
pub struct Sasl {
    /// The certificate of the broker in PEM, for 127.0.0.1.
    pub certificate: String,
    /// Its private key, PKCS#8 in PEM.
    pub key: String,
    /// The user: letters and digits.
    pub user: String,
    /// The user's password: letters and digits.
    pub password: String,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The listener with its port.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub sasl: Sasl,
    pub port: u16,
}

impl Listener {
    pub(super) fn on_free_port(sasl: &Sasl) -> Result<Listener, ServerError> {
        let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
        if !plain(&sasl.user) || !plain(&sasl.password) {
            let sentence = "user and password of the broker's SASL listener must be letters and digits";
            return Err(ServerError::Setting(sentence.to_owned()));
        }
        Ok(Listener { sasl: sasl.clone(), port: address::free_port()? })
    }

    /// As an entry of `listeners`.
    pub(super) fn entry(&self) -> String {
        format!("SASL_SSL://{}", address::loopback(self.port))
    }

    /// Its configuration lines.
    pub(super) fn properties(&self, folder: &Path) -> Result<String, ServerError> {
        let Sasl { certificate, key, user, password } = &self.sasl;
        let path = folder.join(KEYSTORE);
        std::fs::write(&path, format!("{key}\n{certificate}\n"))
            .map_err(ServerError::io("writing", &path))?;
        Ok(format!(
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.ssl.keystore.type=PEM
listener.name.sasl_ssl.ssl.keystore.location={KEYSTORE}
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}=\"{password}\";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_would_need_quoting_is_refused_and_not_shown() {
        let sasl = |user: &str, password: &str| Sasl {
            certificate: String::new(),
            key: String::new(),
            user: user.into(),
            password: password.into(),
        };
        let listener = Listener::on_free_port(&sasl("alice", "secret")).unwrap();
        assert_eq!(listener.entry(), format!("SASL_SSL://127.0.0.1:{}", listener.port));
        for wrong in [sasl("alice", "a\"b"), sasl("al ice", "secret"), sasl("alice", "")] {
            let said = Listener::on_free_port(&wrong).unwrap_err().to_string();
            assert!(said.contains("letters and digits") && !said.contains("secret"), "{said}");
            assert!(!format!("{wrong:?}").contains("secret"));
        }
    }

    #[tokio::test]
    async fn tansu_says_that_it_has_no_such_listener() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = crate::BrokerOptions::new(crate::BrokerKind::Tansu, folder.path());
        let text = String::new;
        options.sasl =
            Some(Sasl { certificate: text(), key: text(), user: "a".into(), password: "b".into() });
        let error = crate::Broker::start(options, crate::Progress::silent()).await.unwrap_err();
        assert!(error.to_string().contains("tansu"), "{error}");
    }
}
