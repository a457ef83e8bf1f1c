//! Parses a certificate chain and its private key, both PEM.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

/// A certificate chain with the matching key.
pub struct Pair {
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
